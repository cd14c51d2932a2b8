from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from predictor.frontier import (
    Curve,
    fixed_scales,
    gap_closed,
    hull,
    oracle,
    policy_points,
    smallest_sufficient,
    stable,
)

SUCCESS = np.array(
    [
        [True, True, True],
        [False, True, True],
        [False, False, True],
        [False, True, False],
        [False, False, False],
        [True, False, True],
    ]
)
TOKENS = np.tile([1.0, 10.0, 100.0], (6, 1))


def test_fixed_scales_by_hand() -> None:
    cost, accuracy = fixed_scales(SUCCESS, TOKENS)
    assert cost.tolist() == [1, 10, 100]
    assert accuracy.tolist() == pytest.approx([2 / 6, 3 / 6, 4 / 6])


def test_the_hull_drops_what_a_mixture_beats_and_never_falls() -> None:
    curve = hull([1, 2, 3, 4, 5], [0.0, 0.1, 0.8, 0.7, 0.75])
    assert curve.cost.tolist() == [1, 3, 5]
    assert curve.accuracy.tolist() == [0.0, 0.8, 0.8]
    assert curve.at([2, 4, 9]).tolist() == [0.4, 0.8, 0.8]
    assert np.isnan(curve.at(0.5))


def test_the_oracle_is_the_best_of_all_choices() -> None:
    best: dict[float, float] = {}
    for choice in product(range(3), repeat=6):
        columns = np.array(choice)[:, None]
        paid, right = policy_points(columns, SUCCESS, TOKENS)
        best[paid[0]] = max(best.get(paid[0], 0.0), right[0])
    curve = oracle(SUCCESS, TOKENS)
    for cost, accuracy in zip(curve.cost, curve.accuracy, strict=True):
        reachable = max(a for c, a in best.items() if c <= cost + 1e-9)
        assert accuracy == pytest.approx(reachable)
    assert curve.accuracy[-1] == pytest.approx(5 / 6)
    assert curve.cost[0] == 1.0


def test_the_smallest_sufficient_scale_and_the_stable_one() -> None:
    assert smallest_sufficient(SUCCESS).tolist() == [0, 1, 2, 1, -1, 0]
    assert stable(SUCCESS).tolist() == [
        [True, True, True],
        [False, True, True],
        [False, False, True],
        [False, False, False],
        [False, False, False],
        [False, False, True],
    ]
    assert smallest_sufficient(stable(SUCCESS)).tolist() == [0, 1, 2, -1, -1, 2]


def test_equal_steps_of_the_oracle_are_one_stretch() -> None:
    curve = oracle(SUCCESS, TOKENS)
    # Steps of 0 (two samples), 9 (two) and 99 (one), shared by six samples.
    assert curve.cost.tolist() == pytest.approx([1, 1 + 18 / 6, 1 + (18 + 99) / 6])
    assert curve.accuracy.tolist() == pytest.approx([2 / 6, 4 / 6, 5 / 6])


def test_a_thinned_curve_keeps_its_ends() -> None:
    curve = Curve(np.arange(1000.0), np.arange(1000.0) / 1000)
    few = curve.thinned(10)
    assert len(few.cost) == 10
    assert (few.cost[0], few.cost[-1]) == (0, 999)


def test_the_gap_closed_is_zero_on_the_hull_and_one_at_the_oracle() -> None:
    fixed, best = hull(*fixed_scales(SUCCESS, TOKENS)), oracle(SUCCESS, TOKENS)
    costs = [2.0, 10.0, 15.0]
    assert gap_closed(fixed, fixed, best, costs).tolist() == pytest.approx([0, 0, 0])
    assert gap_closed(best, fixed, best, costs).tolist() == pytest.approx([1, 1, 1])
    halfway = Curve(np.array([1.0, 100.0]), np.array([0.5, 0.5]))
    found = gap_closed(halfway, fixed, best, 10.0)
    assert found == pytest.approx((0.5 - fixed.at(10)) / (best.at(10) - fixed.at(10)))


def test_no_gap_is_not_a_number() -> None:
    everything = np.ones((4, 2), bool)
    tokens = np.tile([1.0, 9.0], (4, 1))
    fixed, best = hull(*fixed_scales(everything, tokens)), oracle(everything, tokens)
    assert np.isnan(gap_closed(best, fixed, best, [2.0, 9.0])).all()
