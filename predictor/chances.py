"""How probable every outcome was: what can be learned from, beside what came about.

A greedy answer is all or nothing: at 49% another one is given. Scoring tells the probability of the
finest scale's answer at every scale, and so how near the others were. Learning from probabilities
is worth as much as twice the labels where answers are short (docs/log.md, 2026-11-27); a long one
is improbable as a whole even where no word of it was in doubt, so `predictor.train` asks the
calibration part which of the two to learn from.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from predictor.records import Target


def chances(
    success: NDArray[np.bool_], reference_logprob: NDArray[np.float64], target: Target
) -> NDArray[np.float64]:
    """N×S probabilities of success, as far as the model's own ones tell.

    Args:
        success: N×S, what came about.
        reference_logprob: N×S, natural log-probability of the finest scale's answer; NaN where
            nobody has asked, which leaves what came about.
        target: what success means. Where the finest answer is wrong, being right takes another
            answer: that has at most the rest of the probability, and none where it was not given.
    """
    came = success.astype(np.float64)
    probability = np.exp(np.minimum(reference_logprob, 0.0))
    if target == "correctness":
        probability = np.where(success[:, -1:], probability, np.minimum(1.0 - probability, came))
    return np.where(np.isnan(probability), came, probability)
