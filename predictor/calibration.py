"""Honest probabilities, and prices that keep a promise.

Two steps on two parts of the data that the model has not seen. *Calibration* makes a predicted 0.8
come true eight times in ten. *Prices* of the selection rule are then certified by Learn-then-Test
(Angelopoulos et al., arXiv 2110.01052): a price is served for a regret bound only if the hypothesis
"its regret exceeds the bound" is rejected, with the p-value of Hoeffding and Bentkus for bounded
losses (Bates et al., arXiv 2101.02703). Prices are tested from strict (0 would be the finest scale
for everything) to loose and the first that fails ends the sequence, which keeps the chance of any
false promise at one bound below 5% without further correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import bdtr, expit

from predictor.selection import select_many

CONFIDENCE = 0.95
REGRET_BOUNDS = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)

# Fixed before any data is seen, strict to loose; testing in this order needs no correction. At the
# last one everything goes to the cheapest scale of M3's ladder.
PRICES = np.geomspace(1e-4, 100.0, 181)
_CLIP = 1e-6
_BINS = 15


@dataclass(frozen=True, slots=True, eq=False)
class BetaCalibration:
    """Beta calibration per scale (Kull et al., AISTATS 2017): σ(a·ln p − b·ln(1−p) + c), a, b ≥ 0.

    Args:
        coefficients: S×3, (a, b, c) of each scale; (1, 1, 0) leaves a probability as it is.
    """

    coefficients: NDArray[np.float64]

    def apply(self, p: NDArray[np.float64]) -> NDArray[np.float64]:
        """N×S raw probabilities → N×S calibrated ones, monotone within each scale."""
        inner = np.clip(p, _CLIP, 1 - _CLIP)
        a, b, c = self.coefficients.T
        calibrated: NDArray[np.float64] = expit(a * np.log(inner) - b * np.log1p(-inner) + c)
        return calibrated

    @classmethod
    def fit(cls, p: NDArray[np.float64], success: NDArray[np.bool_]) -> BetaCalibration:
        """Maximum likelihood on samples the model has not seen.

        Labels are drawn in by one pseudo-count each (Platt, 1999), so that a scale that always
        succeeds stays short of certainty, and a weak pull towards the identity decides what little
        data does not.
        """
        return cls(np.stack([_fit_beta(p[:, s], success[:, s]) for s in range(p.shape[1])]))


def _fit_beta(p: NDArray[np.float64], success: NDArray[np.bool_]) -> NDArray[np.float64]:
    inner = np.clip(p, _CLIP, 1 - _CLIP)
    design = np.stack((np.log(inner), -np.log1p(-inner), np.ones_like(inner)), axis=1)
    positives, negatives = success.sum(), (~success).sum()
    labels = np.where(success, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    identity = np.array([1.0, 1.0, 0.0])

    def loss(coefficients: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = design @ coefficients
        away = coefficients - identity
        value = np.logaddexp(0, logits).sum() - labels @ logits + 0.5 * away @ away
        return float(value), design.T @ (expit(logits) - labels) + away

    bounds = [(0, None), (0, None), (None, None)]
    fitted = minimize(loss, identity, jac=True, method="L-BFGS-B", bounds=bounds)
    return np.asarray(fitted.x, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Certified prices.

    Args:
        bounds: regret bounds, ascending.
        prices: the loosest certified price for each; None where none qualifies.
    """

    bounds: tuple[float, ...]
    prices: tuple[float | None, ...]

    def at(self, max_regret: float) -> float | None:
        """The price for a bound; between grid points the next stricter one holds."""
        held = None
        for bound, price in zip(self.bounds, self.prices, strict=True):
            if bound <= max_regret:
                held = price
        return held


def certify(
    p_success: NDArray[np.float64],
    success: NDArray[np.bool_],
    images: NDArray[np.object_],
    shares: NDArray[np.float64],
    bounds: Sequence[float] = REGRET_BOUNDS,
    confidence: float = CONFIDENCE,
) -> Thresholds:
    """The loosest price for each bound whose regret is below it with `confidence`.

    Args:
        p_success: N×S calibrated probabilities on samples used for nothing before.
        success: N×S.
        images: N image names; losses are averaged per image, because questions about one image are
            not independent.
        shares: N×S or S, tokens per scale as a share of the finest's.
    """
    losses = per_image(regret_losses(p_success, success, shares, PRICES), images)
    return certify_losses(losses, bounds, confidence)


def certify_losses(
    losses: NDArray[np.float64],
    bounds: Sequence[float] = REGRET_BOUNDS,
    confidence: float = CONFIDENCE,
) -> Thresholds:
    """`certify` from I×T mean losses per image at every tested price."""
    count, risks = len(losses), losses.mean(axis=0).tolist()
    prices = tuple(_loosest(risks, count, bound, 1 - confidence) for bound in bounds)
    return Thresholds(tuple(bounds), prices)


def _loosest(risks: Sequence[float], count: int, bound: float, error_rate: float) -> float | None:
    loosest = None
    for price, risk in zip(PRICES.tolist(), risks, strict=True):
        if hoeffding_bentkus(risk, count, bound) > error_rate:
            break
        loosest = price
    return loosest


def regret_losses(
    p_success: NDArray[np.float64],
    success: NDArray[np.bool_],
    shares: NDArray[np.float64],
    prices: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """N×T: where the finest scale succeeds and the one chosen at a price does not."""
    chosen = select_many(p_success, shares, prices)
    return success[:, -1:] & ~np.take_along_axis(success, chosen, axis=1)


def per_image(losses: NDArray[np.bool_], images: NDArray[np.object_]) -> NDArray[np.float64]:
    """N×T losses → I×T means, one row per image."""
    _, image, counts = np.unique(images, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), losses.shape[1]))
    np.add.at(sums, image, losses)
    return sums / counts[:, None]


def hoeffding_bentkus(risk: float, count: int, bound: float) -> float:
    """p-value of "the true mean loss exceeds `bound`" for `count` independent losses in [0, 1].

    Args:
        risk: their mean.
    """
    if count == 0 or risk >= bound:
        return 1.0
    hoeffding = np.exp(-count * _bernoulli_divergence(risk, bound))
    # A float like 0.06 × 50 may land just above 3; the next whole number would be needlessly large.
    at_most = np.ceil(count * risk - 1e-9)
    bentkus = np.e * bdtr(at_most, count, bound)
    return float(min(hoeffding, bentkus, 1.0))


def _bernoulli_divergence(a: float, b: float) -> float:
    """Kullback–Leibler divergence of a coin of chance `a` from one of chance `b`, 0 < b < 1."""
    heads = a * np.log(a / b) if a > 0 else 0.0
    tails = (1 - a) * np.log((1 - a) / (1 - b)) if a < 1 else 0.0
    return float(heads + tails)


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions that are about equal: their mean, how many came true, how many there are."""

    predicted: float
    observed: float
    count: int


def reliability(
    p_success: NDArray[np.float64], success: NDArray[np.bool_], bins: int = _BINS
) -> list[Bin]:
    """Predicted and observed success over bins of equal count, empty ones left out."""
    order = np.argsort(p_success, axis=None, kind="stable")
    parts = zip(
        np.array_split(p_success.ravel()[order], bins),
        np.array_split(success.ravel()[order].astype(np.float64), bins),
        strict=True,
    )
    return [Bin(float(p.mean()), float(y.mean()), len(p)) for p, y in parts if len(p)]


def expected_calibration_error(
    p_success: NDArray[np.float64], success: NDArray[np.bool_], bins: int = _BINS
) -> float:
    """Mean distance between predicted and observed success over the bins of `reliability`."""
    found = reliability(p_success, success, bins)
    return sum(abs(each.predicted - each.observed) * each.count for each in found) / p_success.size
