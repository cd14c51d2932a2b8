"""Does the promise hold? Certify on some pictures, look at others, many times over.

Learn-then-Test promises that the regret of new requests is below the bound except in one of twenty
certifications. That is a statement about repetitions, so it is checked by repetition: pictures that
the probabilities were not learned on are split at random again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.calibration import PRICES, certify_losses

TEST_TO_THRESHOLD = 4  # the part that judges must be the larger one, or its own chance decides


@dataclass(frozen=True, slots=True)
class Trials:
    """What came of many certifications at one bound.

    Args:
        promised: splits in which some price was certified; in the others the finest scale serves.
        exceeded: splits in which the regret of the test part was above the bound.
        mean_regret: of the test parts.
        highest_regret: of any test part.
        mean_price: where one was certified; None where none ever was.
    """

    bound: float
    splits: int
    promised: int
    exceeded: int
    mean_regret: float
    highest_regret: float
    mean_price: float | None


def repeat_certification(
    losses: NDArray[np.float64],
    bounds: Sequence[float],
    *,
    splits: int = 200,
    seed: int = 0,
) -> tuple[Trials, ...]:
    """Certify on a random fifth of the pictures and measure on the rest, `splits` times.

    Args:
        losses: I×T mean regret per picture at every one of `calibration.PRICES`, from probabilities
            that were learned without these pictures.
    """
    pictures = len(losses)
    certified = pictures // (TEST_TO_THRESHOLD + 1)
    rng = np.random.default_rng(seed)
    regret = np.zeros((splits, len(bounds)))
    chosen = np.full((splits, len(bounds)), np.nan)
    for split in range(splits):
        order = rng.permutation(pictures)
        prices = certify_losses(losses[order[:certified]], bounds).prices
        on_test = losses[order[certified:]].mean(axis=0)
        for at, price in enumerate(prices):
            if price is not None:
                regret[split, at] = on_test[np.searchsorted(PRICES, price)]
                chosen[split, at] = price
    return tuple(
        Trials(
            bound=bound,
            splits=splits,
            promised=int(np.isfinite(chosen[:, at]).sum()),
            exceeded=int((regret[:, at] > bound).sum()),
            mean_regret=float(regret[:, at].mean()),
            highest_regret=float(regret[:, at].max()),
            mean_price=(
                float(np.nanmean(chosen[:, at])) if np.isfinite(chosen[:, at]).any() else None
            ),
        )
        for at, bound in enumerate(bounds)
    )
