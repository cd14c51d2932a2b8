"""What a decision was made from, kept with the request for its record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_backend.messages import GenerationRequest, ImageInput, ModelInfo
from predictor.predictor import Prediction
from predictor.records import Target
from router.policy import Decision, ImageCase, Limits


@dataclass(frozen=True, slots=True, eq=False)
class SeenImage:
    """One image before the decision.

    Args:
        digest: SHA-256 of its file, hex.
        features: of the picture, as `predictor.features.image_names`; None if nobody looked.
        inputs: all that the predictor saw of picture and question; None if it does not say.
    """

    digest: str
    width: int
    height: int
    case: ImageCase
    features: NDArray[np.float32] | None
    inputs: NDArray[np.float32] | None = None

    @property
    def name(self) -> str:
        """As records and labels call it: half of the digest tells pictures apart."""
        return self.digest[:32]


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All that went into a decision, but for pixels.

    Args:
        bound: the regret bound it was made at; None where the scale was forced.
        price: that it was made at; None without a predictor, or where none is certified.
        target: what the predictor's promise is about; None without one.
        certified: its bounds and prices, strict to loose.
        question: the text of the last turn. Never told to anybody unless the operator wants it.
        rule: decides on other `images` by another `threshold`, all else alike.
    """

    model: ModelInfo
    limits: Limits
    images: tuple[SeenImage, ...]
    bound: float | None
    price: float | None
    question: str
    rule: Callable[..., Decision]
    target: Target | None = None
    certified: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """A request that was drawn.

    Args:
        probability: that it was, by either stratum.
    """

    stratum: str
    probability: float
    request: GenerationRequest


def evidence(
    model: ModelInfo,
    limits: Limits,
    bounds: Sequence[float],
    threshold: Callable[[float], float | None],
    question: str,
    images: Sequence[ImageInput],
    cases: Sequence[ImageCase],
    predicted: Sequence[Prediction | None],
    rule: Callable[..., Decision],
    *,
    target: Target | None,
    certified: tuple[tuple[float, float], ...],
) -> Evidence:
    """What `router.planning` knows when it has decided.

    Args:
        bounds: that were decided by, strict to loose.
        threshold: the price in force for a bound.
        rule: what decided, without cases and prices. Must hold no pixels: it is kept as long.
    """
    seen = tuple(
        SeenImage(image.digest, image.width, image.height, case, *_numbers(prediction))
        for image, case, prediction in zip(images, cases, predicted, strict=True)
    )
    bound = bounds[-1] if limits.scale is None else None
    price = None if bound is None else threshold(bound / len(images))
    return Evidence(model, limits, seen, bound, price, question, rule, target, certified)


def _numbers(
    prediction: Prediction | None,
) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Of the picture, and all that the predictor saw."""
    if prediction is None:
        return None, None
    return prediction.image, None if prediction.features is None else prediction.features.values
