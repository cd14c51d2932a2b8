"""`train-predictor` and `evaluate` as commands, on synthetic outcomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from predictor.image_table import table_beside, write_image_table
from predictor.predictor import Predictor
from predictor.records import write_outcomes
from tests.predictor import synthetic

PICTURES = 300
PLAIN = {"NO_COLOR": "1", "COLUMNS": "120"}


def run(*arguments: str | Path) -> Result:
    return CliRunner(env=PLAIN).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "outcomes.parquet"
    images = synthetic.image_table(PICTURES)
    rows = synthetic.outcome_rows(synthetic.outcome_table(PICTURES))
    write_outcomes(path, rows, synthetic.SOURCE)
    write_image_table(table_beside(path), dict(zip(images.images, images.values, strict=True)))
    return path


def test_train_then_evaluate(outcomes: Path, tmp_path: Path) -> None:
    artifact, report = tmp_path / "artifact", tmp_path / "report"
    trained = run("train-predictor", outcomes, artifact, "--target", "correctness")
    assert trained.exit_code == 0, trained.output
    version = Predictor.load(artifact).version
    assert version in trained.output

    judged = run("evaluate", artifact, outcomes, report)
    assert judged.exit_code == 0, judged.output
    assert "oracle gap closed" in judged.output and "router" in judged.output
    assert (report / "frontier.png").is_file()
    as_json = json.loads(run("evaluate", artifact, outcomes, report, "--json").stdout)
    assert as_json["predictor"] == version
    assert as_json == json.loads((report / "evaluation.json").read_text())


def test_the_same_seed_trains_the_same_predictor(outcomes: Path, tmp_path: Path) -> None:
    versions = set()
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run("train-predictor", outcomes, tmp_path / name, "--seed", seed).exit_code == 0
        versions.add(Predictor.load(tmp_path / name).version)
    assert len(versions) == 2
