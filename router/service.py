"""The whole story of a request: parse → look at the images → predict → decide → hand over.

Before it the caller was let in (router/access.py) and the load looked at (router/admission.py),
which the decision may follow. What the request may use is reserved between the decision and the
hand-over, and settled when the answer ends. If its replica dies it is handed over once more
(router/retry.py), still the same request: one place in the line, one reservation, one deadline.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace
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
    Pool,
    Started,
)
from m3_backend.pace import Line
from m3_backend.scales import image_tokens
from predictor.predictor import Prediction
from predictor.records import Target
from predictor.tightening import Lows
from router.admission import Admission, Look, Ticket, bounds_under_load
from router.config import RouterConfig
from router.conversation import Conversation, read_conversation, read_images
from router.draws import Draws
from router.errors import ShuttingDownError
from router.evidence import Evidence, evidence
from router.in_force import InForce
from router.policy import Decision, ImageCase, Limits, decide_under_load, limits_of
from router.pools import PoolLoads, fitted
from router.ports import BackendPort, PredictorPort, Replicas
from router.remote_images import ImageFetcher
from router.retry import Retrying, says_something
from router.schemas import ChatRequest, chat_request, parse_batch, parse_chat_request
from router.stages import Stage, Stages
from router.trace import Facts, Trace

logger = logging.getLogger("m3_router.load")

P = ParamSpec("P")
T = TypeVar("T")

# The router has no tokenizer. Text costs the same at every scale, so a rough count shifts all
# estimates alike; four bytes a token is what English text comes to.
TEXT_BYTES_PER_TOKEN = 4
ASK_TIMEOUT_S = 2.0  # for the replicas' load
# Tokens of the context kept free of images: for an answer and for the prompt's template.
ANSWER_ROOM = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was understood, before anybody has looked at its images."""

    chat: ChatRequest
    limits: Limits
    look: Look
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
        evidence: what its record will tell of how it was decided.
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
    evidence: Evidence


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
        ticket: Ticket,
    ) -> None:
        self.plan = plan
        self.trace = trace
        self._begun = begun
        self._events = events
        self._ticket = ticket

    @property
    def started(self) -> Started:
        """What the replica said that gives this answer."""
        assert self.trace.started is not None
        return self.trace.started

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        for event in self._begun:
            yield event
        async for event in self._events:
            yield event
        if self.trace.finished is None:
            raise BackendError("The replica stopped in the middle of the answer; try again.")

    async def aclose(self) -> None:
        try:
            await self._events.aclose()
        finally:
            self._ticket.close()


class RoutingService:
    """Answers chat requests at the smallest token scale that is enough.

    Args:
        predictor: None is a legitimate state of a new checkpoint: every image at its finest scale.
        fetcher: of images behind remote URLs; None takes the configured one.
        clock: Unix time in seconds, for deadlines.
        admission: who is let in as load rises; None makes one that is configured alike.
        draws: which requests get a shadow label; None draws none.
        pools: who is let into which pool, where the model has several; None makes one that is
            configured alike.
    """

    def __init__(
        self,
        backend: BackendPort,
        predictor: PredictorPort | None,
        config: RouterConfig,
        *,
        fetcher: ImageFetcher | None = None,
        clock: Callable[[], float] = time.time,
        admission: Admission | None = None,
        draws: Draws | None = None,
        pools: PoolLoads | None = None,
    ) -> None:
        self._draws = draws
        self.config = config
        self.admission = admission or Admission(config.load, config.planning_threads)
        self.pools = pools or PoolLoads(config.load)
        self._backend = backend
        self._lows: dict[str, Lows] = {}
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
        self._in_force = InForce.of(predictor, self._lows)
        self.predictor_refused = refused

    def tighten(self, version: str, lows: Lows) -> None:
        """Decides with what live labels say of a predictor's thresholds, while it serves."""
        self._lows[version] = lows
        if version == self.predictor_version:
            self._in_force = replace(self._in_force, lows=lows)

    @property
    def in_force(self) -> InForce:
        """What the next request is decided by."""
        return self._in_force

    @property
    def tightened_to(self) -> float | None:
        """The bound whose price stands in for that of the service's own; 0 is the finest scale.
        None while nothing is tightened.
        """
        return self._in_force.standing(self.config.max_regret).tightened_to

    @property
    def predictor_version(self) -> str | None:
        return self._in_force.version

    @property
    def predictor_target(self) -> Target | None:
        """What the predictor in force foretells and promises."""
        return self._in_force.target

    @property
    def regret_bounds(self) -> tuple[float, ...]:
        """Those that a price is certified for, ascending; none without a predictor."""
        return tuple(bound for bound, _ in self.certified_prices)

    @property
    def certified_prices(self) -> tuple[tuple[float, float], ...]:
        """(bound, price) of the predictor in force, strict to loose."""
        return self._in_force.certified

    async def info(self) -> ModelInfo:
        """The model behind the backend."""
        return await self._backend.info()

    async def ready(self) -> Replicas:
        """The replicas that answer just now. Raises if none does, or the service is stopping."""
        if self.admission.stopped:
            raise ShuttingDownError
        return await self._backend.ping()

    async def handle(self, body: bytes, trace: Trace) -> Answer:
        """Answers the chat request in `body`; returns once a replica has started on it, and with a
        stream once it has text to send.

        Raises:
            ServiceError: whatever is wrong with the request, or went wrong on its way.
        """
        look, ticket = self.admission.arrive()
        try:
            return await self._answer(body, trace, look, ticket)
        except BaseException:
            ticket.close()
            raise

    async def _answer(self, body: bytes, trace: Trace, look: Look, ticket: Ticket) -> Answer:
        deadline = self._deadline()
        plan = await self.plan(body, trace, deadline, look)
        deadline = self._callers_deadline(plan.chat, deadline)
        pool = self.pools.least_busy(plan.info.pools, plan.decision.scales)
        line, alone_ms = self._work(plan, pool)
        load = self.admission
        if pool is not None:
            load = self.pools.of(pool.name)
            ticket.along(self.pools.enter(pool.name, plan.chat.m3.priority))
        load.check_reachable(alone_ms, deadline - self._clock())
        ticket.planned(line, trace.routing_s or 0.0)
        request = self._generation_request(plan, trace.request_id, deadline, pool, line)
        if self._draws is not None:
            trace.draw = self._draws.draw(request, plan.evidence)
            if trace.draw is not None:
                request = replace(request, keep_s=self.config.shadow.max_age_s)
        charge = await trace.caller.take_tokens(self._most_tokens(plan))
        trace.handed_s = trace.elapsed_s()
        answering = self._retrying.answer(
            lambda: self._until(deadline, self._backend.generate(request)),
            streamed=trace.stream,
            deadline=deadline,
            lost=partial(_lost, trace, ticket),
        )
        events = _watched(charge.settled_by(answering), trace, ticket)
        try:
            begun = await _beginning(events, streamed=trace.stream)
        except BaseException:
            await events.aclose()
            raise
        return Answer(plan, begun, events, trace, ticket)

    async def plan(
        self,
        body: bytes,
        trace: Trace,
        deadline: float | None = None,
        look: Look | None = None,
    ) -> Plan:
        """Understands the request and decides on it, without running the model.

        Args:
            look: the load when it arrived; None takes the one now.

        Raises:
            ServiceError: whatever is wrong with the request.
        """
        deadline = self._deadline() if deadline is None else deadline
        look = look or self.admission.look()
        trace.pressure = look.pressure
        info = await self._backend.info()
        began_s = trace.elapsed_s()
        read = partial(parse_chat_request, body)
        plan = await self._understand(read, info, trace, deadline, look)
        trace.stream = bool(plan.chat.stream)
        trace.decision, trace.predictor = plan.decision, plan.predictor
        trace.asked, trace.evidence = self._facts(plan), plan.evidence
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
        documents = await self._off_loop(trace.stages, self._parse_batch, body, trace.stages)
        await trace.caller.take_requests(len(documents) - 1)
        plans: list[Plan | ServiceError] = []
        for index, document in enumerate(documents):
            try:
                read = partial(chat_request, document)
                look = self.admission.look()
                plans.append(await self._understand(read, info, trace, deadline, look))
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
        look: Look,
    ) -> Plan:
        """A decided plan, on planning threads but for what has to be fetched."""
        plan = await self._off_loop(trace.stages, self._plan, read, info, trace, look)
        if isinstance(plan, Asked):
            deadline = self._callers_deadline(plan.chat, deadline)
            fetched = await self._fetch(plan.conversation, trace, deadline)
            plan = await self._off_loop(trace.stages, self._decide, plan, info, trace, fetched)
        return plan

    def _deadline(self) -> float:
        """Of a request that arrives now, in Unix time."""
        return self._clock() + self.config.request_timeout_s

    def _callers_deadline(self, chat: ChatRequest, deadline: float) -> float:
        """Of a request whose caller may want less time than the service gives."""
        wanted_s = math.inf if chat.m3.timeout_ms is None else chat.m3.timeout_ms / 1e3
        return min(deadline, deadline - self.config.request_timeout_s + wanted_s)

    async def watch_load(self) -> None:
        """Asks the replicas for their load, again and again, until it is cancelled."""
        while True:
            await self.ask_load()
            await asyncio.sleep(self.config.load.poll_s)

    async def ask_load(self) -> None:
        """Asks once. Replicas that do not answer leave what they said last, until it is stale."""
        own_then, owns_then = self.admission.own, self.pools.owns()
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                stats = await self._backend.stats()
        except Exception as error:
            logger.debug("the replicas did not report their load: %r", error)
        else:
            self.admission.take_report(stats.values(), own_then)
            self.pools.take_report(stats.values(), owns_then)
        self.admission.look()

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

    async def _off_loop(
        self, stages: Stages, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """CPU work on a planning thread, which it may have to wait for."""
        submitted_s = stages.now()

        def run() -> T:
            stages.add(Stage.WAIT, submitted_s, stages.now())
            return work(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    def _parse_batch(self, body: bytes, stages: Stages) -> list[object]:
        with stages.of(Stage.PARSE):
            return parse_batch(body, self.config.max_route_batch)

    async def _fetch(
        self, conversation: Conversation, trace: Trace, deadline: float
    ) -> dict[str, bytes]:
        """What is behind the remote URLs; nothing but this request waits for it."""
        assert self._fetcher is not None
        began_s = trace.elapsed_s()
        try:
            return await self._fetcher.fetch(conversation.remote(), deadline - self._clock())
        finally:
            ended_s = trace.elapsed_s()
            trace.fetch_s += ended_s - began_s
            trace.fetch_extent = (trace.fetch_extent or (began_s, 0.0))[0], ended_s

    def _plan(
        self, read: Callable[[], ChatRequest], info: ModelInfo, trace: Trace, look: Look
    ) -> Plan | Asked:
        """All CPU work of routing in one go, on one thread; half of it if something has to be
        fetched in between.
        """
        with trace.stages.of(Stage.PARSE):
            chat = read()
            trace.priority = chat.m3.priority
            look.require(chat.m3.priority, self.config.load)
            limits = limits_of(chat.model, chat.m3, info.ladder, self.config.max_regret)
            asked = Asked(chat, limits, look, read_conversation(chat.messages, self.config.images))
        if self._fetcher is not None and asked.conversation.remote():
            return asked
        return self._decide(asked, info, trace)

    def _decide(
        self,
        asked: Asked,
        info: ModelInfo,
        trace: Trace,
        fetched: Mapping[str, bytes] | None = None,
    ) -> Plan:
        chat, conversation, limits = asked.chat, asked.conversation, asked.limits
        in_force = self._in_force
        predictor = in_force.predictor
        with trace.stages.of(Stage.IMAGES):
            images = read_images(conversation, self.config.images, fetched)
        salt = trace.caller.cache_salt(chat.m3.cache_salt)
        predict = partial(_predict, predictor, trace.stages, conversation.question, salt)
        pairs = tuple(zip(images, conversation.pictures, strict=True))
        predicted = [predict(image, picture.param) for image, picture in pairs]
        cases = tuple(
            ImageCase(
                tokens=_tokens_per_scale(info, image),
                p_success=None if prediction is None else prediction.p_success,
                detail=picture.detail,
            )
            for (image, picture), prediction in zip(pairs, predicted, strict=True)
        )
        text_tokens = conversation.text_bytes() // TEXT_BYTES_PER_TOKEN
        cost_ms = _cost_of(info, text_tokens, len(images))
        room = info.max_context - text_tokens - ANSWER_ROOM
        with trace.stages.of(Stage.DECIDE):
            bounds = self._bounds(in_force, asked)

            def rule(
                cases: Sequence[ImageCase], threshold: Callable[[float], float | None]
            ) -> Decision:
                free = decide_under_load(
                    cases, info.ladder, limits, bounds, threshold, cost_ms, room
                )
                return fitted(free, cases, info.ladder, info.pools, cost_ms, room)

            decision = rule(cases, in_force.threshold)
            if limits.scale is None:
                stands = in_force.standing(bounds[-1] / len(images))
                decision = replace(decision, tightened_to=stands.tightened_to)
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
            in_force.version,
            evidence(
                info,
                limits,
                bounds,
                in_force.threshold,
                conversation.question,
                images,
                cases,
                predicted,
                rule,
                target=in_force.target,
                certified=in_force.certified,
            ),
        )

    def _bounds(self, in_force: InForce, asked: Asked) -> tuple[float, ...]:
        """The bounds to decide by, strict to loose; what the caller has said stands alone."""
        own = asked.limits.max_regret
        if not in_force.certified or not asked.limits.services_own:
            return (own,)
        certified = [bound for bound, _ in in_force.certified]
        return bounds_under_load(own, certified, self.config.load, asked.look.held)

    def _work(self, plan: Plan, pool: Pool | None) -> tuple[Line, float]:
        """What the request takes at a replica, by itself: in line, and in all."""
        costs, reported = (pool or plan.info).costs, self.admission.reported
        longest = plan.chat.sampling(self.config.max_tokens).max_tokens or self.config.max_tokens
        answer = min(reported.answer_tokens, longest)
        prompt = plan.text_tokens + sum(image.tokens for image in plan.decision.images)
        start_ms = costs.start_ms(prompt, len(plan.images))
        line = Line(1, start_ms, costs.hold_ms(answer, reported.slots_each))
        return line, start_ms + costs.hold_ms(answer, 1)

    def _facts(self, plan: Plan) -> Facts:
        return Facts(
            model=plan.chat.model,
            served=plan.info.name,
            sampling=plan.chat.sampling(self.config.max_tokens),
            finest_tokens=sum(case.tokens[-1] for case in plan.cases),
        )

    def _most_tokens(self, plan: Plan) -> int:
        """What the request may take: its prompt, as estimated, and the longest answer."""
        prompt = plan.text_tokens + sum(image.tokens for image in plan.decision.images)
        answer = plan.chat.sampling(self.config.max_tokens).max_tokens or self.config.max_tokens
        return prompt + max(0, min(answer, plan.info.max_context - prompt))

    def _generation_request(
        self, plan: Plan, request_id: str, deadline: float, pool: Pool | None, line: Line
    ) -> GenerationRequest:
        encode_ms = (pool or plan.info).costs.encode_ms * len(plan.images)
        return GenerationRequest(
            request_id=request_id,
            turns=plan.conversation.turns,
            images=plan.images,
            scales=plan.decision.scales,
            sampling=plan.chat.sampling(self.config.max_tokens),
            cache_salt=plan.salt,
            deadline=deadline,
            priority=plan.chat.m3.priority,
            pool="" if pool is None else pool.name,
            work_ms=line.start_ms + line.hold_ms - encode_ms,
            encode_ms=encode_ms,
            whole=not plan.chat.stream,
        )


async def _watched(
    events: AsyncGenerator[Event, None], trace: Trace, ticket: Ticket
) -> AsyncGenerator[Event, None]:
    """`events`, each of them noted before anybody acts on it."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Started):  # perhaps once more, after a replica was lost
                ticket.begun()
            trace.saw(event)
            yield event


def _lost(trace: Trace, ticket: Ticket) -> None:
    trace.lost()
    ticket.lost()


async def _beginning(events: AsyncGenerator[Event, None], *, streamed: bool) -> list[Event]:
    """The first events of the answer; of a stream up to its first text. Until then it may begin
    anew elsewhere, and the headers must be those of the replica that gives it.
    """
    begun: list[Event] = []
    async for event in events:
        if isinstance(event, Started):
            begun.clear()
        elif not begun:
            break
        begun.append(event)
        if not streamed or says_something(event):
            return begun
    raise BackendError("The replica did not start on the request; try again.")


def _predict(
    predictor: PredictorPort | None,
    stages: Stages,
    question: str,
    salt: str,
    image: ImageInput,
    param: str,
) -> Prediction | None:
    if predictor is None:
        return None
    began_s = stages.now()
    try:
        prediction = predictor.predict(image, question, salt)
    except InvalidImageError as error:
        stages.add(Stage.FEATURES, began_s, stages.now())
        raise InvalidImageError(error.message, param=param) from None
    stages.add(Stage.FEATURES, began_s, began_s + prediction.features_s)
    stages.add(Stage.PREDICT, began_s + prediction.features_s, stages.now())
    return prediction


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
