"""Accuracy against cost: fixed scales, what is possible, and what a policy makes of the gap.

Pure functions over N samples × S scales. A *point* is (mean cost, accuracy); costs are in any one
unit, usually image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Accuracy as a function of mean cost, from points with ascending cost.

    Between two points a policy may toss a coin, so accuracy is linear there; beyond the last point
    more budget buys nothing.
    """

    cost: Floats
    accuracy: Floats

    def at(self, cost: ArrayLike) -> Floats:
        """Accuracy at a mean cost; NaN below the cheapest point, which nothing can reach."""
        return np.interp(np.asarray(cost, dtype=np.float64), self.cost, self.accuracy, left=np.nan)

    def thinned(self, most: int = 100) -> Curve:
        """At most so many of the points, the ends among them."""
        at = np.unique(np.linspace(0, len(self.cost) - 1, most).round().astype(int))
        return Curve(self.cost[at], self.accuracy[at])

    @classmethod
    def through(cls, cost: ArrayLike, accuracy: ArrayLike) -> Curve:
        """Points in any order; of points with equal cost the best counts."""
        costs, accuracies = np.asarray(cost, np.float64), np.asarray(accuracy, np.float64)
        order = np.lexsort((-accuracies, costs))
        _, first = np.unique(costs[order], return_index=True)
        return cls(costs[order][first], accuracies[order][first])


def hull(cost: ArrayLike, accuracy: ArrayLike) -> Curve:
    """The non-decreasing concave hull of points: what tossing coins between them reaches."""
    points = Curve.through(cost, accuracy)
    best = np.maximum.accumulate(points.accuracy)
    kept: list[int] = []
    for at in range(len(best)):
        while len(kept) > 1 and _is_below(points.cost, best, kept[-2], kept[-1], at):
            kept.pop()
        kept.append(at)
    return Curve(points.cost[kept], best[kept])


def _is_below(cost: Floats, accuracy: Floats, left: int, middle: int, right: int) -> bool:
    """Whether the middle point lies on or under the line between the other two."""
    rise = (accuracy[right] - accuracy[left]) * (cost[middle] - cost[left])
    return bool((accuracy[middle] - accuracy[left]) * (cost[right] - cost[left]) <= rise)


def fixed_scales(success: NDArray[np.bool_], cost: Floats) -> tuple[Floats, Floats]:
    """(mean cost, accuracy) of using one scale for everything; S values each.

    Args:
        success: N×S.
        cost: N×S.
    """
    return cost.mean(axis=0), success.mean(axis=0)


def oracle(success: NDArray[np.bool_], cost: Floats) -> Curve:
    """The most that any per-sample choice reaches, as a function of mean cost.

    Every sample pays at least its cheapest scale. Beyond that only one step is worth paying for: to
    the cheapest scale that succeeds; those steps are bought cheapest first. Equal steps are one
    stretch of the curve.
    """
    base = cost.min(axis=1)
    first_success = np.where(success, cost, np.inf).min(axis=1)
    extra, samples = np.unique(
        (first_success - base)[np.isfinite(first_success)], return_counts=True
    )
    costs = base.mean() + np.concatenate(([0.0], np.cumsum(extra * samples))) / len(cost)
    accuracies = np.concatenate(([0], np.cumsum(samples))) / len(cost)
    return Curve.through(costs, accuracies)


def smallest_sufficient(success: NDArray[np.bool_]) -> NDArray[np.intp]:
    """N indices of the coarsest scale that succeeds, -1 where none does.

    Args:
        success: N×S, coarse to fine.
    """
    return np.where(success.any(axis=1), success.argmax(axis=1), -1)


def allocation(right: NDArray[np.bool_], chosen: NDArray[np.intp]) -> dict[str, Any]:
    """How often each scale was chosen where each was the smallest sufficient one.

    Rows: the smallest sufficient scale, coarse to fine, then "none". Columns: the chosen scale.
    `over` spent more than was needed, `under` less although more would have been right; choosing
    anything above the coarsest for a question that no scale answers is `wasted`.
    """
    needed = smallest_sufficient(right)
    scales = right.shape[1]
    matrix = np.zeros((scales + 1, scales), dtype=np.int64)
    np.add.at(matrix, (np.where(needed < 0, scales, needed), chosen), 1)
    solvable = needed >= 0
    return {
        "matrix": matrix.tolist(),
        "exact": float(np.mean(solvable & (chosen == needed))),
        "over": float(np.mean(solvable & (chosen > needed))),
        "under": float(np.mean(solvable & (chosen < needed))),
        "wasted": float(np.mean(~solvable & (chosen > 0))),
    }


def stable(success: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """N×S: does the scale succeed and every finer one too.

    A lucky guess at a coarse scale that a finer one does not repeat is no success here.
    """
    return np.logical_and.accumulate(success[:, ::-1], axis=1)[:, ::-1]


def policy_points(
    chosen: NDArray[np.intp], success: NDArray[np.bool_], cost: Floats
) -> tuple[Floats, Floats]:
    """(mean cost, accuracy) of T policies from their choices: N×T indices into the scales."""
    paid = np.take_along_axis(cost, chosen, axis=1).mean(axis=0)
    right = np.take_along_axis(success, chosen, axis=1).mean(axis=0)
    return paid, right


def gap_closed(policy: Curve, fixed: Curve, best: Curve, cost: ArrayLike) -> Floats:
    """Oracle gap closed, (policy − hull) / (oracle − hull), at mean costs; NaN without a gap."""
    free, possible = fixed.at(cost), best.at(cost)
    gap = possible - free
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(gap > 0, (policy.at(cost) - free) / gap, np.nan)
