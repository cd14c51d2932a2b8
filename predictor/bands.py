"""How far chance moves a curve: the bootstrap over pictures.

Questions about one picture come together, so pictures are drawn with replacement, and with them
fixed scales, oracle and policy alike: a band is about the gap closed on other pictures of the same
kind, not about one of its three parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.clustered import Clusters
from predictor.frontier import Curve, gap_closed, hull
from predictor.policies import Policy

Floats = NDArray[np.float64]

COSTS = np.arange(5.0, 301.0)  # mean tokens over which the closed gap is averaged
DRAWS = 400


@dataclass(frozen=True, slots=True, eq=False)
class Totals:
    """Sums per picture, from which any resampling of pictures follows by one matrix product.

    Args:
        samples: I questions of each picture, each counting by its weight.
        paid, right: I×T sums of a policy's cost and successes.
    """

    samples: Floats
    paid: Floats
    right: Floats

    @classmethod
    def of(
        cls, pictures: Clusters, paid: Floats, right: NDArray[np.bool_], counting: Floats
    ) -> Totals:
        """Sums over N samples that count by N weights."""
        each = counting[:, None]
        return cls(
            _per_picture(pictures, each)[:, 0],
            _per_picture(pictures, paid * each),
            _per_picture(pictures, right * each),
        )

    def points(self, weights: Floats) -> tuple[Floats, Floats]:
        """B×I weights → B×T mean costs and accuracies."""
        samples = (weights @ self.samples)[:, None]
        return weights @ self.paid / samples, weights @ self.right / samples


@dataclass(frozen=True, slots=True)
class Band:
    """A figure with the 2.5% and 97.5% quantiles of its bootstrap; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class GapClosed:
    """Of one policy.

    Args:
        mean: over the costs of `COSTS` at which there is a gap.
        at: by cost.
        accuracy: by cost, of the policy itself.
    """

    mean: Band
    at: dict[float, Band]
    accuracy: dict[float, Band]


def gaps_closed(
    policies: Sequence[Policy],
    right: NDArray[np.bool_],
    cost: Floats,
    images: NDArray[np.object_],
    shown: Sequence[float],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, GapClosed]:
    """Oracle gap closed by each policy on N samples, by its name.

    Args:
        right: N×S.
        cost: N×S, in tokens.
        shown: costs at which figures are given, beside the mean.
    """
    pictures = Clusters.of(images)
    rng = np.random.default_rng(seed)
    weights = np.ones((draws + 1, pictures.count))  # the first row is the sample itself
    weights[1:] = rng.multinomial(
        pictures.count, np.full(pictures.count, 1 / pictures.count), size=draws
    )
    grid = np.concatenate((COSTS, np.asarray(shown, np.float64)))
    found = {}
    for policy, curves, closed in _closed(policies, right, cost, pictures, weights, grid):
        reached = np.stack([curve.at(shown) for curve in curves])
        found[policy.name] = GapClosed(
            mean=band(_mean(closed[:, : len(COSTS)])),
            at=dict(zip(shown, map(band, closed[:, len(COSTS) :].T), strict=True)),
            accuracy=dict(zip(shown, map(band, reached.T), strict=True)),
        )
    return found


def weighted_gaps(
    policies: Sequence[Policy], right: NDArray[np.bool_], cost: Floats, weights: Floats
) -> dict[str, float | None]:
    """Mean oracle gap closed over `COSTS`, by policy, where samples count by their N weights.

    None where there is no gap at any cost.
    """
    everyone = Clusters(np.arange(len(right)), len(right))
    once = np.ones((1, len(right)))
    drawn = drawn_gaps(policies, right, cost, everyone, once, weights)
    means = {name: float(each[0]) for name, each in drawn}
    return {name: mean if np.isfinite(mean) else None for name, mean in means.items()}


def drawn_gaps(
    policies: Sequence[Policy],
    right: NDArray[np.bool_],
    cost: Floats,
    pictures: Clusters,
    times: Floats,
    counting: Floats,
) -> Iterator[tuple[str, Floats]]:
    """Mean oracle gap closed over `COSTS`, of each policy by its name, for each of B draws.

    NaN where there is no gap at any cost.

    Args:
        times: B×I, how often each picture is drawn.
        counting: N, the weight of each sample.
    """
    for policy, _, closed in _closed(policies, right, cost, pictures, times, COSTS, counting):
        yield policy.name, _mean(closed)


def _closed(
    policies: Sequence[Policy],
    right: NDArray[np.bool_],
    cost: Floats,
    pictures: Clusters,
    weights: Floats,
    grid: Floats,
    counting: Floats | None = None,
) -> Iterator[tuple[Policy, list[Curve], Floats]]:
    """Each policy with its curve and its gap closed at G costs, for each row of B×I weights.

    Args:
        counting: N, the weight of each sample; None counts all alike.

    Yields:
        The policy, B curves, B×G.
    """
    if counting is None:
        counting = np.ones(len(right))
    fixed_cost, fixed_right = Totals.of(pictures, cost, right, counting).points(weights)
    hulls = [hull(*each) for each in zip(fixed_cost, fixed_right, strict=True)]
    oracles = _oracles(pictures, right, cost, weights, counting)
    for policy in policies:
        correct = np.take_along_axis(right, policy.chosen, axis=1)
        totals = Totals.of(pictures, policy.paid(cost), correct, counting)
        points = zip(*totals.points(weights), strict=True)
        curves = [Curve.through(*each) for each in points]
        gaps = [
            gap_closed(curve, free, best, grid)
            for curve, free, best in zip(curves, hulls, oracles, strict=True)
        ]
        yield policy, curves, np.stack(gaps)


def band(draws: Floats) -> Band:
    """The first of the draws is the figure itself."""
    value, rest = draws[0], draws[1:][np.isfinite(draws[1:])]
    if not np.isfinite(value) or len(rest) < len(draws) / 2:
        return Band(float(value) if np.isfinite(value) else None, None, None)
    low, high = np.quantile(rest, (0.025, 0.975))
    return Band(float(value), float(low), float(high))


def _mean(closed: Floats) -> Floats:
    """Row means over what is defined; NaN where nothing is."""
    defined = np.isfinite(closed)
    total = np.where(defined, closed, 0.0).sum(axis=1)
    return np.where(defined.any(axis=1), total / np.maximum(defined.sum(axis=1), 1), np.nan)


def _oracles(
    pictures: Clusters, right: NDArray[np.bool_], cost: Floats, weights: Floats, counting: Floats
) -> list[Curve]:
    """`frontier.oracle` of every resampling: its steps are bought cheapest first in each."""
    base = cost.min(axis=1)
    extra = np.where(right, cost, np.inf).min(axis=1) - base
    solved = np.isfinite(extra)
    steps, step = np.unique(extra[solved], return_inverse=True)
    buyers = np.zeros((pictures.count, len(steps)))
    np.add.at(buyers, (pictures.index[solved], step), counting[solved])
    samples = weights @ np.bincount(pictures.index, counting, pictures.count)
    cheapest = weights @ np.bincount(pictures.index, base * counting, pictures.count) / samples
    bought = weights @ buyers / samples[:, None]
    costs = cheapest[:, None] + np.cumsum(bought * steps, axis=1)
    accuracies = np.cumsum(bought, axis=1)
    return [
        Curve.through(np.concatenate(([start], at)), np.concatenate(([0.0], reached)))
        for start, at, reached in zip(cheapest, costs, accuracies, strict=True)
    ]


def _per_picture(pictures: Clusters, values: Floats) -> Floats:
    sums = np.zeros((pictures.count, values.shape[1]))
    np.add.at(sums, pictures.index, values)
    return sums


def as_json(found: Mapping[str, GapClosed]) -> dict[str, dict[str, object]]:
    """By policy: `mean` with `low` and `high`, and the same at each cost."""
    return {
        name: {
            "mean": each.mean.value,
            "low": each.mean.low,
            "high": each.mean.high,
            "at_tokens": {f"{cost:g}": _figures(at) for cost, at in each.at.items()},
            "accuracy_at_tokens": {f"{cost:g}": _figures(at) for cost, at in each.accuracy.items()},
        }
        for name, each in found.items()
    }


def _figures(each: Band) -> list[float | None]:
    return [each.value, each.low, each.high]
