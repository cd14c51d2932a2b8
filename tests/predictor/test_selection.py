from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.selection import WHOLE_PRICE, select, select_many, shortfall

P = (0.2, 0.5, 0.85, 0.9, 0.88)
SHARES = (1 / 576, 9 / 576, 36 / 576, 144 / 576, 1.0)


@pytest.mark.parametrize(
    ("price", "scale"),
    # 0.05 for 0.1875 of the tokens; 0.35 for 0.046875; 0.3 for 0.0138889
    [(None, 4), (0.26, 3), (0.27, 2), (7.4, 2), (7.5, 1), (21.5, 1), (21.7, 0)],
)
def test_tokens_are_bought_while_they_are_worth_their_price(
    price: float | None, scale: int
) -> None:
    assert select(P, SHARES, price) == scale


def test_a_hopeless_question_goes_to_the_cheapest_scale() -> None:
    assert select((0.01, 0.01, 0.02, 0.01, 0.02), SHARES, 0.3) == 0


def test_a_low_price_turns_to_the_finest_unless_there_is_nothing_to_lose() -> None:
    assert [select(P, SHARES, price) for price in (0.0, 0.001, 0.004, WHOLE_PRICE)] == [4, 4, 4, 3]
    assert select((0.999,) * 5, SHARES, 0.005) == 0  # as good as certain at any scale
    assert select((0.001,) * 5, SHARES, 0.005) == 0  # as good as hopeless at any scale
    assert select((0.5,) * 5, SHARES, 0.005) == 4  # a guess may come out otherwise


def test_equal_scores_go_to_the_cheaper_then_the_likelier_scale() -> None:
    assert select((0.5, 0.75, 0.75), (0.5, 0.5, 1.0), 0.0625) == 1
    assert select((0.5, 0.75), (0.5, 1.0), 0.5) == 0


def test_the_shortfall_is_against_the_likeliest() -> None:
    assert shortfall(P, 2) == pytest.approx(0.05)
    assert shortfall(P, 3) == 0


# A coarse lattice of probabilities and shares makes ties and exact equality common.
_eighths = st.integers(0, 8).map(lambda eighth: eighth / 8)
_samples = st.lists(st.tuples(*[_eighths] * 4), min_size=1, max_size=8)


@given(
    samples=_samples,
    shares=st.tuples(*[_eighths] * 4),
    prices=st.lists(_eighths | st.floats(0, 2 * WHOLE_PRICE), min_size=1, max_size=5),
)
def test_the_certified_choice_is_the_served_choice(
    samples: list[tuple[float, ...]], shares: tuple[float, ...], prices: list[float]
) -> None:
    certified = select_many(np.array(samples), np.array(shares), prices)
    served = [[select(p, shares, price) for price in prices] for p in samples]
    assert certified.tolist() == served


@given(samples=_samples, prices=st.lists(st.floats(0, 100), min_size=2, max_size=5))
def test_a_higher_price_never_buys_more_tokens(
    samples: list[tuple[float, ...]], prices: list[float]
) -> None:
    shares = np.array([1 / 64, 1 / 16, 1 / 4, 1.0])
    whole = sorted(WHOLE_PRICE + price for price in prices)
    chosen = shares[select_many(np.array(samples), shares, whole)]
    assert (np.diff(chosen, axis=1) <= 0).all()


def test_each_sample_may_have_its_own_shares() -> None:
    p, own = np.array([P, P]), np.array([SHARES, (0.2, 0.2, 0.3, 0.9, 1.0)])
    together = select_many(p, own, [0.1])
    assert together[:, 0].tolist() == [select(P, shares, 0.1) for shares in own.tolist()]


def test_pricing_tokens_is_the_best_use_of_true_probabilities() -> None:
    """Of 300 random policies none gets more right for the same mean tokens."""
    rng = np.random.default_rng(0)
    p = np.sort(rng.random((400, 5)), axis=1)
    shares = np.array(SHARES)
    prices = np.geomspace(WHOLE_PRICE, 100, 400)
    ours = select_many(p, shares, prices)
    cost, right = shares[ours].mean(0), np.take_along_axis(p, ours, 1).mean(0)
    for _ in range(300):
        taste = rng.gamma(0.5, 1.0, 5) * rng.choice([0.1, 1.0, 10.0])
        other = (p - taste * rng.random((400, 5))).argmax(1)
        affordable = cost <= shares[other].mean() + 1e-9
        if affordable.any():
            best = np.interp(shares[other].mean(), cost[::-1], right[::-1])
            assert np.take_along_axis(p, other[:, None], 1).mean() <= best + 1e-3
