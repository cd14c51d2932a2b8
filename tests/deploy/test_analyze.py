"""`m3-router analyze` as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import app
from predictor.null_table import null_table_beside
from tests.predictor import handmade


def run(*arguments: str | Path) -> Result:
    environment = {"NO_COLOR": "1", "COLUMNS": "120"}
    return CliRunner(env=environment).invoke(app, ["analyze", *map(str, arguments)])


@pytest.fixture
def outcomes(tmp_path: Path) -> Path:
    return handmade.write(tmp_path / "hand.parquet")


def test_tables_on_the_terminal_and_a_folder_beside(outcomes: Path) -> None:
    result = run(outcomes)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.output.split())
    assert "by-hand: 8 questions about 4 pictures, right by correctness" in shown
    assert "1 failed" in shown
    assert "stable oracle 62.5" in shown
    assert "count falls from 1 to 4: -25.0" in shown
    assert "beyond luck +25.0" in shown  # the noise null beside the table was found
    folder = outcomes.with_name("hand.analysis")
    assert str(folder / "report.html") in result.output.replace("\n", "")
    report = json.loads((folder / "analysis.json").read_text())
    assert report["provenance"]["null"] == "hand.null.parquet"
    assert report["provenance"]["command"] == f"m3-router analyze {outcomes}"
    assert report["costs"]["shape_of"] is None  # nobody knows a model of that name


def test_options_reach_the_analysis_and_are_told_in_the_report(
    outcomes: Path, tmp_path: Path
) -> None:
    null = null_table_beside(outcomes).rename(tmp_path / "elsewhere.parquet")
    options = ("--target", "agreement", "--split", "test", "--split", "train")
    result = run(
        *(outcomes, *options, "--null", null, "--shape", "llava-1.5-7b", "--text-tokens", "0"),
        *("--out", tmp_path / "out", "--json", tmp_path / "figures.json"),
    )
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert figures["target"] == "agreement" and figures["splits"] == ["train", "test"]
    assert figures["costs"]["shape_of"] == "llava-1.5-7b"
    assert figures["costs"]["scales"][0]["kv_bytes"] == pytest.approx(512 * 1024 * 8 / 6)
    for option in (*options, "--null", "--shape", "--text-tokens"):
        assert option in figures["provenance"]["command"].split()


def test_json_on_standard_output_is_all_there_is(outcomes: Path) -> None:
    result = run(outcomes, "--json", "-")
    assert json.loads(result.stdout)["overall"]["samples"] == 8


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--split", "nonsense"), 2),
        (("--shape", "nobody/nothing"), 1),
        (("--split", "threshold"), 1),
    ],
)
def test_wrong_options_are_refused(outcomes: Path, options: tuple[str, ...], status: int) -> None:
    result = run(outcomes, *options)
    assert result.exit_code == status
    assert not outcomes.with_name("hand.analysis").exists()
