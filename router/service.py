"""The whole story of a request: parse → look at the images → predict → decide → hand over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

from m3_backend.errors import BackendError, DeadlineExceededError, InvalidImageError
from m3_backend.messages import (
    Delta,
    Event,
    Finished,
    GenerationRequest,
    ImageInput,
    ModelInfo,
    Started,
)
from m3_backend.scales import image_tokens
from router.config import RouterConfig
from router.conversation import Conversation, read_conversation
from router.policy import Decision, ImageCase, decide, limits_of
from router.ports import BackendPort, PredictorPort
from router.schemas import ChatRequest, parse_chat_request
from router.telemetry import Trace

# The router has no tokenizer. Text costs the same at every scale, so a rough count shifts all
# estimates alike; four bytes a token is what English text comes to.
TEXT_BYTES_PER_TOKEN = 4
# Tokens of the context kept free of images: for an answer and for the prompt's template.
ANSWER_ROOM = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that was understood and decided on, before any replica has seen it.

    Args:
        cases: what the decision was made from, one per image.
        cost_ms: estimated replica time to the first token, features not cached, given the image
            tokens of all images together.
        predictor: version of the predictor, or None.
    """

    chat: ChatRequest
    conversation: Conversation
    cases: tuple[ImageCase, ...]
    decision: Decision
    cost_ms: Callable[[int], float]
    info: ModelInfo
    predictor: str | None


class Answer:
    """An answer that has started: iterate it to its Finished, or close it to cancel the request."""

    def __init__(
        self, plan: Plan, started: Started, events: AsyncGenerator[Event, None], trace: Trace
    ) -> None:
        self.plan = plan
        self.started = started
        self.trace = trace
        self._events = events

    async def __aiter__(self) -> AsyncGenerator[Delta | Finished, None]:
        async for event in self._events:
            self.trace.saw(event)
            if not isinstance(event, Started):
                yield event
        if self.trace.finished is None:
            raise BackendError("The replica stopped in the middle of the answer; try again.")

    async def aclose(self) -> None:
        await self._events.aclose()


class RoutingService:
    """Answers chat requests at the smallest token scale that is enough.

    Args:
        predictor: None is a legitimate state of a new checkpoint: every image at its finest scale.
        clock: Unix time in seconds, for deadlines.
    """

    def __init__(
        self,
        backend: BackendPort,
        predictor: PredictorPort | None,
        config: RouterConfig,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self._backend = backend
        self._predictor = predictor
        self._clock = clock
        self._threads = ThreadPoolExecutor(config.planning_threads, thread_name_prefix="plan")

    @property
    def predictor_version(self) -> str | None:
        return None if self._predictor is None else self._predictor.version

    async def info(self) -> ModelInfo:
        """The model behind the backend."""
        return await self._backend.info()

    async def ready(self) -> ModelInfo:
        """The same, once a replica has answered just now. Raises if none does."""
        await self._backend.ping()
        return await self._backend.info()

    async def handle(self, body: bytes, trace: Trace) -> Answer:
        """Answers the chat request in `body`; returns once a replica has started on it.

        Raises:
            ServiceError: whatever is wrong with the request, or went wrong on its way.
        """
        deadline = self._clock() + self.config.request_timeout_s
        plan = await self.plan(body, trace)
        request = self._generation_request(plan, trace.request_id, deadline)
        events = self._until(deadline, self._backend.generate(request))
        try:
            started = await anext(events, None)
            if not isinstance(started, Started):
                raise BackendError("The replica did not start on the request; try again.")
        except BaseException:
            await events.aclose()
            raise
        trace.saw(started)
        return Answer(plan, started, events, trace)

    async def plan(self, body: bytes, trace: Trace) -> Plan:
        """Understands the request and decides on it, without running the model.

        Raises:
            ServiceError: whatever is wrong with the request.
        """
        info = await self._backend.info()
        loop = asyncio.get_running_loop()
        began_s = trace.elapsed_s()
        plan = await loop.run_in_executor(self._threads, self._plan, body, info)
        trace.stream = bool(plan.chat.stream)
        trace.decision, trace.predictor = plan.decision, plan.predictor
        trace.routing_s = trace.elapsed_s() - began_s
        return plan

    def close(self) -> None:
        """Gives the threads back. Requests under way end with an error."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _until(
        self, deadline: float, events: AsyncGenerator[Event, None]
    ) -> AsyncGenerator[Event, None]:
        """`events`, closed at the deadline. A replica watches it too, but only one that answers.

        Raises:
            DeadlineExceededError: it passed before the next event.
        """
        async with aclosing(events):
            while True:
                limit = asyncio.timeout(deadline - self._clock())
                try:
                    async with limit:
                        event = await anext(events, None)
                except TimeoutError:
                    if not limit.expired():  # not ours
                        raise
                    raise DeadlineExceededError(
                        "The answer was not complete within the service's time limit; ask for "
                        "fewer tokens, or try again."
                    ) from None
                if event is None:
                    return
                yield event

    def _plan(self, body: bytes, info: ModelInfo) -> Plan:
        """All CPU work of routing in one go, on one thread."""
        chat = parse_chat_request(body)
        limits = limits_of(chat.model, chat.m3, info.ladder, self.config.max_regret)
        conversation = read_conversation(chat.messages, self.config.images)
        cases = tuple(
            ImageCase(
                tokens=_tokens_per_scale(info, image),
                p_success=self._predict(image, conversation.question, chat.m3.cache_salt, param),
                detail=detail,
            )
            for image, detail, param in zip(
                conversation.images, conversation.details, conversation.params, strict=True
            )
        )
        text_tokens = conversation.text_bytes() // TEXT_BYTES_PER_TOKEN
        cost_ms = _cost_of(info, text_tokens, len(conversation.images))
        image_room = info.max_context - text_tokens - ANSWER_ROOM
        decision = decide(cases, info.ladder, limits, self._threshold, cost_ms, image_room)
        return Plan(chat, conversation, cases, decision, cost_ms, info, self.predictor_version)

    def _predict(
        self, image: ImageInput, question: str, salt: str, param: str
    ) -> tuple[float, ...] | None:
        if self._predictor is None:
            return None
        try:
            return self._predictor.predict(image, question, salt).p_success
        except InvalidImageError as error:
            raise InvalidImageError(error.message, param=param) from None

    def _threshold(self, max_regret: float) -> float | None:
        return None if self._predictor is None else self._predictor.threshold(max_regret)

    def _generation_request(
        self, plan: Plan, request_id: str, deadline: float
    ) -> GenerationRequest:
        return GenerationRequest(
            request_id=request_id,
            turns=plan.conversation.turns,
            images=plan.conversation.images,
            scales=plan.decision.scales,
            sampling=plan.chat.sampling(self.config.max_tokens),
            cache_salt=plan.chat.m3.cache_salt,
            deadline=deadline,
        )


def _tokens_per_scale(info: ModelInfo, image: ImageInput) -> tuple[int, ...]:
    return tuple(
        image_tokens(info.ladder, scale, image.width, image.height, info.tiling)
        for scale in info.ladder.scales
    )


def _cost_of(info: ModelInfo, text_tokens: int, images: int) -> Callable[[int], float]:
    """Replica milliseconds to the first token as a function of the image tokens."""

    def cost_ms(total_image_tokens: int) -> float:
        return info.costs.request_ms(text_tokens + total_image_tokens, new_tokens=1, images=images)

    return cost_ms
