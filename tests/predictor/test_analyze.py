"""The analysis against a table that was worked out on paper, and tables at the edge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predictor.analysis import Provenance, as_json
from predictor.analyze import analyze
from predictor.errors import OutcomesError
from predictor.null_table import null_table_beside, read_null_table
from predictor.records import Outcome, OutcomeTable, read_outcomes, write_outcomes
from tests.predictor import handmade, synthetic

PROVENANCE = Provenance("hand.parquet", "0" * 64, None, "m3-router analyze", {}, "2025-01-01")
T = {1: 12.706205, 2: 4.302653, 3: 3.182446}  # 97.5% quantiles of Student's t by degrees of freedom


def share(value: float, effective: float, images: int) -> dict[str, float]:
    """The Wilson interval of so many effective samples, from its definition.

    The bounds are the p that satisfy (value − p)² = t² p (1 − p) / effective.
    """
    pull = T[images - 1] ** 2 / effective
    low, high = sorted(np.roots([1 + pull, -2 * value - pull, value**2]).real)
    return {"value": value, "low": low, "high": min(high, 1.0)}


def difference(value: float, error: float, images: int) -> dict[str, float]:
    reach = T[images - 1] * error
    return {"value": value, "low": max(value - reach, -1), "high": min(value + reach, 1)}


def unknown(value: float) -> dict[str, float | None]:
    return {"value": value, "low": None, "high": None}


def gap(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    value = one["value"] - other["value"]
    below = (one["value"] - one["low"]) ** 2 + (other["high"] - other["value"]) ** 2
    above = (one["high"] - one["value"]) ** 2 + (other["value"] - other["low"]) ** 2
    return {"value": value, "low": value - below**0.5, "high": value + above**0.5}


def same(found: Any, expected: Any, path: str = "analysis") -> None:
    """Equal keys, lengths and texts; numbers to six digits."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), path
        for key, value in expected.items():
            same(found[key], value, f"{path}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for at, value in enumerate(expected):
            same(found[at], value, f"{path}[{at}]")
    elif isinstance(expected, float | int) and not isinstance(expected, bool):
        assert found == pytest.approx(expected, abs=1e-6), path
    else:
        assert found == expected, path


# In all that follows, k right of n give p = k/n; the variance of p is C/(C−1) · Σr²/n² with r the
# residual of each of C pictures, its number right − p · its samples; and p(1−p) over the variance
# is the effective number of samples.

OVERALL = {
    "samples": 8,
    "images": 4,
    "scales": [
        {
            "scale": 1,
            "tokens": 10 / 8,  # a1 and a2 take 2, six take 1
            # a b c d: 1 1 1 0 of 2 each; r = ¼ ¼ ¼ −¾, Σr² = ¾; 4/3 · ¾/64 = 1/64; (15/64)·64 = 15,
            # at most the 8 samples
            "accuracy": share(3 / 8, 8, 4),
            "score": 3.3 / 8,  # three right, and 0.3 for c1
            # a2 b2 c1 d1, one per picture: no residual; at most 8
            "agreement": share(4 / 8, 8, 4),
        },
        {
            "scale": 4,
            "tokens": 40 / 8,
            # 2 0 1 1; r = 1 −1 0 0, Σr² = 2; 4/3 · 2/64 = 1/24; ¼ · 24 = 6
            "accuracy": share(4 / 8, 6, 4),
            "score": 3.6 / 8,
            # a1 a2; r = 1½ −½ −½ −½, Σr² = 3; 4/3 · 3/64 = 1/16; 3/16 · 16 = 3
            "agreement": share(2 / 8, 3, 4),
        },
        {
            "scale": 16,
            "tokens": 160 / 8,
            # 2 2 0 1; r = ¾ ¾ −5/4 −¼, Σr² = 11/4; 4/3 · 11/4 / 64 = 11/192; 15/64 · 192/11 = 45/11
            "accuracy": share(5 / 8, 45 / 11, 4),
            "score": 5 / 8,
            "agreement": unknown(1),  # by definition
        },
    ],
    "steps": [
        {
            "coarser": 1,
            "finer": 4,
            # a1 +1, b2 −1, d1 +1: 1 −1 0 1 around ¼; r = ¾ −5/4 −¼ ¾, Σr² = 11/4
            "difference": difference(1 / 8, (4 / 3 * 11 / 4) ** 0.5 / 8, 4),
            "falls": False,
        },
        {
            "coarser": 4,
            "finer": 16,
            # b1 b2 d2 +1, c2 d1 −1: 0 2 −1 0 around ¼; r = −¼ 7/4 −5/4 −¼, Σr² = 19/4
            "difference": difference(1 / 8, (4 / 3 * 19 / 4) ** 0.5 / 8, 4),
            "falls": False,
        },
    ],
    # Smallest sufficient: a1 4, a2 1, b1 16, b2 1, c1 none, c2 1, d1 4, d2 16
    "oracle": {
        # 2 2 1 2 of 2; r = ¼ ¼ −¾ ¼, Σr² = ¾; 4/3 · ¾/64 = 1/64; 7/64 · 64 = 7
        "accuracy": share(7 / 8, 7, 4),
        "tokens": (8 + 2 + 16 + 1 + 1 + 4 + 16) / 7,
        "tokens_charged": (48 + 16) / 8,
        "scale": (4 + 1 + 16 + 1 + 1 + 4 + 16) / 7,
        "scale_charged": (43 + 16) / 8,
        "smallest": [3 / 7, 2 / 7, 2 / 7],
        "dominant": None,
    },
    # Right from there on: a1 4, a2 1, b1 16, b2 16, c1 none, c2 none, d1 none, d2 16
    "stable_oracle": {
        "accuracy": share(5 / 8, 45 / 11, 4),  # those right at the finest
        "tokens": (8 + 2 + 16 + 16 + 16) / 5,
        "tokens_charged": (58 + 3 * 16) / 8,
        "scale": (4 + 1 + 16 + 16 + 16) / 5,
        "scale_charged": (53 + 3 * 16) / 8,
        "smallest": [1 / 5, 1 / 5, 3 / 5],
        "dominant": None,  # 60% is not more than 60%
    },
    "unsolved": 1 / 8,
    "hull": {"tokens": [1.25, 5, 20], "accuracy": [3 / 8, 4 / 8, 5 / 8]},
    # Everybody pays the coarsest, 1.25 on average; then d1 +3, a1 +6, b1 and d2 +15
    "oracle_curve": {
        "tokens": [1.25, 1.25 + 3 / 8, 1.25 + 9 / 8, 1.25 + 39 / 8],
        "accuracy": [3 / 8, 4 / 8, 5 / 8, 7 / 8],
    },
    # a2 is right from the start; a1 +6, b1 b2 d2 +15
    "stable_curve": {
        "tokens": [1.25, 1.25 + 6 / 8, 1.25 + 51 / 8],
        "accuracy": [1 / 8, 2 / 8, 5 / 8],
    },
}

# One sample per picture: for k of 4, Σr² = 4 p(1−p), the variance p(1−p)/3 and 3 effective samples.
READ = {
    "samples": 4,
    "images": 4,
    "scales": [
        {
            "scale": 1,
            "tokens": 5 / 4,
            "accuracy": share(0, 4, 4),  # all wrong: as many as there are pictures
            "score": 0.3 / 4,
            "agreement": share(2 / 4, 3, 4),  # c1 d1
        },
        {
            "scale": 4,
            "tokens": 20 / 4,
            "accuracy": share(2 / 4, 3, 4),  # a1 d1
            "score": 1.6 / 4,
            "agreement": share(1 / 4, 3, 4),  # a1
        },
        {
            "scale": 16,
            "tokens": 80 / 4,
            "accuracy": share(2 / 4, 3, 4),  # a1 b1
            "score": 2 / 4,
            "agreement": unknown(1),
        },
    ],
    "steps": [
        {
            "coarser": 1,
            "finer": 4,
            "difference": difference(1 / 2, (4 / 3 * 1) ** 0.5 / 4, 4),  # 1 0 0 1: r = ±½
            "falls": False,
        },
        {
            "coarser": 4,
            "finer": 16,
            "difference": difference(0, (4 / 3 * 2) ** 0.5 / 4, 4),  # 0 1 0 −1
            "falls": False,
        },
    ],
    "oracle": {
        "accuracy": share(3 / 4, 3, 4),
        "tokens": (8 + 16 + 4) / 3,
        "tokens_charged": (28 + 16) / 4,
        "scale": (4 + 16 + 4) / 3,
        "scale_charged": (24 + 16) / 4,
        "smallest": [0, 2 / 3, 1 / 3],
        "dominant": 4,
    },
    "stable_oracle": {
        "accuracy": share(2 / 4, 3, 4),
        "tokens": (8 + 16) / 2,
        "tokens_charged": (24 + 2 * 16) / 4,
        "scale": (4 + 16) / 2,
        "scale_charged": (20 + 2 * 16) / 4,
        "smallest": [0, 1 / 2, 1 / 2],
        "dominant": None,
    },
    "unsolved": 1 / 4,
    "hull": {"tokens": [1.25, 5, 20], "accuracy": [0, 0.5, 0.5]},
    "oracle_curve": {
        "tokens": [1.25, 1.25 + 3 / 4, 1.25 + 9 / 4, 1.25 + 24 / 4],
        "accuracy": [0, 1 / 4, 2 / 4, 3 / 4],
    },
    "stable_curve": {
        "tokens": [1.25, 1.25 + 6 / 4, 1.25 + 21 / 4],
        "accuracy": [0, 1 / 4, 2 / 4],
    },
}

COUNT = {
    "samples": 4,
    "images": 4,
    "scales": [
        {
            "scale": 1,
            "tokens": 5 / 4,
            "accuracy": share(3 / 4, 3, 4),  # a2 b2 c2
            "score": 3 / 4,
            "agreement": share(2 / 4, 3, 4),  # a2 b2
        },
        {
            "scale": 4,
            "tokens": 20 / 4,
            "accuracy": share(2 / 4, 3, 4),  # a2 c2
            "score": 2 / 4,
            "agreement": share(1 / 4, 3, 4),  # a2
        },
        {
            "scale": 16,
            "tokens": 80 / 4,
            "accuracy": share(3 / 4, 3, 4),  # a2 b2 d2
            "score": 3 / 4,
            "agreement": unknown(1),
        },
    ],
    "steps": [
        {
            "coarser": 1,
            "finer": 4,
            # 0 −1 0 0 around −¼: Σr² = ¾, 4/3 · ¾ = 1
            "difference": difference(-1 / 4, 1 / 4, 4),
            "falls": True,
        },
        {
            "coarser": 4,
            "finer": 16,
            # 0 1 −1 1 around ¼: Σr² = 1/16 + 9/16 + 25/16 + 9/16 = 11/4
            "difference": difference(1 / 4, (4 / 3 * 11 / 4) ** 0.5 / 4, 4),
            "falls": False,
        },
    ],
    "oracle": {
        "accuracy": share(1, 4, 4),
        "tokens": (2 + 1 + 1 + 16) / 4,
        "tokens_charged": (2 + 1 + 1 + 16) / 4,
        "scale": (1 + 1 + 1 + 16) / 4,
        "scale_charged": (1 + 1 + 1 + 16) / 4,
        "smallest": [3 / 4, 0, 1 / 4],
        "dominant": 1,
    },
    "stable_oracle": {
        "accuracy": share(3 / 4, 3, 4),
        "tokens": (2 + 16 + 16) / 3,
        "tokens_charged": (34 + 16) / 4,
        "scale": (1 + 16 + 16) / 3,
        "scale_charged": (33 + 16) / 4,
        "smallest": [1 / 3, 0, 2 / 3],
        "dominant": 16,
    },
    "unsolved": 0,
    "hull": {"tokens": [1.25, 20], "accuracy": [3 / 4, 3 / 4]},  # 4 is below the line
    "oracle_curve": {"tokens": [1.25, 1.25 + 15 / 4], "accuracy": [3 / 4, 1]},  # d2
    "stable_curve": {"tokens": [1.25, 1.25 + 30 / 4], "accuracy": [1 / 4, 3 / 4]},  # b2 d2
}

# Seen are b1 b2 c1 c2 (the split `test`), shifted e1 e2 f1.
SEEN = {
    1: share(2 / 4, 4, 2),  # b2 c2: no residual, at most 4
    4: share(1 / 4, 3, 2),  # c2; r = ∓½, Σr² = ½; 2 · ½/16 = 1/16; 3/16 · 16
    16: share(2 / 4, 1, 2),  # b1 b2; r = ±1, Σr² = 2; 2 · 2/16 = ¼; ¼ · 4
}
SHIFTED = {
    1: share(1 / 3, 3, 2),  # e2; r = ±⅓, Σr² = 2/9; 2 · 2/9 / 9 = 4/81; 2/9 · 81/4 = 4½, at most 3
    4: share(2 / 3, 3, 2),  # e2 f1; r = ∓⅓ likewise
    16: share(3 / 3, 2, 2),
}
SHIFT = {
    "against": ["test"],
    "seen_images": 2,
    "shifted_images": 2,
    "scales": {
        str(scale): {
            "seen_samples": 4,
            "shifted_samples": 3,
            "seen": SEEN[scale],
            "shifted": SHIFTED[scale],
            "gap": gap(SEEN[scale], SHIFTED[scale]),
        }
        for scale in (1, 4, 16)
    },
    "groups": {
        "count": {  # b2 c2 against e2, whose one picture has no interval
            "seen_samples": 2,
            "shifted_samples": 1,
            "seen": share(1 / 2, 1, 2),  # r = ±½, Σr² = ½; 2 · ½/4 = ¼; ¼ · 4
            "shifted": unknown(1),
            "gap": unknown(-1 / 2),
        },
        "read": {  # b1 c1 against e1 f1
            "seen_samples": 2,
            "shifted_samples": 2,
            "seen": share(1 / 2, 1, 2),
            "shifted": share(1, 2, 2),
            "gap": gap(share(1 / 2, 1, 2), share(1, 2, 2)),
        },
    },
}

# Right runs of three: a1 2, b1 0, b2 1, c2 3; all four are right at some scale.
NULL = {
    "scale": 4,
    "runs": 3,
    "compared": 3,
    "missing": 4,
    # Of two runs, one at least: a1 1, b1 0, b2 2 of 3 pairs, c2 1
    "any_of_runs": [6 / 12, (1 + 0 + 2 / 3 + 1) / 4, 3 / 4],
    "overall": {
        "samples": 4,
        "images": 3,
        # a ⅔ of 1, b ⅓ of 2, c 1 of 1, around ½; r = 1/6 −4/6 3/6, Σr² = 26/36;
        # 3/2 · 26/36 / 16 = 13/192; ¼ · 192/13 = 48/13
        "single_run": share(1 / 2, 48 / 13, 3),
        # 1 of 1, 1 of 2, 1 of 1; r = ¼ −½ ¼, Σr² = 3/8; 3/2 · 3/8 / 16 = 9/256; 16/3, at most 4
        "any_run": share(3 / 4, 4, 3),
        "any_scale": share(1, 3, 3),
        # b1 alone; a 0, b 1, c 0 around ¼ each: Σr² = 3/8
        "beyond_luck": difference(1 / 4, (3 / 2 * 3 / 8) ** 0.5 / 4, 3),
    },
    "groups": {
        "count": {  # b2 ⅓, c2 1
            "samples": 2,
            "images": 2,
            "single_run": share(2 / 3, 2, 2),  # r = ±⅓; 2 · 2/9 / 4 = 1/9; 2/9 · 9
            "any_run": share(1, 2, 2),
            "any_scale": share(1, 2, 2),
            "beyond_luck": unknown(0),
        },
        "read": {  # a1 ⅔, b1 0
            "samples": 2,
            "images": 2,
            "single_run": share(1 / 3, 2, 2),
            "any_run": share(1 / 2, 1, 2),
            "any_scale": share(1, 2, 2),
            "beyond_luck": difference(1 / 2, 1 / 2, 2),
        },
    },
}

# 34 weights and 10 more of the head: 88 n + 8 n² operations for n tokens, 10 of text among them.
# Two samples of picture a take 12, 18, 42 tokens, six take 11, 14, 26. 8 bytes per token.
COSTS = {
    "shape_of": "by hand",
    "text_tokens": 10,
    "scales": [
        {
            "scale": 1,
            "tokens": 1.25,
            "prefill_flops": (2 * 2208 + 6 * 1936) / 8,
            "kv_bytes": 8 * 11.25,
            "ms": 5,
        },
        {
            "scale": 4,
            "tokens": 5,
            "prefill_flops": (2 * 4176 + 6 * 2800) / 8,
            "kv_bytes": 8 * 15,
            "ms": 6,
        },
        {
            "scale": 16,
            "tokens": 20,
            "prefill_flops": (2 * 17808 + 6 * 7696) / 8,
            "kv_bytes": 8 * 30,
            "ms": 10,
        },
    ],
    "fit": {"base_ms": 14 / 3, "token_ms": 4 / 15, "error": 0},  # 1 ms per 3.75, 4 ms per 15 tokens
}

EXPECTED = {
    "provenance": {
        "outcomes": "hand.parquet",
        "content_hash": "0" * 64,
        "null": None,
        "command": "m3-router analyze",
        "versions": {},
        "at": "2025-01-01",
    },
    "source": {
        "model": "by-hand",
        "model_identity": "1" * 64,
        "processor": "2" * 64,
        "scales": [1, 4, 16],
        "grid_side": 4,
    },
    "target": "correctness",
    "splits": ["train", "calibrate", "test"],
    "failed": 1,
    "unlabelled": 0,
    "overall": OVERALL,
    "groups": {"count": COUNT, "read": READ},
    "varied_groups": 0,
    "falls": [
        {"group": "count", "coarser": 1, "finer": 4, "difference": difference(-1 / 4, 1 / 4, 4)}
    ],
    "shift": SHIFT,
    "null": NULL,
    "costs": COSTS,
    "notes": [],
}


@pytest.fixture
def table(tmp_path: Path) -> OutcomeTable:
    return read_outcomes(handmade.write(tmp_path / "hand.parquet"))


def test_every_number_of_a_table_worked_out_by_hand(tmp_path: Path) -> None:
    path = handmade.write(tmp_path / "hand.parquet")
    found = analyze(
        read_outcomes(path),
        null=read_null_table(null_table_beside(path)),
        shape=handmade.SHAPE,
        shape_of="by hand",
        text_tokens=10,
    )
    same(json.loads(json.dumps(as_json(found, PROVENANCE), allow_nan=False)), EXPECTED)


def analysed(rows: list[Outcome], tmp_path: Path, **options: Any) -> Any:
    """The JSON of an analysis of these rows."""
    path = tmp_path / "rows.parquet"
    write_outcomes(path, rows, handmade.SOURCE)
    analysis = analyze(read_outcomes(path), **options)
    return json.loads(json.dumps(as_json(analysis, PROVENANCE), allow_nan=False))


def rows_of(*samples: str) -> list[Outcome]:
    return [row for row in handmade.outcomes() if row.sample in samples]


def test_one_sample(tmp_path: Path) -> None:
    found = analysed(rows_of("a1"), tmp_path)
    part = found["overall"]
    assert [each["accuracy"] for each in part["scales"]] == [unknown(0), unknown(1), unknown(1)]
    assert part["oracle"]["tokens"] == 8 and part["oracle"]["dominant"] == 4
    assert found["groups"] == {"read": part}
    assert found["shift"] is None


def test_one_picture_has_no_intervals(tmp_path: Path) -> None:
    part = analysed(rows_of("a1", "a2"), tmp_path)["overall"]
    assert part["images"] == 1
    assert part["scales"][0]["accuracy"] == unknown(0.5)
    assert part["steps"][0]["difference"] == unknown(0.5)


def test_all_wrong(tmp_path: Path) -> None:
    part = analysed(rows_of("c1"), tmp_path)["overall"]
    assert part["unsolved"] == 1
    for oracle in (part["oracle"], part["stable_oracle"]):
        assert oracle["tokens"] is None and oracle["scale"] is None
        assert oracle["smallest"] is None and oracle["dominant"] is None
        assert oracle["tokens_charged"] == 16
    assert part["oracle_curve"] == {"tokens": [1], "accuracy": [0]}


def test_all_right(tmp_path: Path) -> None:
    part = analysed(rows_of("a2"), tmp_path)["overall"]
    assert part["unsolved"] == 0
    assert part["oracle"] == part["stable_oracle"]
    assert part["oracle"]["smallest"] == [1, 0, 0] and part["oracle"]["dominant"] == 1


def test_without_ground_truth_agreement_is_analysed_and_said(tmp_path: Path) -> None:
    rows = handmade.outcomes(ground_truth=False)
    found = analysed(rows, tmp_path)
    assert found["target"] == "agreement"
    assert any("No sample has ground truth" in note for note in found["notes"])
    # a2 b2 c1 d1 agree at 1, a1 a2 at 4
    accuracies = [each["accuracy"]["value"] for each in found["overall"]["scales"]]
    assert accuracies == [4 / 8, 2 / 8, 1]
    assert found["overall"]["scales"][0]["score"] is None
    with pytest.raises(OutcomesError, match="No sample has correctness"):
        analysed(rows, tmp_path, target="correctness")


def test_samples_without_ground_truth_among_others_are_left_out_and_counted(tmp_path: Path) -> None:
    unlabelled = [row for row in handmade.outcomes(ground_truth=False) if row.sample == "b1"]
    found = analysed(rows_of("a1", "a2") + unlabelled, tmp_path)
    assert (found["target"], found["unlabelled"], found["overall"]["samples"]) == (
        "correctness",
        1,
        2,
    )
    assert any("correctness is not known: 1" in note for note in found["notes"])


def test_the_target_can_be_chosen(table: OutcomeTable, tmp_path: Path) -> None:
    null = read_null_table(null_table_beside(handmade.write(tmp_path / "hand.parquet")))
    found = analyze(table, target="agreement", null=null)
    assert found.overall.scales[1].accuracy.value == 2 / 8
    assert found.null is None and any("noise null" in note for note in found.notes)


def test_splits_can_be_chosen(table: OutcomeTable) -> None:
    test = analyze(table, splits=["test"])
    assert (test.splits, test.overall.samples) == (("test",), 4)
    shifted = analyze(table, splits=["shifted"])
    assert (shifted.overall.samples, shifted.shift) == (3, analyze(table).shift)
    with pytest.raises(OutcomesError, match="threshold"):
        analyze(table, splits=["threshold"])


def test_without_a_test_split_shifted_is_compared_with_the_rest(tmp_path: Path) -> None:
    found = analysed(rows_of("a1", "a2", "d1", "e1"), tmp_path)["shift"]
    assert found["against"] == ["train", "calibrate"]
    assert found["scales"]["16"]["seen_samples"] == 3
    assert found["scales"]["16"]["gap"]["value"] == pytest.approx(2 / 3 - 1)


def test_only_failed_rows_are_refused_with_their_number(tmp_path: Path) -> None:
    with pytest.raises(OutcomesError, match="1 failed"):
        analysed(rows_of("g1"), tmp_path)


def test_what_needs_a_shape_is_left_out_without_one(table: OutcomeTable) -> None:
    found = analyze(table)
    assert found.costs.scales[0].prefill_flops is None and found.costs.scales[0].kv_bytes is None
    assert found.costs.scales[0].ms == 5
    assert any("shape" in note for note in found.notes)


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    forth = analysed(handmade.outcomes(), tmp_path)
    assert analysed(handmade.outcomes()[::-1], tmp_path) == forth


def test_curves_agree_with_the_figures() -> None:
    """On a table nobody worked out: ends of curves, order of oracles, groups that add up."""
    found = analyze(synthetic.outcome_table(200))
    part = found.overall
    assert part.oracle_curve.accuracy[-1] == pytest.approx(part.oracle.accuracy.value)
    assert part.stable_curve.accuracy[-1] == pytest.approx(part.scales[-1].accuracy.value)
    assert part.oracle.accuracy.value >= max(each.accuracy.value for each in part.scales)
    weighted = sum(group.oracle.tokens_charged * group.samples for group in found.groups.values())
    assert weighted / part.samples == pytest.approx(part.oracle.tokens_charged)
