"""The noise null beside the scales; its figures by hand are in test_analyze."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from predictor.errors import OutcomesError
from predictor.noise_null import any_of, noise_null
from predictor.null_table import NullTable, null_table_beside, read_null_table
from predictor.records import OutcomeTable, read_outcomes
from tests.predictor import handmade


@pytest.fixture
def tables(tmp_path: Path) -> tuple[OutcomeTable, NullTable]:
    path = handmade.write(tmp_path / "hand.parquet")
    return read_outcomes(path), read_null_table(null_table_beside(path))


def test_any_of_some_runs_is_the_mean_over_all_ways_to_draw_them() -> None:
    # Two of four right: 4·3/2 = 6 pairs, one of them wrong twice.
    assert any_of(np.array([0, 2, 4]), 4, 2).tolist() == pytest.approx([0, 5 / 6, 1])


def test_more_runs_than_scales_count_as_many_as_there_are_scales(
    tables: tuple[OutcomeTable, NullTable],
) -> None:
    table, null = tables
    twice = replace(null, correct=np.concatenate([null.correct, null.correct], axis=1))
    found = noise_null(table, table.success("correctness"), twice)
    assert (found.runs, found.compared) == (6, 3)
    assert found.overall.any_run.value == pytest.approx(found.any_of_runs[2])


def test_a_null_of_other_weights_is_refused(tables: tuple[OutcomeTable, NullTable]) -> None:
    table, null = tables
    other = replace(null, source=replace(null.source, model_identity="3" * 64))
    with pytest.raises(OutcomesError, match="other weights"):
        noise_null(table, table.success("correctness"), other)


def test_a_null_of_other_samples_is_refused(tables: tuple[OutcomeTable, NullTable]) -> None:
    table, null = tables
    part = table.part("calibrate")
    with pytest.raises(OutcomesError, match="none of the analysed samples"):
        noise_null(part, part.success("correctness"), null)
