"""The two seams of the router: what it asks of a predictor and of a backend.

`predictor.predictor.Predictor` fits the first, `deploy.app`'s handle adapter the second;
tests/fakes.py has one of each.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m3_backend.messages import Event, GenerationRequest, ImageInput, ModelInfo
from m3_backend.stats import BreakerState, EngineStats
from predictor.drift import Reference
from predictor.predictor import Prediction
from predictor.records import Target


@dataclass(frozen=True, slots=True)
class Replicas:
    """Who answered just now.

    Args:
        answering: replicas that did; None while a busy one, which counts as there, keeps the
            others' answers waiting.
        asked: replicas that are known to be there.
        redis: worst state of their breakers for the feature cache; None without a Redis.
    """

    answering: int | None = None
    asked: int | None = None
    redis: BreakerState | None = None


class PredictorPort(Protocol):
    """Gives, for an image and a question, the probability of success at every scale."""

    @property
    def version(self) -> str:
        """Names the artefact in headers and records."""

    @property
    def target(self) -> Target:
        """What its promise is about."""

    @property
    def reference(self) -> Reference | None:
        """What traffic is compared with, if it knows."""

    def predict(self, image: ImageInput, question: str, salt: str = "") -> Prediction:
        """CPU work: call it off the event loop.

        Raises:
            InvalidImageError: the image's bytes do not decode.
        """

    @property
    def regret_bounds(self) -> tuple[float, ...]:
        """The bounds that a price was certified for, ascending."""

    def threshold(self, max_regret: float) -> float | None:
        """The price certified for a regret bound; None where only the finest scale is."""


class WatchingPort(Protocol):
    """A predictor that only watches: it is given what the one that serves has seen."""

    @property
    def version(self) -> str:
        """Names the artefact in records."""

    def expect(self, image: NDArray[np.float32], question: str) -> tuple[float, ...]:
        """Probability of success per scale, of a picture's features (`image_vector`). CPU work."""

    def threshold(self, max_regret: float) -> float | None:
        """As of a PredictorPort."""


class BackendPort(Protocol):
    """Answers requests on some replica."""

    async def info(self) -> ModelInfo:
        """What the model is. Cheap: cached after the first call."""

    async def ping(self) -> Replicas:
        """Returns once a replica has answered just now; raises if none does. Never cached."""

    async def stats(self) -> Mapping[str, EngineStats]:
        """The load of every replica, by its name. For the background, not for a request's way."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """Started, Deltas, Finished. `aclose()` before the end cancels it on the replica."""
