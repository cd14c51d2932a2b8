"""Stand-ins for the two seams of the router (router/ports.py): a predictor and a backend."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from io import BytesIO

from PIL import Image

from m3_backend.costs import CostModel
from m3_backend.errors import BackendError, InvalidImageError
from m3_backend.messages import (
    Delta,
    Event,
    Finished,
    GenerationRequest,
    ImageInput,
    ModelInfo,
    Started,
    TokenLogprob,
)
from m3_backend.scales import ScaleLadder, image_tokens
from m3_backend.stats import EngineStats
from predictor.drift import Reference
from predictor.predictor import Prediction
from predictor.records import Target
from router.ports import BackendPort, Replicas

MODEL = ModelInfo(
    name="fake",
    identity="0" * 64,
    processor="1" * 64,
    ladder=ScaleLadder(),
    tiling=None,
    max_context=2048,
    costs=CostModel(encode_ms=10.0, prefill_base_ms=5.0, prefill_token_ms=0.1, decode_token_ms=2.0),
)


def decode(image: ImageInput) -> None:
    """Fails as the real decoders on both sides of the seams do.

    Raises:
        InvalidImageError: the pixels are not whole.
    """
    try:
        with Image.open(BytesIO(image.data)) as opened:
            opened.load()
    except Exception:
        raise InvalidImageError("The image cannot be decoded; send a whole file.") from None


class FakePredictor:
    """Predicts by the question: `p_by_question`, else `p_success`.

    Args:
        thresholds: (bound, price) pairs; a bound between two gets the stricter one's price.
    """

    version = "fake-1"
    target: Target = "agreement"
    reference: Reference | None = None

    def __init__(
        self,
        p_success: Sequence[float] = (0.3, 0.6, 0.9, 0.92, 0.93),
        p_by_question: dict[str, Sequence[float]] | None = None,
        thresholds: Sequence[tuple[float, float]] = ((0.01, 0.02), (0.05, 0.2), (0.2, 20.0)),
    ) -> None:
        self._p_success = p_success
        self._by_question = p_by_question or {}
        self._thresholds = thresholds
        self.asked: list[tuple[str, str, str]] = []
        self.threads: set[int] = set()

    def predict(self, image: ImageInput, question: str, salt: str = "") -> Prediction:
        self.asked.append((image.digest, question, salt))
        self.threads.add(threading.get_ident())
        decode(image)
        p = self._by_question.get(question, self._p_success)
        return Prediction(p_success=tuple(p), features=None)

    @property
    def regret_bounds(self) -> tuple[float, ...]:
        return tuple(bound for bound, _ in self._thresholds)

    def threshold(self, max_regret: float) -> float | None:
        qualified = [price for bound, price in self._thresholds if bound <= max_regret]
        return qualified[-1] if qualified else None


class FakeBackend:
    """Answers every request with the same words, one Delta each.

    An image counts as cached from its second request on.

    Args:
        error: raised before Started.
        error_after: (n, error), raised after n Deltas.
        hold_after: stops for good after this many Deltas, until the iterator is closed.
        degraded: what Started reports as down.
    """

    def __init__(
        self,
        info: ModelInfo = MODEL,
        words: Sequence[str] = ("a ", "red ", "", "square"),
        *,
        error: Exception | None = None,
        error_after: tuple[int, Exception] | None = None,
        hold_after: int | None = None,
        degraded: tuple[str, ...] = (),
    ) -> None:
        self._info = info
        self._words = words
        self._error = error
        self._error_after = error_after
        self._hold_after = hold_after
        self._degraded = degraded
        self._seen: set[tuple[str, str]] = set()
        self.requests: list[GenerationRequest] = []
        self.holding = threading.Event()  # some request stands at `hold_after`
        self.closed = threading.Event()  # some request's iterator has ended, for whatever reason
        self.ping_error: Exception | None = None
        self.reports: dict[str, EngineStats] = {}

    async def info(self) -> ModelInfo:
        return self._info

    async def ping(self) -> Replicas:
        if self.ping_error is not None:
            raise self.ping_error
        return Replicas(answering=2, asked=2, redis="closed")

    async def stats(self) -> dict[str, EngineStats]:
        return self.reports

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        try:
            if self._error is not None:
                raise self._error
            yield self._start(request)
            for index, word in enumerate(self._words):
                await self._obstacles(index)
                logprob = TokenLogprob(word, -0.5, ((word, -0.5), ("other", -1.5)))
                wanted = request.sampling.top_logprobs is not None
                yield Delta(word, (index,), (logprob,) if wanted else ())
            await self._obstacles(len(self._words))
            yield Finished("stop", len(self._words), prefill_ms=8.0, decode_ms=6.0)
        finally:
            self.closed.set()

    def _start(self, request: GenerationRequest) -> Started:
        for image in request.images:
            decode(image)
        tokens = tuple(
            image_tokens(self._info.ladder, scale, image.width, image.height, self._info.tiling)
            for image, scale in zip(request.images, request.scales, strict=True)
        )
        keys = [(image.digest, request.cache_salt) for image in request.images]
        started = Started(
            image_tokens=tokens,
            prompt_tokens=20 + sum(tokens),
            cache=tuple("memory" if key in self._seen else "miss" for key in keys),
            queue_ms=1.0,
            fetch_ms=0.5,
            encode_ms=10.0,
            replica="fake-replica",
            degraded=self._degraded,
        )
        self._seen.update(keys)
        return started

    async def _obstacles(self, deltas: int) -> None:
        if self._error_after is not None and self._error_after[0] == deltas:
            raise self._error_after[1]
        if self._hold_after == deltas:
            self.holding.set()
            await asyncio.Event().wait()


class ScriptedBackend:
    """Another backend that fails first, as the question says; "break" breaks after its first text.

    Args:
        script: by question, the errors of its first requests, in order.
    """

    def __init__(self, backend: BackendPort, script: dict[str, Sequence[Exception]]) -> None:
        self._backend = backend
        self._script = {question: list(errors) for question, errors in script.items()}
        self.attempts: defaultdict[str, list[float]] = defaultdict(list)  # seconds, by question
        self.info, self.ping, self.stats = backend.info, backend.ping, backend.stats

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        question = " ".join(part for part in request.turns[-1].content if isinstance(part, str))
        self.attempts[question].append(time.monotonic())
        if errors := self._script.get(question):
            raise errors.pop(0)
        async for event in self._backend.generate(request):
            yield event
            if question == "break" and isinstance(event, Delta) and event.text:
                raise BackendError("The replica is gone.")
