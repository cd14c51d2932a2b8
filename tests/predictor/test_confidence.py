"""Confidence sequences cover, at all times at once, and narrow down."""

from __future__ import annotations

import numpy as np
import pytest

from predictor.confidence import ConfidenceSequence


@pytest.mark.parametrize("mean", [0.0, 0.02, 0.05, 0.3, 1.0])
def test_the_mean_is_inside_all_the_time_in_at_least_95_of_100_runs(mean: float) -> None:
    """Looked at after every value: what a fixed interval at 95% would not survive."""
    rng = np.random.default_rng(int(mean * 1000))
    outside = 0
    for _ in range(60):
        sequence, left = ConfidenceSequence(), False
        for value in rng.random(400) < mean:
            sequence.add(value)
            low, high = sequence.interval
            left = left or not low <= mean <= high
        outside += left
    assert outside <= 5  # 3 are allowed on average; more than 5 of 60 have a chance below 8%


def test_it_narrows_down_as_values_come() -> None:
    rng = np.random.default_rng(1)
    sequence = ConfidenceSequence()
    assert sequence.interval == (0.0, 1.0)
    widths = []
    for _ in range(3):
        sequence.add(rng.random(1_000) < 0.05)
        low, high = sequence.interval
        widths.append(high - low)
    assert widths[0] < 0.08
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.045
    assert sequence.count == 3_000
    assert sequence.mean == pytest.approx(0.05, abs=0.02)


def test_values_need_not_be_zero_or_one() -> None:
    rng = np.random.default_rng(2)
    sequence = ConfidenceSequence()
    sequence.add(rng.uniform(0.2, 0.4, 2_000))
    low, high = sequence.interval
    assert 0.27 < low <= 0.3 <= high < 0.33


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_other_values_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not in"):
        ConfidenceSequence().add(value)
