"""`m3-router retrain` on a folder of labels and a registry of this user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from deploy.cli import app
from deploy.retrain import since_of
from predictor.errors import OutcomesError
from predictor.image_table import table_beside, write_image_table
from predictor.label_records import decode
from predictor.record_store import LABELS, RecordStore
from predictor.records import write_outcomes
from tests.predictor import synthetic
from tests.predictor.test_retrain import COUNT, label

ONES = ("--max-regret", "0.1")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "m3-router"


def run(*arguments: str) -> tuple[int, Any]:
    command = ["retrain", "--json", *arguments]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout)


def test_labels_become_the_predictor_that_serves(home: Path) -> None:
    """Once; the second time there is nothing better, and that is said."""
    store = RecordStore(str(home / "records"))
    store.append(LABELS, decode([label(row) for row in range(3 * COUNT)])[0])
    status, first = run(*ONES)
    assert (status, first["promoted"], first["reasons"]) == (0, True, [])
    status, second = run(*ONES)
    assert (status, second["promoted"], second["version"]) == (1, False, first["version"])
    assert "not better" in second["reasons"][0]
    listed = CliRunner().invoke(app, ["predictors", "list", "--json"]).stdout
    assert [row["serves"] for row in json.loads(listed)] == [True]


def test_outcomes_alone_can_be_learned_from_without_serving(home: Path, tmp_path: Path) -> None:
    table, images = synthetic.outcome_table(COUNT), synthetic.image_table(COUNT)
    outcomes = tmp_path / "outcomes.parquet"
    write_outcomes(outcomes, synthetic.outcome_rows(table), synthetic.SOURCE)
    vectors = dict(zip(images.images, images.values, strict=True))
    write_image_table(table_beside(outcomes), vectors)
    arguments = ("--no-records", "--outcomes", str(outcomes), "--dry-run")
    status, told = run(*ONES, *arguments)
    assert (status, told["promoted"], told["reasons"]) == (0, False, [])
    plain = CliRunner().invoke(app, ["retrain", *ONES, *arguments], catch_exceptions=False)
    assert "candidate:" in plain.stdout
    assert "It does not serve yet" in plain.stdout


def test_nothing_to_learn_from_is_told(home: Path) -> None:
    for arguments in ([], ["--no-records"]):
        with pytest.raises(OutcomesError):
            CliRunner().invoke(app, ["retrain", *arguments], catch_exceptions=False)


def test_of_correctness_there_are_labels_only_where_somebody_said_what_is_right(home: Path) -> None:
    store = RecordStore(str(home / "records"))
    store.append(LABELS, decode([label(row) for row in range(9)])[0])
    with pytest.raises(OutcomesError, match="of correctness"):
        CliRunner().invoke(app, ["retrain", "--target", "correctness"], catch_exceptions=False)
    assert CliRunner().invoke(app, ["retrain", "--target", "luck"]).exit_code == 2


def test_windows() -> None:
    week, twelve = since_of("7d"), since_of("12h")
    assert week is not None
    assert twelve is not None
    assert 6.4 < (twelve - week).total_seconds() / 86_400 < 6.6
    assert since_of(None) is None
    with pytest.raises(typer.BadParameter):
        since_of("soon")
