from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from predictor.errors import OutcomesError
from predictor.null_table import (
    NullOutcome,
    null_table_beside,
    read_null_table,
    write_null_table,
)
from predictor.records import write_outcomes
from tests.predictor.synthetic import SOURCE, outcome_rows, outcome_table


def outcome(sample: str, run: int, correct: float | None) -> NullOutcome:
    return NullOutcome(sample, f"{sample}.png", "read", "test", run, "abc", correct)


def test_what_is_written_is_read_back_by_sample_and_run(tmp_path: Path) -> None:
    path = null_table_beside(tmp_path / "mine.parquet")
    assert path == tmp_path / "mine.null.parquet"
    write_null_table(
        path,
        [
            outcome("b", 1, 0.3),
            outcome("b", 0, 1.0),
            outcome("a", 0, 0.0),
            outcome("a", 1, 0.0),
            outcome("failed", 0, 1.0),
            outcome("failed", 1, None),
            outcome("cut short", 0, 1.0),
        ],
        SOURCE,
        144,
    )
    table = read_null_table(path)
    assert (table.source, table.scale, len(table)) == (SOURCE, 144, 2)
    assert table.sample.tolist() == ["a", "b"]
    assert table.image.tolist() == ["a.png", "b.png"]
    assert (set(table.group), set(table.split)) == ({"read"}, {"test"})
    assert table.correct.tolist() == [[0.0, 0.0], [1.0, 0.3]]
    assert table.incomplete == 2
    metadata = pq.read_schema(path).metadata
    assert metadata[b"m3.null_scale"] == b"144"
    assert metadata[b"m3.model_identity"] == SOURCE.model_identity.encode()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([outcome("a", 0, 1.0), outcome("a", 0, 1.0)], "'a' has a run twice"),
        ([outcome("a", 0, 1.0), outcome("a", 2, 1.0)], "lacks runs"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(
    tmp_path: Path, rows: list[NullOutcome], message: str
) -> None:
    write_null_table(tmp_path / "n.parquet", rows, SOURCE, 144)
    with pytest.raises(OutcomesError, match=message):
        read_null_table(tmp_path / "n.parquet")


def test_other_files_are_refused(tmp_path: Path) -> None:
    write_null_table(tmp_path / "off.parquet", [outcome("a", 0, 1.0)], SOURCE, 100)
    with pytest.raises(OutcomesError, match="not a noise null"):
        read_null_table(tmp_path / "off.parquet")
    outcomes = tmp_path / "outcomes.parquet"
    write_outcomes(outcomes, outcome_rows(outcome_table(2)), SOURCE)
    with pytest.raises(OutcomesError, match="not a noise null"):
        read_null_table(outcomes)
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(OutcomesError, match="Parquet"):
        read_null_table(tmp_path / "text.parquet")


def test_an_empty_table_has_no_samples(tmp_path: Path) -> None:
    write_null_table(tmp_path / "n.parquet", [], SOURCE, 144)
    assert len(read_null_table(tmp_path / "n.parquet")) == 0
