from __future__ import annotations

import numpy as np

from predictor.calibration import PRICES
from predictor.policies import (
    Policy,
    at_random,
    binned,
    by_key,
    by_probability,
    cascade_by_agreement,
    cascade_by_confidence,
)

COST = np.tile([1.0, 10.0, 100.0], (3, 1))
SHARES = COST / 100


def keys(*values: str) -> np.ndarray:
    return np.array(values, dtype=object)


def test_a_cascade_pays_for_every_scale_it_tries() -> None:
    answers = np.array([["a", "a", "b"], ["a", "b", "b"], ["a", "b", "c"]], dtype=object)
    cascade = cascade_by_agreement(answers)
    assert cascade.chosen.tolist() == [[1, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert cascade.paid(COST).tolist() == [[11, 110, 100], [111, 110, 100], [111, 110, 100]]


def test_a_confident_answer_ends_the_cascade() -> None:
    cascade = cascade_by_confidence(np.array([[0.2, 0.9, 0.1], [0.6, 0.1, 0.1], [0, 0, 0]]))
    at_half = cascade.chosen[:, 30]
    assert at_half.tolist() == [1, 0, 2]
    assert cascade.paid(COST)[:, 30].tolist() == [11, 1, 111]
    assert cascade.chosen[:, 0].tolist() == [0, 0, 0]  # any answer will do


def test_who_looks_once_pays_once() -> None:
    policy = Policy("p", "p", np.array([[0, 2], [1, 2], [2, 2]]))
    assert policy.paid(COST).tolist() == [[1, 100], [10, 100], [100, 100]]


def test_a_lookup_buys_for_each_key_what_training_showed() -> None:
    known = keys(*["easy"] * 20, *["hard"] * 20, *["rare"] * 3)
    success = np.array([[True] * 3] * 20 + [[False, False, True]] * 20 + [[True] * 3] * 3)
    lookup = by_key("l", "l", (known, success), keys("easy", "hard", "rare"), SHARES)
    at = int(np.searchsorted(PRICES, 0.5))
    assert lookup.chosen[:, at].tolist() == [0, 2, 2]  # what is rare tells nothing: the finest
    assert lookup.chosen[:2, -1].tolist() == [0, 0]


def test_bins_come_from_training_alone() -> None:
    known, asked = binned(np.arange(80.0), np.array([-5.0, 45.0, 1000.0]))
    assert np.bincount(known.astype(int)).tolist() == [10] * 8
    assert asked.tolist() == [0, 4, 7]
    same, one = binned(np.full(10, 336.0), np.array([336.0]))
    assert set(same.tolist()) == set(one.tolist())  # what never varies is one bin


def test_dealing_at_random_keeps_how_often_each_scale_is_used() -> None:
    p = np.random.default_rng(0).random((50, 3))
    router = by_probability("router", "router", p, np.tile(SHARES[0], (50, 1)))
    random = at_random(router)
    assert not (random.chosen == router.chosen).all()
    for column in (0, 60, 120, -1):
        counts = [np.bincount(each.chosen[:, column], minlength=3) for each in (router, random)]
        assert counts[0].tolist() == counts[1].tolist()


def test_the_routers_sweep_runs_from_the_finest_to_the_cheapest() -> None:
    p = np.random.default_rng(0).uniform(0.3, 0.7, (50, 3))
    router = by_probability("router", "router", p, np.tile(SHARES[0], (50, 1)))
    assert (router.chosen[:, 0] == 2).all()
    assert (router.chosen[:, -1] == 0).all()
    assert router.p_success is p
