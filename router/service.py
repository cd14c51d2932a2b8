"""The whole story of a request: parse → look at the images → predict → decide → hand over.

Before it the caller was let in (router/access.py); what the request may use is reserved between the
decision and the hand-over, and settled when the answer ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from m3_backend.errors import (
    BackendError,
    DeadlineExceededError,
    InvalidImageError,
    ServiceError,
)
from m3_backend.messages import (
    Event,
    GenerationRequest,
    ImageInput,
    ModelInfo,
    Started,
)
from m3_backend.scales import image_tokens
from router.access import Caller
from router.config import RouterConfig
from router.conversation import Conversation, read_conversation, read_images
from router.policy import Decision, ImageCase, Limits, decide, limits_of
from router.ports import BackendPort, PredictorPort
from router.remote_images import ImageFetcher
from router.retry import Retrying, says_something
from router.schemas import ChatRequest, chat_request, parse_batch, parse_chat_request
from router.telemetry import Trace

P = ParamSpec("P")
T = TypeVar("T")

# The router has no tokenizer. Text costs the same at every scale, so a rough count shifts all
# estimates alike; four bytes a token is what English text comes to.
TEXT_BYTES_PER_TOKEN = 4
# Tokens of the context kept free of images: for an answer and for the prompt's template.
ANSWER_ROOM = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was understood, before anybody has looked at its images."""

    chat: ChatRequest
    limits: Limits
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that was decided on, before any replica has seen it.

    Args:
        salt: of the caller's caches.
        cases: what the decision was made from, one per image.
        text_tokens: of the prompt without its images, roughly.
        cost_ms: estimated replica time to the first token, features not cached, given the image
            tokens of all images together.
        predictor: version of the predictor, or None.
    """

    chat: ChatRequest
    conversation: Conversation
    images: tuple[ImageInput, ...]
    salt: str
    cases: tuple[ImageCase, ...]
    decision: Decision
    text_tokens: int
    cost_ms: Callable[[int], float]
    info: ModelInfo
    predictor: str | None


class Answer:
    """An answer that has started: iterate it to its Finished, or close it to cancel the request.

    Args:
        begun: its first events.
        events: the others. A Started among them (only of answers that are sent whole) means that
            another replica has begun the answer anew: forget what came before it.
    """

    def __init__(
        self,
        plan: Plan,
        begun: Sequence[Event],
        events: AsyncGenerator[Event, None],
        trace: Trace,
    ) -> None:
        self.plan = plan
        self.trace = trace
        self._begun = begun
        self._events = events

    @property
    def started(self) -> Started:
        """What the replica said that gives this answer."""
        assert self.trace.started is not None
        return self.trace.started

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        for event in self._begun:
            yield event
        async for event in self._events:
            self.trace.saw(event)
            yield event
        if self.trace.finished is None:
            raise BackendError("The replica stopped in the middle of the answer; try again.")

    async def aclose(self) -> None:
        await self._events.aclose()


class RoutingService:
    """Answers chat requests at the smallest token scale that is enough.

    Args:
        predictor: None is a legitimate state of a new checkpoint: every image at its finest scale.
        fetcher: of images behind remote URLs; None takes the configured one.
        clock: Unix time in seconds, for deadlines.
    """

    def __init__(
        self,
        backend: BackendPort,
        predictor: PredictorPort | None,
        config: RouterConfig,
        *,
        fetcher: ImageFetcher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self._backend = backend
        self.use(predictor)
        self._clock = clock
        self._retrying = Retrying(config.max_attempts, clock)
        remote = config.images.remote
        if fetcher is None and remote.hosts:
            fetcher = ImageFetcher(remote, config.images.max_bytes)
        self._fetcher = fetcher
        self._threads = ThreadPoolExecutor(config.planning_threads, thread_name_prefix="plan")

    def use(self, predictor: PredictorPort | None, *, refused: bool = False) -> None:
        """Decides with this predictor from the next request on.

        Args:
            refused: a newer one is there and cannot be used.
        """
        self._predictor, self.predictor_refused = predictor, refused

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
        """Answers the chat request in `body`; returns once a replica has started on it, and with a
        stream once it has text to send.

        Raises:
            ServiceError: whatever is wrong with the request, or went wrong on its way.
        """
        deadline = self._deadline()
        plan = await self.plan(body, trace, deadline)
        request = self._generation_request(plan, trace.request_id, deadline)
        charge = await trace.caller.take_tokens(self._most_tokens(plan))
        events = charge.settled_by(
            self._retrying.answer(
                lambda: self._until(deadline, self._backend.generate(request)),
                streamed=trace.stream,
                deadline=deadline,
                lost=trace.lost,
            )
        )
        try:
            begun = await self._beginning(events, trace)
        except BaseException:
            await events.aclose()
            raise
        return Answer(plan, begun, events, trace)

    async def _beginning(self, events: AsyncGenerator[Event, None], trace: Trace) -> list[Event]:
        """The first events of the answer; of a stream up to its first text. Until then it may begin
        anew elsewhere, and the headers must be those of the replica that gives it.
        """
        begun: list[Event] = []
        async for event in events:
            trace.saw(event)
            if isinstance(event, Started):
                begun.clear()
            elif not begun:
                break
            begun.append(event)
            if not trace.stream or says_something(event):
                return begun
        raise BackendError("The replica did not start on the request; try again.")

    async def plan(self, body: bytes, trace: Trace, deadline: float | None = None) -> Plan:
        """Understands the request and decides on it, without running the model.

        Raises:
            ServiceError: whatever is wrong with the request.
        """
        deadline = self._deadline() if deadline is None else deadline
        info = await self._backend.info()
        began_s = trace.elapsed_s()
        plan = await self._understand(partial(parse_chat_request, body), info, trace, deadline)
        trace.stream = bool(plan.chat.stream)
        trace.decision, trace.predictor = plan.decision, plan.predictor
        trace.routing_s = trace.elapsed_s() - began_s - trace.fetch_s
        return plan

    async def plan_batch(self, body: bytes, trace: Trace) -> list[Plan | ServiceError]:
        """The same for many requests, one after the other: others are waiting too. After the
        service's time limit no more images are fetched.

        Raises:
            ServiceError: whatever is wrong with the batch as a whole.
        """
        deadline = self._deadline()
        info = await self._backend.info()
        began_s = trace.elapsed_s()
        documents = await self._off_loop(parse_batch, body, self.config.max_route_batch)
        await trace.caller.take_requests(len(documents) - 1)
        plans: list[Plan | ServiceError] = []
        for index, document in enumerate(documents):
            try:
                read = partial(chat_request, document)
                plans.append(await self._understand(read, info, trace, deadline))
            except ServiceError as error:
                error.param = f"requests[{index}]" + (f".{error.param}" if error.param else "")
                plans.append(error)
        trace.routing_s = trace.elapsed_s() - began_s - trace.fetch_s
        return plans

    async def _understand(
        self,
        read: Callable[[], ChatRequest],
        info: ModelInfo,
        trace: Trace,
        deadline: float,
    ) -> Plan:
        """A decided plan, on planning threads but for what has to be fetched."""
        plan = await self._off_loop(self._plan, read, info, trace.caller)
        if isinstance(plan, Asked):
            fetched = await self._fetch(plan.conversation, trace, deadline)
            plan = await self._off_loop(self._decide, plan, info, trace.caller, fetched)
        return plan

    def _deadline(self) -> float:
        """Of a request that arrives now, in Unix time."""
        return self._clock() + self.config.request_timeout_s

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

    async def _off_loop(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """CPU work on a planning thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(work, *args, **kwargs))

    async def _fetch(
        self, conversation: Conversation, trace: Trace, deadline: float
    ) -> dict[str, bytes]:
        """What is behind the remote URLs; nothing but this request waits for it."""
        assert self._fetcher is not None
        began_s = trace.elapsed_s()
        try:
            return await self._fetcher.fetch(conversation.remote(), deadline - self._clock())
        finally:
            trace.fetch_s += trace.elapsed_s() - began_s

    def _plan(
        self, read: Callable[[], ChatRequest], info: ModelInfo, caller: Caller
    ) -> Plan | Asked:
        """All CPU work of routing in one go, on one thread; half of it if something has to be
        fetched in between.
        """
        chat = read()
        limits = limits_of(chat.model, chat.m3, info.ladder, self.config.max_regret)
        asked = Asked(chat, limits, read_conversation(chat.messages, self.config.images))
        if self._fetcher is not None and asked.conversation.remote():
            return asked
        return self._decide(asked, info, caller)

    def _decide(
        self,
        asked: Asked,
        info: ModelInfo,
        caller: Caller,
        fetched: Mapping[str, bytes] | None = None,
    ) -> Plan:
        chat, conversation = asked.chat, asked.conversation
        predictor = self._predictor  # one for the whole request: it may be replaced meanwhile
        images = read_images(conversation, self.config.images, fetched)
        salt = caller.cache_salt(chat.m3.cache_salt)
        cases = tuple(
            ImageCase(
                tokens=_tokens_per_scale(info, image),
                p_success=_predict(predictor, image, conversation.question, salt, picture.param),
                detail=picture.detail,
            )
            for image, picture in zip(images, conversation.pictures, strict=True)
        )
        text_tokens = conversation.text_bytes() // TEXT_BYTES_PER_TOKEN
        cost_ms = _cost_of(info, text_tokens, len(images))
        image_room = info.max_context - text_tokens - ANSWER_ROOM
        threshold = _no_threshold if predictor is None else predictor.threshold
        decision = decide(cases, info.ladder, asked.limits, threshold, cost_ms, image_room)
        return Plan(
            chat,
            conversation,
            images,
            salt,
            cases,
            decision,
            text_tokens,
            cost_ms,
            info,
            None if predictor is None else predictor.version,
        )

    def _most_tokens(self, plan: Plan) -> int:
        """What the request may take: its prompt, as estimated, and the longest answer."""
        prompt = plan.text_tokens + sum(image.tokens for image in plan.decision.images)
        answer = plan.chat.sampling(self.config.max_tokens).max_tokens or self.config.max_tokens
        return prompt + max(0, min(answer, plan.info.max_context - prompt))

    def _generation_request(
        self, plan: Plan, request_id: str, deadline: float
    ) -> GenerationRequest:
        return GenerationRequest(
            request_id=request_id,
            turns=plan.conversation.turns,
            images=plan.images,
            scales=plan.decision.scales,
            sampling=plan.chat.sampling(self.config.max_tokens),
            cache_salt=plan.salt,
            deadline=deadline,
        )


def _predict(
    predictor: PredictorPort | None, image: ImageInput, question: str, salt: str, param: str
) -> tuple[float, ...] | None:
    if predictor is None:
        return None
    try:
        return predictor.predict(image, question, salt).p_success
    except InvalidImageError as error:
        raise InvalidImageError(error.message, param=param) from None


def _no_threshold(_max_regret: float) -> None:
    return None


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
