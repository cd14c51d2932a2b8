"""The whole story of a request: parse → look at the images → predict → decide → hand over.

`router/planning.py` has the first four, `router/answering.py` what becomes of the last.

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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import ParamSpec, TypeVar

from m3_backend.errors import (
    ServiceError,
)
from m3_backend.messages import (
    GenerationRequest,
    ModelInfo,
    Pool,
)
from m3_backend.pace import Line
from predictor.records import Target
from predictor.tightening import Lows
from router.admission import Admission, Look, Ticket
from router.answering import Answer, beginning, until, watched
from router.config import RouterConfig
from router.conversation import Conversation
from router.draws import Draws
from router.errors import ShuttingDownError
from router.in_force import InForce
from router.planning import Asked, Plan, Planner
from router.pools import PoolLoads
from router.ports import BackendPort, PredictorPort, Replicas
from router.remote_images import ImageFetcher
from router.retry import Retrying
from router.schemas import ChatRequest, chat_request, parse_batch, parse_chat_request
from router.stages import Stage, Stages
from router.trace import Facts, Trace

logger = logging.getLogger("m3_router.load")

P = ParamSpec("P")
T = TypeVar("T")

ASK_TIMEOUT_S = 2.0  # for the replicas' load


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
        self._planner = Planner(config, lambda: self._in_force, fetches=self._fetcher is not None)
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
            lambda: until(self._backend.generate(request), deadline, self._clock),
            streamed=trace.stream,
            deadline=deadline,
            lost=partial(_lost, trace, ticket),
        )
        events = watched(charge.settled_by(answering), trace, ticket)
        try:
            begun = await beginning(events, streamed=trace.stream)
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
        plan = await self._off_loop(trace.stages, self._planner.plan, read, info, trace, look)
        if isinstance(plan, Asked):
            deadline = self._callers_deadline(plan.chat, deadline)
            fetched = await self._fetch(plan.conversation, trace, deadline)
            plan = await self._off_loop(
                trace.stages, self._planner.decide, plan, info, trace, fetched
            )
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


def _lost(trace: Trace, ticket: Ticket) -> None:
    trace.lost()
    ticket.lost()
