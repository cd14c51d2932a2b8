from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.selection import select, select_many

P = (0.2, 0.5, 0.85, 0.9, 0.88)
COSTS = (1.0, 9.0, 36.0, 144.0, 576.0)


@pytest.mark.parametrize(
    ("threshold", "scale"),
    [(None, 4), (0.0, 3), (0.049, 3), (0.06, 2), (0.41, 1), (0.7, 0), (1.0, 0)],
)
def test_the_cheapest_scale_within_the_threshold(threshold: float | None, scale: int) -> None:
    assert select(P, COSTS, threshold) == scale


def test_a_hopeless_question_goes_to_the_cheapest_scale() -> None:
    assert select((0.01, 0.01, 0.02, 0.01, 0.02), COSTS, 0.02) == 0


def test_equal_costs_go_to_the_likelier_scale() -> None:
    assert select((0.7, 0.8, 0.9), (1.0, 1.0, 2.0), 0.5) == 1


# A coarse lattice of probabilities and costs makes ties and exact equality common.
_eighths = st.integers(0, 8).map(lambda eighth: eighth / 8)


@given(
    samples=st.lists(st.tuples(*[_eighths] * 4), min_size=1, max_size=8),
    costs=st.tuples(*[st.integers(1, 3).map(float)] * 4),
    thresholds=st.lists(_eighths, min_size=1, max_size=5),
)
def test_the_certified_choice_is_the_served_choice(
    samples: list[tuple[float, ...]], costs: tuple[float, ...], thresholds: list[float]
) -> None:
    certified = select_many(np.array(samples), costs, thresholds)
    served = [[select(p, costs, threshold) for threshold in thresholds] for p in samples]
    assert certified.tolist() == served
