"""The one rule that turns probabilities into a scale: certified offline, served online.

Looking through more tokens is worth what it adds to the chance of success. At a *price*, in success
per image at the finest scale's tokens, the rule takes the scale that is worth most:

    score(s) = w · p(s) − (1 − w) · r(s) − price · share(s)        w = min(1, price / WHOLE_PRICE)

share(s) is the scale's tokens as a share of the finest's, r(s) = p(finest) · (1 − p(s)) the
predicted regret (the finest would have succeeded and s does not, as if the two were independent;
0 for the finest itself). From `WHOLE_PRICE` on, w is 1 and this is the Lagrangian of "most success
for a mean number of tokens": with true probabilities no rule is above it. Below, the rule turns
from success to regret, so that at price 0 nothing but the finest scale is left, and a bound of one
per cent can be kept where probabilities are too close to tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

WHOLE_PRICE = 0.01  # below, saving every token is worth less than one answer in a hundred


def select(p_success: Sequence[float], shares: Sequence[float], price: float | None) -> int:
    """Index of the scale with the best score.

    Args:
        p_success: calibrated probability of success per scale, coarse to fine, each in [0, 1].
        shares: tokens per scale as a share of the ladder's finest, same order. Some scales of a
            ladder may be left out of both; regret is then against the finest that is there.
        price: success that the finest scale's tokens must bring, or None where no price is
            certified.

    Returns:
        An index into `p_success`; the last for price None. Equal scores go to the cheaper scale,
        equally cheap ones to the likelier.
    """
    last = len(p_success) - 1
    if price is None:
        return last
    scores = _scores(p_success, shares, price)
    return max(range(last + 1), key=lambda at: (scores[at], -shares[at], p_success[at]))


def margin(p_success: Sequence[float], shares: Sequence[float], price: float) -> float:
    """By how much the best score is above the second best: how close the choice was."""
    best, second = sorted(_scores(p_success, shares, price), reverse=True)[:2]
    return best - second


def _scores(p_success: Sequence[float], shares: Sequence[float], price: float) -> list[float]:
    last = len(p_success) - 1
    weight = min(1.0, price / WHOLE_PRICE)
    finest = p_success[last]
    scores = []
    for at, (p, share) in enumerate(zip(p_success, shares, strict=True)):
        regret = finest * (1.0 - p) if at < last else 0.0
        scores.append(weight * p - (1.0 - weight) * regret - price * share)
    return scores


def select_many(
    p_success: NDArray[np.float64], shares: NDArray[np.float64], prices: ArrayLike
) -> NDArray[np.intp]:
    """`select` for every sample and every price at once: N×S, N×S or S, T → N×T indices.

    Exactly `select`, operation by operation; a test holds the two together.
    """
    shares = np.broadcast_to(shares, p_success.shape)
    regret = p_success[:, -1:] * (1.0 - p_success)
    regret[:, -1] = 0.0
    chosen = np.empty((len(p_success), np.size(prices)), dtype=np.intp)
    for column, price in enumerate(np.atleast_1d(np.asarray(prices, dtype=np.float64))):
        weight = min(1.0, float(price) / WHOLE_PRICE)
        score = weight * p_success - (1.0 - weight) * regret - price * shares
        best = score == score.max(axis=1, keepdims=True)
        tied = np.where(best, shares, np.inf)
        cheapest = tied == tied.min(axis=1, keepdims=True)
        chosen[:, column] = np.where(cheapest, p_success, -1.0).argmax(axis=1)
    return chosen


def shortfall(p_success: Sequence[float], chosen: int) -> float:
    """How much likelier the likeliest scale is to succeed than the chosen one, in [0, 1]."""
    return max(p_success) - p_success[chosen]
