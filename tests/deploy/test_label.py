"""`label` as a command, on a data set of the user's own and a model of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from deploy.cli import app
from deploy.label import FormatName, MetricName
from predictor.datasets import FORMATS
from predictor.metrics import METRICS
from predictor.null_table import null_table_beside, read_null_table
from predictor.records import read_outcomes
from tests.m3_backend.support import LLAVA15, write_llava_hf, write_tokenizer

GOOD = {"image": "a.png", "question": "What is it?", "answer": "red", "sample": "good"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_llava_hf(LLAVA15, folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of pictures; `ask` writes the questions."""
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (20, 16), colour).save(tmp_path / name)
    return tmp_path


def ask(folder: Path, *lines: dict[str, Any] | str) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path = folder / "mine.jsonl"
    path.write_text("\n".join(texts))
    return path


def run(*arguments: str | Path) -> Result:
    environment = {"NO_COLOR": "1", "COLUMNS": "120"}
    return CliRunner(env=environment).invoke(app, ["label", *map(str, arguments)])


def test_names_are_those_of_the_predictor() -> None:
    assert set(FormatName) == set(FORMATS)
    assert tuple(MetricName) == METRICS


@pytest.mark.parametrize("options", [(), ("--data", __file__, "--worlds", "2")])
def test_it_wants_one_source_of_questions(options: tuple[str, ...], tmp_path: Path) -> None:
    refused = run(tmp_path / "out.parquet", *options)
    assert refused.exit_code == 2
    assert "either --data or --worlds" in refused.output


def test_broken_rows_fail_the_run_and_are_listed(data: Path) -> None:
    questions = ask(data, GOOD, "{", GOOD | {"image": "c", "sample": "lost"}, *["[]"] * 30)
    failed = run(data / "out.parquet", "--data", questions)
    assert failed.exit_code == 1
    assert f"{questions}, line 2: not JSON.\n" in failed.stderr
    assert f"{questions}, line 20: not a JSON object.\n" in failed.stderr
    assert failed.stderr.count("not a JSON object") == 19
    assert "32 broken rows (12 more not listed); nothing was labelled" in failed.stderr
    assert sorted(path.name for path in data.iterdir()) == ["a.png", "b.png", "mine.jsonl"]

    unseen = run(data / "out.parquet", "--data", ask(data, GOOD | {"image": "c"}))
    assert unseen.exit_code == 1
    assert f"{questions}, line 1: the picture {data / 'c'} is not there" in unseen.stderr


def test_broken_rows_are_skipped_and_reported(data: Path, model: Path) -> None:
    (data / "b.png").write_bytes(b"\x89PNG nothing")
    questions = ask(
        data, GOOD, "{", GOOD | {"image": "b.png", "sample": "cut"}, GOOD | {"metric": "bleu"}
    )
    out = data / "runs" / "out.parquet"
    options = ("--on-error", "skip", "--checkpoint", model, "--max-tokens", "2")
    done = run(out, "--data", questions, *options)
    assert done.exit_code == 0, done.output
    assert f"skipped: {questions}, line 2: not JSON.\n" in done.stderr
    assert f"skipped: {questions}, line 4: metric 'bleu'" in done.stderr
    assert f"failed: {questions}, line 3: {data / 'b.png'}: The image cannot be" in done.stderr
    assert "2 records skipped, 1 rows recorded as failed" in done.stderr
    table = read_outcomes(out)
    assert (table.sample.tolist(), table.failed) == (["good"], 1)


def test_a_csv_with_everything_else_that_can_be_asked_for(data: Path, model: Path) -> None:
    (data / "twin.png").write_bytes((data / "a.png").read_bytes())
    questions = data / "mine.csv"
    questions.write_text(
        "image,question,answers,split,metric\n"
        "pictures/a,What?,red|rouge,train,\n"
        "pictures/b.png,What?,blue,test,exact\n"
        "pictures/twin.png,What?,red,test,\n"
    )
    (data / "set").mkdir()
    (data / "set" / "pictures").symlink_to(data)
    out = data / "out.parquet"
    done = run(
        *(out, "--data", questions, "--images", data / "set", "--metric", "anls"),
        *("--instruction", "One word.", "--checkpoint", model, "--max-tokens", "2"),
        *("--null-scale", "9", "--null-runs", "3"),
    )
    assert done.exit_code == 0, done.output
    assert (
        f"{questions}: 3 questions about 3 pictures, read as csv; metrics: anls 2, exact 1; "
        "splits: test 2, train 1\n"
    ) in done.stderr
    assert "warning: one picture under several names" in done.stderr
    assert f"{out}: 12 questions answered" in done.stdout  # three, and three times three
    rows = pq.read_table(out).to_pylist()
    assert {row["question"] for row in rows} == {"What?\nOne word."}
    assert {row["image"]: row["metric"] for row in rows} == {
        "pictures/a.png": "anls",
        "pictures/b.png": "exact",
        "pictures/twin.png": "anls",
    }
    assert read_null_table(null_table_beside(out)).correct.shape == (3, 3)
