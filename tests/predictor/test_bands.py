from __future__ import annotations

import numpy as np
import pytest

from predictor.bands import COSTS, as_json, gaps_closed, weighted_gaps
from predictor.frontier import Curve, fixed_scales, gap_closed, hull, oracle, policy_points
from predictor.policies import Policy, at_random, by_probability
from tests.predictor.test_calibration import SHARES, population

P, SUCCESS, IMAGES = population(400, seed=3)
TOKENS = np.tile(SHARES * 576, (len(P), 1))
ROUTER = by_probability("router", "router", P, TOKENS / 576)


def test_the_figure_itself_is_that_of_the_frontier() -> None:
    found = gaps_closed([ROUTER], SUCCESS, TOKENS, IMAGES, (20, 100), draws=5)["router"]
    free, best = hull(*fixed_scales(SUCCESS, TOKENS)), oracle(SUCCESS, TOKENS)
    curve = Curve.through(*policy_points(ROUTER.chosen, SUCCESS, TOKENS))
    expected = gap_closed(curve, free, best, COSTS)
    assert found.mean.value == pytest.approx(np.nanmean(expected))
    assert found.at[20].value == pytest.approx(expected[15])
    assert found.accuracy[100].value == pytest.approx(float(curve.at(100)))


def test_more_pictures_make_narrower_bands() -> None:
    few = np.isin(IMAGES, np.arange(60))
    narrow = gaps_closed([ROUTER], SUCCESS, TOKENS, IMAGES, (), draws=100)["router"].mean
    part = Policy("router", "router", ROUTER.chosen[few])
    wide = gaps_closed([part], SUCCESS[few], TOKENS[few], IMAGES[few], (), draws=100)["router"].mean
    for each in (narrow, wide):
        assert each.low is not None and each.value is not None and each.high is not None
        assert each.low < each.value < each.high
    assert narrow.high - narrow.low < 0.8 * (wide.high - wide.low)


def test_a_router_is_told_from_chance() -> None:
    found = gaps_closed([ROUTER, at_random(ROUTER)], SUCCESS, TOKENS, IMAGES, (), draws=100)
    assert found["router"].mean.low > found["random"].mean.high


def test_without_a_gap_nothing_is_closed() -> None:
    everything = np.ones_like(SUCCESS)
    found = gaps_closed([ROUTER], everything, TOKENS, IMAGES, (20,), draws=10)
    assert as_json(found)["router"]["mean"] is None
    assert as_json(found)["router"]["at_tokens"] == {"20": [None, None, None]}


def test_weights_count_as_repetitions_do() -> None:
    weights = np.where(np.arange(len(P)) % 4 == 0, 3, 1)
    repeated = np.repeat(np.arange(len(P)), weights)
    again = Policy("router", "router", ROUTER.chosen[repeated])
    names = np.arange(len(repeated)).astype(str).astype(object)
    expected = gaps_closed([again], SUCCESS[repeated], TOKENS[repeated], names, (), draws=1)
    found = weighted_gaps([ROUTER], SUCCESS, TOKENS, weights.astype(np.float64))
    assert found["router"] == pytest.approx(expected["router"].mean.value)
    assert weighted_gaps([ROUTER], np.ones_like(SUCCESS), TOKENS, np.ones(len(P))) == {
        "router": None
    }
