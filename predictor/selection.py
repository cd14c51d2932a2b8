"""The one rule that turns probabilities into a scale: certified offline, served online."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def select(p_success: Sequence[float], costs: Sequence[float], threshold: float | None) -> int:
    """Index of the cheapest scale whose predicted shortfall is at most `threshold`.

    The shortfall of a scale is the best probability of any scale minus its own. A question that
    even the best scale will hardly answer therefore goes to the cheapest one.

    Args:
        p_success: calibrated probability of success per scale, coarse to fine, each in [0, 1].
        costs: cost per scale in any one unit, same order.
        threshold: largest tolerated shortfall, or None where no threshold is certified.

    Returns:
        An index into the ladder; the finest (last) for threshold None. Equal costs go to the
        likelier scale.
    """
    if threshold is None:
        return len(p_success) - 1
    best = max(p_success)
    enough = [i for i, p in enumerate(p_success) if best - p <= threshold]
    return min(enough, key=lambda i: (costs[i], -p_success[i]))


def select_many(
    p_success: NDArray[np.float64], costs: ArrayLike, thresholds: ArrayLike
) -> NDArray[np.intp]:
    """`select` for every sample and every threshold at once: N×S, S, T → N×T indices.

    Exactly `select`, comparison by comparison; a test holds the two together.
    """
    cost = np.asarray(costs, dtype=np.float64)
    shortfall = p_success.max(axis=1, keepdims=True) - p_success
    chosen = np.empty((len(p_success), np.size(thresholds)), dtype=np.intp)
    for column, threshold in enumerate(np.atleast_1d(np.asarray(thresholds, dtype=np.float64))):
        price = np.where(shortfall <= threshold, cost, np.inf)
        cheapest = price == price.min(axis=1, keepdims=True)
        chosen[:, column] = np.where(cheapest, p_success, -1.0).argmax(axis=1)
    return chosen
