"""Whether a candidate may take the place of the predictor that serves. Pure.

Both are looked at on the same held-out samples, weighted by how likely each was to be drawn. The
candidate must be cheaper at equal regret, or close more of the oracle gap over all costs, by more
than chance (bootstrap over images); and nothing that was promised may get worse: the regret at its
own certified prices, the calibration, the regret within any group of questions, nor what the
service pays at its own bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from predictor.bands import drawn_gaps, weighted_gaps
from predictor.calibration import PRICES, Thresholds, expected_calibration_error
from predictor.clustered import Clusters
from predictor.policies import Policy
from predictor.selection import select_many

Floats = NDArray[np.float64]

_ALONE = "contestant"
_FEWEST_IN_GROUP = 50
_DRAWS = 400


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """What both are judged on: N samples, S scales.

    Args:
        success: N×S.
        tokens: N×S.
        images, groups: N names.
        weights: N; inverse probabilities of having been drawn.
    """

    success: NDArray[np.bool_]
    tokens: Floats
    images: NDArray[np.object_]
    groups: NDArray[np.object_]
    weights: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """One predictor on the held-out samples.

    Args:
        p_success: N×S calibrated probabilities.
        thresholds: its certified prices.
    """

    p_success: Floats
    thresholds: Thresholds


@dataclass(frozen=True, slots=True)
class Standing:
    """How a predictor does.

    Args:
        tokens, regret: by the price certified for the service's bound.
        tokens_at_regret: fewest mean tokens whose regret here is within the bound.
        gap_closed: oracle gap closed, mean over costs (`predictor.bands.COSTS`); 0 where nothing is
            routed, None where there is no gap.
        calibration_error: over all scales.
        regret_by_group: of groups with enough samples.
    """

    tokens: float
    regret: float
    tokens_at_regret: float
    gap_closed: float | None
    calibration_error: float
    regret_by_group: dict[str, float]


@dataclass(frozen=True, slots=True)
class Tolerances:
    """How much worse a candidate may be where it need not be better.

    Args:
        calibration_error, group_regret: absolute.
        gain: least share of tokens that it must save at equal regret, unless it gains by the gap.
        gap_gain: least share of the oracle gap that it must close besides, unless it saves tokens.
        tokens: share of tokens that it may need more at equal regret where it gains by the gap.
        confidence: that there is any gain; it has two chances, so each is asked for half the error.
    """

    calibration_error: float = 0.01
    group_regret: float = 0.03
    gain: float = 0.01
    gap_gain: float = 0.01
    tokens: float = 0.02
    confidence: float = 0.95


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision with all its reasons.

    Args:
        gain: share of tokens that the candidate saves at equal regret.
        confidence: share of bootstrap draws in which it saves any.
        gap_gain: share of the oracle gap that it closes and the serving one does not.
        gap_confidence: share of bootstrap draws in which it closes more.
        won: what it is better at; empty where it is not.
        refused: what speaks against it; empty if it is better.
    """

    candidate: Standing
    serving: Standing | None
    gain: float
    confidence: float
    gap_gain: float
    gap_confidence: float
    won: str
    refused: tuple[str, ...] = field(default=())

    @property
    def better(self) -> bool:
        return not self.refused


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Bootstrap over images.

    Args:
        image: N numbers, which image each sample is about.
        times: B×I.
    """

    image: NDArray[np.intp]
    times: Floats


def decide(
    candidate: Contestant,
    serving: Contestant | None,
    held_out: HeldOut,
    *,
    bound: float,
    tolerances: Tolerances | None = None,
    must_gain: bool = True,
    seed: int = 0,
) -> Verdict:
    """Judges a candidate.

    Args:
        serving: None where every request goes to the finest scale.
        bound: the service's own on regret.
        must_gain: refuse it if it gains nothing; else only what gets worse speaks against it.
    """
    allowed = tolerances or Tolerances()
    new = standing(candidate, held_out, bound)
    old = None if serving is None else standing(serving, held_out, bound)
    before = _everything_finest(held_out) if old is None else old.tokens_at_regret
    gain = 1 - new.tokens_at_regret / before
    draws = _draws(held_out, seed)
    confidence = _confidence(candidate, serving, held_out, bound, draws)
    gap_gain, gap_confidence = _gap_gain(candidate, serving, held_out, draws)
    sure = (1 + allowed.confidence) / 2
    won = ""
    if gain >= allowed.gain and confidence >= sure:
        won = f"{gain:+.1%} tokens saved at equal regret ({confidence:.2f} sure)"
    elif gap_gain >= allowed.gap_gain and gap_confidence >= sure and gain >= -allowed.tokens:
        won = f"{gap_gain:+.3f} of the oracle gap closed ({gap_confidence:.2f} sure)"
    refused = []
    if must_gain and not won:
        refused.append(
            f"not better: {gain:+.1%} tokens saved at regret {bound:g} (any with confidence "
            f"{confidence:.2f}), {gap_gain:+.3f} of the oracle gap closed (more with confidence "
            f"{gap_confidence:.2f}); asked for {allowed.gain:.0%} or {allowed.gap_gain:g} with "
            f"{sure:g}"
        )
    refused += _guards(new, old, candidate.thresholds, bound, allowed)
    return Verdict(new, old, gain, confidence, gap_gain, gap_confidence, won, tuple(refused))


def standing(contestant: Contestant, held_out: HeldOut, bound: float) -> Standing:
    """How one predictor does on its own."""
    price = contestant.thresholds.at(bound)
    served = _chosen(contestant, held_out, [] if price is None else [price])
    lost, paid = _losses(served, held_out), _paid(served, held_out)
    weights = held_out.weights / held_out.weights.sum()
    frontier = _frontier(contestant, held_out)
    groups = {}
    for group in np.unique(held_out.groups.astype(str)):
        rows = held_out.groups == group
        if rows.sum() >= _FEWEST_IN_GROUP:
            groups[str(group)] = float(np.average(lost[rows, 0], weights=weights[rows]))
    return Standing(
        tokens=float(weights @ paid[:, 0]),
        regret=float(weights @ lost[:, 0]),
        tokens_at_regret=float(_cheapest(*frontier, weights, bound)),
        gap_closed=weighted_gaps(
            [_policy(contestant, held_out)], held_out.success, held_out.tokens, held_out.weights
        )[_ALONE],
        calibration_error=expected_calibration_error(contestant.p_success, held_out.success),
        regret_by_group=groups,
    )


def _guards(
    new: Standing,
    old: Standing | None,
    thresholds: Thresholds,
    bound: float,
    allowed: Tolerances,
) -> list[str]:
    refused = []
    if thresholds.at(bound) is None:
        refused.append(f"no price is certified for the bound {bound:g}; more labels are needed")
    most = bound if old is None else max(bound, old.regret)
    if new.regret > most:
        refused.append(f"regret {new.regret:.3f} at its own price is above {most:.3f}")
    if old is None:
        return refused
    if new.calibration_error > old.calibration_error + allowed.calibration_error:
        refused.append(
            f"calibration error {new.calibration_error:.3f}, now {old.calibration_error:.3f}"
        )
    for group, regret in new.regret_by_group.items():
        before = max(old.regret_by_group.get(group, 0.0), bound)
        if regret > before + allowed.group_regret:
            refused.append(f"regret {regret:.3f} for questions about {group}, now {before:.3f}")
    return refused


def _everything_finest(held_out: HeldOut) -> float:
    return float(np.average(held_out.tokens[:, -1], weights=held_out.weights))


def _chosen(contestant: Contestant, held_out: HeldOut, prices: Sequence[float]) -> NDArray[np.intp]:
    """N×T scales at these prices; the finest, N×1, without any."""
    if not prices:
        finest = contestant.p_success.shape[1] - 1
        return np.full((len(contestant.p_success), 1), finest, dtype=np.intp)
    shares = held_out.tokens / held_out.tokens[:, -1:]
    return select_many(contestant.p_success, shares, prices)


def _losses(chosen: NDArray[np.intp], held_out: HeldOut) -> Floats:
    success = held_out.success
    lost = success[:, -1:] & ~np.take_along_axis(success, chosen, axis=1)
    return lost.astype(np.float64)


def _paid(chosen: NDArray[np.intp], held_out: HeldOut) -> Floats:
    return np.take_along_axis(held_out.tokens, chosen, axis=1)


def _frontier(contestant: Contestant | None, held_out: HeldOut) -> tuple[Floats, Floats]:
    """N×T losses and tokens at all prices, after those of everything at the finest scale."""
    finest = held_out.tokens[:, -1:]
    if contestant is None:
        return np.zeros_like(finest), finest
    chosen = _chosen(contestant, held_out, PRICES[::2].tolist())
    lost, paid = _losses(chosen, held_out), _paid(chosen, held_out)
    return np.hstack((np.zeros_like(finest), lost)), np.hstack((finest, paid))


def _cheapest(lost: Floats, paid: Floats, weights: Floats, bound: float) -> float:
    """Fewest mean tokens of all prices whose regret is within the bound."""
    regret, tokens = weights @ lost, weights @ paid
    return float(tokens[regret <= bound * weights.sum()].min() / weights.sum())


def _policy(contestant: Contestant, held_out: HeldOut) -> Policy:
    """A contestant at all prices."""
    return Policy(_ALONE, _ALONE, _chosen(contestant, held_out, PRICES[::2].tolist()))


def _draws(held_out: HeldOut, seed: int) -> Draws:
    """How often each image comes, draw by draw."""
    _, image = np.unique(held_out.images.astype(str), return_inverse=True)
    count = int(image.max()) + 1
    rng = np.random.default_rng(seed)
    times = rng.multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    return Draws(image, times.astype(np.float64))


def _gap_gain(
    candidate: Contestant, serving: Contestant | None, held_out: HeldOut, draws: Draws
) -> tuple[float, float]:
    """How much more of the oracle gap the candidate closes, and the share of draws with any."""
    pictures = Clusters(draws.image, draws.times.shape[1])
    times = np.vstack((np.ones(pictures.count), draws.times))

    def closed(contestant: Contestant | None) -> Floats:
        if contestant is None:  # no gap is closed where nothing is routed
            return np.zeros(len(times))
        policies = [_policy(contestant, held_out)]
        [(_, gaps)] = drawn_gaps(
            policies, held_out.success, held_out.tokens, pictures, times, held_out.weights
        )
        return gaps

    gained = closed(candidate) - closed(serving)
    whole = float(gained[0]) if np.isfinite(gained[0]) else 0.0
    return whole, float(np.mean(gained[1:] > 0))  # one without a gap is none that is closed


def _confidence(
    candidate: Contestant,
    serving: Contestant | None,
    held_out: HeldOut,
    bound: float,
    draws: Draws,
) -> float:
    """Share of bootstrap draws of the images in which the candidate is the cheaper one."""
    image, count = draws.image, draws.times.shape[1]
    # Sums by image, so that a draw costs the number of images and not of samples.
    new, old = (_by_image(each, held_out, image, count) for each in (candidate, serving))
    total = np.bincount(image, held_out.weights, count)
    cheaper = 0
    for times in draws.times:
        limit = bound * (times @ total)
        best = [
            (times @ paid)[(times @ lost) <= limit].min(initial=np.inf) for lost, paid in (new, old)
        ]
        cheaper += best[0] < best[1]
    return cheaper / len(draws.times)


def _by_image(
    contestant: Contestant | None, held_out: HeldOut, image: NDArray[np.intp], count: int
) -> tuple[Floats, Floats]:
    sums = []
    for values in _frontier(contestant, held_out):
        summed = np.zeros((count, values.shape[1]))
        np.add.at(summed, image, values * held_out.weights[:, None])
        sums.append(summed)
    return sums[0], sums[1]
