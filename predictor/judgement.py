"""Every figure of one part of the pictures, ready for JSON. Pure: outcomes and choices in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor import bands
from predictor.artifact import Artifact
from predictor.calibration import REGRET_BOUNDS, expected_calibration_error, reliability
from predictor.clustered import Clusters, members
from predictor.frontier import (
    Curve,
    allocation,
    fixed_scales,
    hull,
    oracle,
    smallest_sufficient,
)
from predictor.noise_null import NoiseNull
from predictor.policies import Policy
from predictor.records import OutcomeTable, Target
from predictor.selection import select
from predictor.train import log_loss, token_shares

SHOWN_COSTS = (5, 8, 12, 20, 35, 60, 100, 150, 200, 250, 300)
SATURATED = 300.0  # tokens at which what is missing is told apart
ALLOCATION_BOUND = 0.05
_LOSS_ACCEPTED = 0.01  # of the finest scale's accuracy, for the headline saving

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def judge_part(
    part: OutcomeTable,
    policies: Sequence[Policy],
    artifact: Artifact,
    judge: Target,
    costs: Mapping[str, Floats],
    null: NoiseNull | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Judge policies on the samples of a part.

    Args:
        policies: the router first, with its N×S calibrated probabilities.
        judge: the success that accuracy counts; regret counts the artefact's own target.
        costs: N×S cost of every scale by unit; `tokens` is among them.
        null: the noise null of these samples.
        seed: of the bootstrap.
    """
    right, target = part.success(judge), part.success(artifact.target)
    tokens = costs["tokens"]
    router = policies[0]
    p_success = router.p_success
    if p_success is None:
        raise ValueError("the router comes first, with its probabilities")
    gaps = bands.gaps_closed(policies, right, tokens, part.image, SHOWN_COSTS, seed=seed)
    free, best = hull(*fixed_scales(right, tokens)), oracle(right, tokens)
    curve = curve_of(router, right, tokens)
    return {
        "samples": len(part),
        "images": len(set(part.image)),
        "failed": part.failed,
        "calibration_error": expected_calibration_error(p_success, target),
        "log_loss": log_loss(p_success, target),
        "reliability": [asdict(each) for each in reliability(p_success, target)],
        "fixed": _fixed(part, right, costs),
        "hull": _points(free),
        "oracle": _points(best.thinned()),
        "policies": {
            policy.name: {
                "label": policy.label,
                **_points(curve_of(policy, right, tokens).thinned()),
            }
            for policy in policies
        },
        "by_cost": {unit: _by_cost(policies, right, cost) for unit, cost in costs.items()},
        "gap_closed": bands.as_json(gaps),
        "iso_accuracy": _iso_accuracy(curve, right, tokens),
        "operating_points": [
            operating_point(part, p_success, artifact, right, target, free, costs, bound)
            for bound in REGRET_BOUNDS
        ],
        "allocation": {
            "max_regret": ALLOCATION_BOUND,
            **allocation(right, served(part, p_success, artifact.thresholds.at(ALLOCATION_BOUND))),
        },
        "same_picture": same_picture(
            part.image, right, served(part, p_success, artifact.thresholds.at(ALLOCATION_BOUND))
        ),
        "groups": {
            group: _group(policies, right, tokens, rows)
            for group, rows in members(part.group).items()
        },
        "macro": _macro(policies, part, right, tokens),
        "missing": None if null is None else _missing(curve, free, best, null),
    }


def curve_of(policy: Policy, right: Bools, cost: Floats) -> Curve:
    """Accuracy against mean cost over a policy's settings."""
    correct = np.take_along_axis(right, policy.chosen, axis=1).mean(axis=0)
    return Curve.through(policy.paid(cost).mean(axis=0), correct)


def served(part: OutcomeTable, p_success: Floats, price: float | None) -> NDArray[np.intp]:
    """N indices, chosen sample by sample as the service does."""
    rows = zip(p_success.tolist(), token_shares(part).tolist(), strict=True)
    return np.array([select(p, shares, price) for p, shares in rows], dtype=np.intp)


def operating_point(
    part: OutcomeTable,
    p_success: Floats,
    artifact: Artifact,
    right: Bools,
    target: Bools,
    free: Curve,
    costs: Mapping[str, Floats],
    bound: float,
) -> dict[str, Any]:
    """What a caller with this `max_regret` gets."""
    price = artifact.thresholds.at(bound)
    chosen = served(part, p_success, price)[:, None]
    losses = target[:, -1:] & ~np.take_along_axis(target, chosen, axis=1)
    spent = {
        unit: float(np.take_along_axis(cost, chosen, axis=1).mean()) for unit, cost in costs.items()
    }
    accuracy = float(np.take_along_axis(right, chosen, axis=1).mean())
    tokens = spent["tokens"]
    fixed = costs["tokens"].mean(axis=0)
    affordable = [at for at, cost in enumerate(fixed) if cost <= tokens]
    best_fixed = max(affordable, key=lambda at: right[:, at].mean(), default=0)
    regret = Clusters.of(part.image).share_by_picture(losses[:, 0])
    return {
        "max_regret": bound,
        "price": price,
        "regret": regret.value,
        "regret_low": regret.low,
        "regret_high": regret.high,
        **spent,
        "accuracy": accuracy,
        "scale_shares": (np.bincount(chosen[:, 0], minlength=len(fixed)) / len(part)).tolist(),
        "best_fixed_scale": part.source.ladder.scales[best_fixed],
        "best_fixed_accuracy": float(right[:, best_fixed].mean()),
        "hull_accuracy": float(free.at(tokens)),
    }


def same_picture(
    images: NDArray[np.object_], right: Bools, chosen: NDArray[np.intp]
) -> dict[str, Any]:
    """Pairs of questions about one picture that were given different scales.

    A pair is *rightly* different if the question with the finer scale needs the finer one, by the
    smallest sufficient scale (the coarsest for what nothing answers), *wrongly* if the other does.
    Where both need the same the pair says nothing about the order.
    """
    needed = np.maximum(smallest_sufficient(right), 0)
    pairs = different = rightly = wrongly = 0
    pictures = Clusters.of(images).index
    for rows in np.split(
        np.argsort(pictures, kind="stable"), np.cumsum(np.bincount(pictures))[:-1]
    ):
        for a, b in combinations(rows.tolist(), 2):
            pairs += 1
            order = np.sign(chosen[a] - chosen[b]) * np.sign(needed[a] - needed[b])
            different += int(chosen[a] != chosen[b])
            rightly += int(order > 0)
            wrongly += int(order < 0)
    return {
        "max_regret": ALLOCATION_BOUND,
        "pairs": pairs,
        "different": different,
        "rightly": rightly,
        "wrongly": wrongly,
        "needs_equal": different - rightly - wrongly,
    }


def saved_at(curve: Curve, accuracy: float) -> float | None:
    """The least mean cost at which a policy is at least so accurate; None if it never is."""
    best = np.maximum.accumulate(curve.accuracy)
    at = int(np.searchsorted(best, accuracy))
    if at == len(best):
        return None
    if at == 0:
        return float(curve.cost[0])
    return float(np.interp(accuracy, best[at - 1 : at + 1], curve.cost[at - 1 : at + 1]))


def _iso_accuracy(curve: Curve, right: Bools, tokens: Floats) -> list[dict[str, Any]]:
    """Tokens that the router needs for the accuracy of each fixed scale, and a point below."""
    fixed = list(zip(*fixed_scales(right, tokens), strict=True))
    wanted = [(cost, accuracy, accuracy) for cost, accuracy in fixed]
    wanted.append((*fixed[-1], fixed[-1][1] - _LOSS_ACCEPTED))
    return [
        {
            "fixed_tokens": float(cost),
            "fixed_accuracy": float(accuracy),
            "accuracy": float(target),
            "tokens": saved_at(curve, float(target)),
        }
        for cost, accuracy, target in wanted
    ]


def _fixed(part: OutcomeTable, right: Bools, costs: Mapping[str, Floats]) -> list[dict[str, Any]]:
    pictures = Clusters.of(part.image)
    rows = []
    for at, scale in enumerate(part.source.ladder.scales):
        share = pictures.share(right[:, at])
        spent = {unit: float(cost[:, at].mean()) for unit, cost in costs.items()}
        figures = {"accuracy": share.value, "low": share.low, "high": share.high}
        rows.append({"scale": scale, **spent, **figures})
    return rows


def _by_cost(policies: Sequence[Policy], right: Bools, cost: Floats) -> dict[str, Any]:
    free, best = hull(*fixed_scales(right, cost)), oracle(right, cost)
    found: dict[str, Any] = {"hull": _points(free), "oracle": _points(best.thinned())}
    for policy in policies:
        if policy.name in ("router", "family_lookup"):
            found[policy.name] = _points(curve_of(policy, right, cost).thinned())
    return found


def _group(policies: Sequence[Policy], right: Bools, tokens: Floats, rows: Bools) -> dict[str, Any]:
    right, tokens = right[rows], tokens[rows]
    free, best = hull(*fixed_scales(right, tokens)), oracle(right, tokens)
    gap = float(best.at(SATURATED) - free.at(SATURATED))  # NaN where no scale is so cheap
    return {
        "samples": int(rows.sum()),
        "accuracy": right.mean(axis=0).tolist(),
        "solvable": float(right.any(axis=1).mean()),
        "gap": gap if np.isfinite(gap) else None,
        "gap_closed": bands.weighted_gaps(
            [policy.of(rows) for policy in policies], right, tokens, np.ones(len(right))
        ),
    }


def _macro(
    policies: Sequence[Policy], part: OutcomeTable, right: Bools, tokens: Floats
) -> dict[str, float | None]:
    """Mean oracle gap closed when every family counts the same: samples weigh by their family."""
    weights = np.zeros(len(part))
    for rows in members(part.group).values():
        weights[rows] = 1 / rows.sum()
    return bands.weighted_gaps(policies, right, tokens, weights)


def _missing(curve: Curve, free: Curve, best: Curve, null: NoiseNull) -> dict[str, Any] | None:
    """What the gap at a generous cost consists of: closed, luck by the noise null, and the rest.

    Luck is what one scale gains from being asked as often as there are scales, about pictures
    shifted by a pixel or two. No router that looks at picture and question can foresee it.
    """
    gap = float(best.at(SATURATED) - free.at(SATURATED))
    closed = float(curve.at(SATURATED) - free.at(SATURATED))
    if not np.isfinite(gap + closed):  # something costs more at its cheapest
        return None
    luck = null.overall.any_run.value - null.overall.single_run.value
    return {
        "tokens": SATURATED,
        "gap": gap,
        "closed": closed,
        "luck": luck,
        "signal": gap - closed - luck,
        "null_scale": null.scale,
        "null_runs": null.compared,
    }


def _points(curve: Curve) -> dict[str, list[float]]:
    return {"tokens": curve.cost.tolist(), "accuracy": curve.accuracy.tolist()}
