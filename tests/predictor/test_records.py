from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3_backend.scales import ScaleLadder
from predictor.errors import OutcomesError
from predictor.records import (
    Outcome,
    OutcomeSource,
    Split,
    assign_split,
    read_outcomes,
    write_outcomes,
)

SOURCE = OutcomeSource("tiny", "a" * 64, "b" * 64, ScaleLadder((1, 36, 576)))


def rows(
    sample: str, image: str = "p", split: Split = "test", correct: float | None = 1.0
) -> list[Outcome]:
    return [
        Outcome(sample, image, "read", split, "What?", scale, "x", correct, 1.0, -0.5, scale, 3.0)
        for scale in (1, 36, 576)
    ]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    first, second = rows("s1"), rows("s2", "q", "train", None)
    first[0] = replace(first[0], correct=0.25, agrees=0.5, ms=7.5)
    write_outcomes(tmp_path / "o.parquet", [*second, *first], SOURCE)

    table = read_outcomes(tmp_path / "o.parquet")

    assert table.source == SOURCE
    assert table.sample.tolist() == ["s1", "s2"]
    assert table.split.tolist() == ["test", "train"]
    assert table.correct[0].tolist() == [0.25, 1.0, 1.0]
    assert np.isnan(table.correct[1]).all()
    assert table.agrees[0].tolist() == [0.5, 1.0, 1.0]
    assert table.image_tokens[1].tolist() == [1, 36, 576]
    assert table.ms[0].tolist() == [7.5, 3.0, 3.0]
    assert table.failed == 0


def test_a_failed_scale_is_not_a_wrong_answer(tmp_path: Path) -> None:
    broken, missing = rows("broken"), rows("missing")[:2]
    broken[1] = replace(broken[1], correct=None, agrees=None, error="the image did not decode")
    write_outcomes(tmp_path / "o.parquet", [*broken, *missing, *rows("whole")], SOURCE)

    table = read_outcomes(tmp_path / "o.parquet")

    assert table.sample.tolist() == ["whole"]
    assert table.failed == 2


def test_success_by_target(tmp_path: Path) -> None:
    graded = [
        replace(row, correct=correct, agrees=agrees)
        for row, correct, agrees in zip(rows("s"), (0.49, 0.5, 1.0), (0.89, 0.9, 1.0), strict=True)
    ]
    write_outcomes(tmp_path / "o.parquet", graded, SOURCE)
    table = read_outcomes(tmp_path / "o.parquet")

    assert table.success("correctness").tolist() == [[False, True, True]]
    # 0.9 must come back from disk as 0.9, not as its neighbour in a narrower type
    assert table.success("agreement").tolist() == [[False, True, True]]


def test_success_without_ground_truth_is_refused(tmp_path: Path) -> None:
    write_outcomes(tmp_path / "o.parquet", rows("s", correct=None), SOURCE)
    with pytest.raises(OutcomesError, match="no correctness"):
        read_outcomes(tmp_path / "o.parquet").success("correctness")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (rows("s") + rows("s")[:1], "has a scale twice"),
        ([*rows("s")[:2], replace(rows("s")[2], question="Why?")], "disagree about their question"),
        (rows("s") + rows("t", split="train"), "more than one split"),
        ([replace(rows("s")[0], scale=9)], "not on its own ladder"),
    ],
)
def test_tables_that_lie_are_refused(tmp_path: Path, bad: list[Outcome], message: str) -> None:
    write_outcomes(tmp_path / "o.parquet", bad, SOURCE)
    with pytest.raises(OutcomesError, match=message):
        read_outcomes(tmp_path / "o.parquet")


def test_files_that_are_no_outcomes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(OutcomesError, match="cannot be read as Parquet"):
        read_outcomes(tmp_path / "text.parquet")
    pq.write_table(pa.table({"sample": ["s"]}), tmp_path / "other.parquet")
    with pytest.raises(OutcomesError, match="not an outcomes table"):
        read_outcomes(tmp_path / "other.parquet")
    with pytest.raises(OutcomesError, match="cannot be read"):
        read_outcomes(tmp_path / "absent.parquet")


def test_a_row_out_of_range_is_refused() -> None:
    with pytest.raises(OutcomesError, match=r"correct is 1\.5"):
        replace(rows("s")[0], correct=1.5)
    with pytest.raises(OutcomesError, match="agrees is nan"):
        replace(rows("s")[0], agrees=float("nan"))
    with pytest.raises(OutcomesError, match="split 'dev'"):
        replace(rows("s")[0], split="dev")  # type: ignore[arg-type]


def test_splits_follow_from_the_name_alone() -> None:
    splits = [assign_split(f"image-{number}") for number in range(4000)]
    assert splits[:50] == [assign_split(f"image-{number}") for number in range(50)]
    shares = {split: count / 4000 for split, count in Counter(splits).items()}
    assert shares == pytest.approx(
        {"train": 0.5, "calibrate": 0.15, "threshold": 0.15, "test": 0.2}, abs=0.03
    )
    assert splits != [assign_split(f"image-{number}", seed=1) for number in range(4000)]


def test_the_content_hash_ignores_order_and_sees_labels(tmp_path: Path) -> None:
    def hash_of(outcomes: list[Outcome]) -> str:
        write_outcomes(tmp_path / "o.parquet", outcomes, SOURCE)
        return read_outcomes(tmp_path / "o.parquet").content_hash()

    both = [*rows("s"), *rows("t")]
    assert hash_of(both) == hash_of(both[::-1])
    assert hash_of(both) != hash_of([*rows("s"), *rows("t", correct=0.0)])
