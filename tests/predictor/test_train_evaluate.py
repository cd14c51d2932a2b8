from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from m3_backend.costs import ModelShape
from predictor.errors import ArtifactError, OutcomesError
from predictor.evaluate import evaluate
from predictor.evaluation_report import render
from predictor.image_table import (
    ImageTable,
    compute_image_table,
    read_image_table,
    table_beside,
    write_image_table,
)
from predictor.null_table import NullTable
from predictor.predictor import Predictor
from predictor.records import OutcomeTable, read_outcomes, write_outcomes
from predictor.train import train
from tests.predictor.synthetic import (
    LADDER,
    SOURCE,
    draw,
    encoded,
    outcome_rows,
)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, outcomes: OutcomeTable, images: ImageTable
) -> Path:
    """Outcomes on disk, a tenth of the test pictures marked as shifted, and an artefact of each."""
    path = tmp_path_factory.mktemp("trained")
    split = outcomes.split.copy()
    is_shifted = np.isin(outcomes.image, np.unique(outcomes.image[split == "test"])[::10])
    split[is_shifted] = "shifted"
    rows = outcome_rows(replace(outcomes, split=split))
    write_outcomes(path / "outcomes.parquet", rows, SOURCE)
    vectors = dict(zip(images.images, images.values, strict=True))
    write_image_table(table_beside(path / "outcomes.parquet"), vectors)
    for target in ("agreement", "correctness"):
        train(
            path / "outcomes.parquet",
            table_beside(path / "outcomes.parquet"),
            path / target,
            target=target,
            clock=lambda: datetime(2026, 1, 1, tzinfo=UTC),
        )
    return path


@cache
def judged(folder: Path, target: str) -> dict[str, dict]:
    outcomes = folder / "outcomes.parquet"
    return evaluate(
        folder / target,
        outcomes,
        table_beside(outcomes),
        folder / f"{target}-report",
        null=lucky(read_outcomes(outcomes).part("test")),
        shape=ModelShape(2, 64, 128, 4, 4, 16, 256),
    )


def lucky(part: OutcomeTable) -> NullTable:
    """Five runs at 36 tokens, each right with the chance of one run of these outcomes."""
    rng = np.random.default_rng(0)
    chance = part.correct[:, 2].mean()
    correct = (rng.random((len(part), 5)) < chance).astype(np.float64)
    return NullTable(SOURCE, 36, part.sample, part.image, part.group, part.split, correct)


def test_the_artefact_can_be_served(folder: Path) -> None:
    predictor = Predictor.load(folder / "agreement")
    manifest = json.loads((folder / "agreement" / "manifest.json").read_text())
    assert predictor.target == "agreement"
    assert manifest["sha256"].startswith(predictor.version)
    assert manifest["created"] == "2026-01-01T00:00:00+00:00"
    assert (
        manifest["content"]["outcomes"] == read_outcomes(folder / "outcomes.parquet").content_hash()
    )
    assert manifest["content"]["metrics"]["calibration_error"] < 0.1


@pytest.mark.parametrize("target", ["agreement", "correctness"])
def test_routing_beats_fixed_scales_and_the_family_lookup(folder: Path, target: str) -> None:
    part = judged(folder, target)["parts"]["test"]
    assert part["gap_closed"]["router"]["mean"] > 0.3
    assert part["gap_closed"]["router"]["mean"] > part["gap_closed"]["family_lookup"]["mean"] + 0.1
    point = next(point for point in part["operating_points"] if point["max_regret"] == 0.2)
    assert point["tokens"] < 250
    assert point["accuracy"] > point["best_fixed_accuracy"] + 0.05
    assert point["accuracy"] > point["hull_accuracy"]


@pytest.mark.parametrize("target", ["agreement", "correctness"])
def test_regret_stays_within_its_bounds(folder: Path, target: str) -> None:
    points = judged(folder, target)["parts"]["test"]["operating_points"]
    assert all(point["regret"] <= point["max_regret"] for point in points)
    uncertified = [point for point in points if point["price"] is None]
    assert uncertified
    for point in uncertified:
        assert point["regret"] == 0
        assert point["tokens"] == 576
        assert point["scale_shares"] == [0, 0, 0, 0, 1]


def test_anyone_can_recompute_accuracy_and_cost_from_the_choices(folder: Path) -> None:
    part = judged(folder, "correctness")["parts"]["test"]
    rows = pq.read_table(folder / "correctness-report" / "choices.parquet").to_pylist()
    test = read_outcomes(folder / "outcomes.parquet").part("test")
    right = test.success("correctness")
    row, column = (
        {name: at for at, name in enumerate(names)} for names in (test.sample, LADDER.scales)
    )
    for point in part["operating_points"]:
        ours = [
            (row[each["sample"]], column[each["scale"]])
            for each in rows
            if each["policy"] == "router" and each["max_regret"] == point["max_regret"]
        ]
        assert len(ours) == len(test)
        assert np.mean([right[at] for at in ours]) == pytest.approx(point["accuracy"])
        tokens = [test.image_tokens[at] for at in ours]
        assert np.mean(tokens) == pytest.approx(point["tokens"])
    assert {each["policy"] for each in rows} == set(part["policies"]) | {"oracle"} | {
        f"fixed_{scale}" for scale in LADDER.scales
    }


def test_what_is_missing_adds_up_to_the_gap(folder: Path) -> None:
    part = judged(folder, "correctness")["parts"]["test"]
    missing = part["missing"]
    assert missing["closed"] + missing["luck"] + missing["signal"] == pytest.approx(missing["gap"])
    assert missing["luck"] > missing["gap"]  # runs without anything in common are nothing but luck
    oracle, hull = (
        np.interp(300, part[curve]["tokens"], part[curve]["accuracy"])
        for curve in ("oracle", "hull")
    )
    assert missing["gap"] == pytest.approx(oracle - hull)
    assert judged(folder, "correctness")["parts"]["shifted"]["missing"] is None


def test_costs_in_every_unit(folder: Path) -> None:
    part = judged(folder, "correctness")["parts"]["test"]
    assert list(part["by_cost"]) == ["tokens", "flops", "ms"]
    flops = [row["flops"] for row in part["fixed"]]
    assert flops == sorted(flops)
    assert flops[-1] == pytest.approx(ModelShape(2, 64, 128, 4, 4, 16, 256).prefill_flops(606))
    assert [row["ms"] for row in part["fixed"]] == pytest.approx([5.0, 5.2, 6.0, 9.0, 20.0])


def test_the_report_is_on_disk(folder: Path) -> None:
    report = judged(folder, "agreement")
    out = folder / "agreement-report"
    assert json.loads((out / "evaluation.json").read_text()) == report
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "evaluation.html").read_text()
    assert report["predictor"] in page
    assert "http" not in page.replace("http-equiv", "")  # asks for nothing from elsewhere
    assert report["accuracy_is"] == "correctness"
    assert report["predictor"] == Predictor.load(folder / "agreement").version
    assert set(report["parts"]) == {"test", "shifted"}
    assert set(report["parts"]["test"]["groups"]) == {"read", "count", "ground"}
    fixed = report["parts"]["test"]["fixed"]
    assert [point["tokens"] for point in fixed] == [1, 9, 36, 144, 576]


def test_names_from_anybody_are_shown_as_they_are(folder: Path) -> None:
    report = deepcopy(judged(folder, "agreement"))
    part = report["parts"]["test"]
    part["groups"]["<script>"] = part["groups"].pop("read")
    report["model"] = "</title><b>"
    page = render(report)
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert page.count("</title>") == 1


def test_samples_without_ground_truth_are_left_out_and_counted(folder: Path) -> None:
    table = read_outcomes(folder / "outcomes.parquet").part("test")
    rows = outcome_rows(table)
    for at in range(0, 7 * len(LADDER.scales), len(LADDER.scales)):
        rows[at] = replace(rows[at], correct=None)
    write_outcomes(folder / "partly.parquet", rows, SOURCE)
    features = table_beside(folder / "outcomes.parquet")
    report = evaluate(
        folder / "correctness", folder / "partly.parquet", features, folder / "partly", seed=1
    )
    assert (report["accuracy_is"], report["unlabelled"]) == ("correctness", 7)
    part = report["parts"]["test"]
    assert part["samples"] == len(table) - 7
    assert part["fixed"][4]["accuracy"] == pytest.approx(table.success("correctness")[7:, 4].mean())
    bands = judged(folder, "correctness")["parts"]["test"]["gap_closed"]["router"]
    assert part["gap_closed"]["router"]["low"] != bands["low"]


def test_outcomes_of_another_model_are_refused(folder: Path, outcomes: OutcomeTable) -> None:
    other = replace(SOURCE, model_identity="3" * 64)
    few = outcomes.take(np.arange(3))
    write_outcomes(folder / "other.parquet", outcome_rows(few), other)
    with pytest.raises(OutcomesError, match="label again with one checkpoint"):
        evaluate(folder / "agreement", folder / "other.parquet", folder, folder / "report")


def test_too_few_pictures_are_refused(folder: Path, outcomes: OutcomeTable) -> None:
    few = outcomes.take(np.arange(90))
    write_outcomes(folder / "few.parquet", outcome_rows(few), SOURCE)
    table = table_beside(folder / "outcomes.parquet")
    with pytest.raises(OutcomesError, match="at least 20 are needed"):
        train(folder / "few.parquet", table, folder / "never")
    assert not (folder / "never").exists()


def test_a_folder_of_something_else_is_refused_before_training(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="not a predictor"):
        train(folder / "no-outcomes.parquet", folder / "no-features.parquet", folder)
    assert (folder / "outcomes.parquet").is_file()


def test_features_come_from_a_folder_of_pictures_or_a_table(tmp_path: Path) -> None:
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(encoded(draw(seed)[0]))
    seen: list[tuple[int, int]] = []
    table = compute_image_table(
        tmp_path, ["2.png", "0.png", "2.png"], workers=1, progress=lambda *step: seen.append(step)
    )
    assert table.images == ("0.png", "2.png")
    assert seen[-1] == (2, 2)
    write_image_table(tmp_path / "t.parquet", dict(zip(table.images, table.values, strict=True)))
    again = read_image_table(tmp_path / "t.parquet")
    assert again.images == table.images
    assert again.values.tolist() == table.values.tolist()
    assert again.rows(["2.png", "2.png"]).tolist() == table.values[[1, 1]].tolist()
    with pytest.raises(OutcomesError, match=r"such as '1\.png'"):
        again.rows(["0.png", "1.png"])


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(OutcomesError, match=r"bad\.png"):
        compute_image_table(tmp_path, ["bad.png"], workers=1)


def test_tables_of_another_feature_version_are_refused(folder: Path) -> None:
    with pytest.raises(OutcomesError, match="version none"):
        read_image_table(folder / "outcomes.parquet")
