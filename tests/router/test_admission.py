"""Pressure, what it loosens and whom it refuses; over the real service with fakes at its seams."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_backend.errors import (
    BackendError,
    DeadlineExceededError,
    OverloadedError,
    ServiceError,
)
from m3_backend.messages import GenerationRequest, Started
from m3_backend.pace import EMPTY, Line
from m3_backend.scales import ScaleLadder
from m3_backend.stats import CacheStats, EngineStats
from predictor.calibration import REGRET_BOUNDS
from router.admission import (
    HALF_LIFE_S,
    NEGLIGIBLE,
    STALE_S,
    Admission,
    HeldPressure,
    Look,
    bounds_under_load,
    limit_of,
)
from router.config import LoadConfig, RouterConfig
from router.http import build_app
from router.policy import ImageCase, Limits, decide, decide_under_load
from router.service import RoutingService
from router.telemetry import Telemetry
from router.trace import Trace
from tests.fakes import MODEL, FakeBackend, FakePredictor
from tests.router.support import QUESTION, chat, client_of, image_part

CONFIG = LoadConfig(max_wait_s=2.0, max_regret_ceiling=0.2)
NO_CACHE = CacheStats(0, 0, 0, 0, 0, 0, None, 0, 0)
LADDER = ScaleLadder()
pressures = st.floats(0, 50)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def report(start_ms: float = 0.0, count: int = 1, **changes: Any) -> EngineStats:
    """A replica whose batch is full, with so much work in line."""
    line = Line(count, start_ms, 0.0) if start_ms else EMPTY
    return replace(EngineStats(16, count, 0, 16, NO_CACHE, line), **changes)


def admission(clock: Clock | None = None, **config: Any) -> Admission:
    return Admission(CONFIG.model_copy(update=config), threads=2, clock=clock or Clock())


# Pressure: work in line ÷ pace.


def test_pressure_is_the_work_in_line_over_the_pace_of_all_replicas() -> None:
    door = admission()
    assert door.look().pressure == 0
    door.take_report([report(1000.0), report(3000.0, pace=3.0)], EMPTY)
    assert door.look() == Look(wait_s=1.0, pressure=0.5, held=0.5)


def test_free_slots_are_waited_for_by_nobody() -> None:
    """A request that finds a free slot waits for the prompts before it, not for their answers."""
    line = Line(4, start_ms=400.0, hold_ms=8000.0)
    door = admission()
    door.take_report([report(running=12, line=line)], EMPTY)
    assert door.look().wait_s == pytest.approx(0.4)
    door.take_report([report(running=15, line=line)], EMPTY)
    assert door.look().wait_s == pytest.approx(0.4 + 6.0)


def test_what_was_handed_over_since_the_last_report_counts_until_it_begins() -> None:
    door = admission()
    tickets = [door.arrive()[1] for _ in range(3)]
    for ticket in tickets:
        ticket.planned(Line(1, 500.0, 0.0), 0.01)
    assert door.look().wait_s == pytest.approx(1.5)
    door.take_report([report(1500.0, count=3)], own_then=door.own)  # the very same three
    assert door.look().wait_s == pytest.approx(1.5)
    tickets[0].begun()
    assert door.look().wait_s == pytest.approx(1.0)
    tickets[1].close()  # its caller has left
    assert door.look().wait_s == pytest.approx(0.5)
    door.take_report([report(4500.0, count=9)], own_then=door.own)  # others came
    tickets[2].begun()
    assert door.look().wait_s == pytest.approx(4.0)
    assert door.in_flight == 2
    for ticket in tickets:
        ticket.close()
        ticket.close()
    assert door.in_flight == 0
    assert door.own == EMPTY


def test_what_is_being_planned_counts_like_the_last_ones() -> None:
    door = admission(max_wait_s=100.0)
    for _ in range(500):
        _, ticket = door.arrive()
        ticket.planned(Line(1, 1000.0, 0.0), planning_s=0.2)
        ticket.close()
    for _ in range(4):
        door.arrive()
    # Planning takes 0.2 s on one of two threads; then the replica has four times a second of work.
    assert door.look().wait_s == pytest.approx(4 * 0.2 / 2 + 4 * 1.0)


def test_the_wait_for_a_planning_thread_is_not_counted_twice() -> None:
    """Eight came at once, and the last of them took four times as long as on a thread alone."""
    door = admission(max_wait_s=100.0)
    for _ in range(200):
        tickets = [door.arrive()[1] for _ in range(8)]
        for turn, ticket in enumerate(tickets):
            ticket.planned(EMPTY, planning_s=0.1 * (turn // 2 + 1))
            ticket.close()
    for _ in range(2):
        door.arrive()
    assert 0.05 <= door.look().wait_s <= 0.4


def test_the_first_request_is_no_example_of_planning() -> None:
    door = admission()
    door.arrive()[1].planned(EMPTY, planning_s=1.0)  # libraries were loaded, too
    door.arrive()
    assert door.look().pressure < CONFIG.loosen_at


def test_a_report_that_is_too_old_is_forgotten() -> None:
    clock = Clock()
    door = admission(clock)
    door.take_report([report(9000.0)], EMPTY)
    door.take_report([], EMPTY)  # nobody answered
    assert door.look().pressure > 1
    clock.now += STALE_S
    assert door.look().pressure == 0


# Loosening: the service's own bound, stepwise, and back.


def test_the_bound_loosens_over_the_certified_ones_up_to_the_ceiling() -> None:
    reached = {
        pressure: bounds_under_load(0.05, REGRET_BOUNDS, CONFIG, pressure)
        for pressure in (0.0, 0.24, 0.25, 0.44, 0.63, 0.82, 9.0)
    }
    assert reached == {
        0.0: (0.05,),
        0.24: (0.05,),
        0.25: (0.05, 0.075),
        0.44: (0.05, 0.075, 0.1),
        0.63: (0.05, 0.075, 0.1, 0.15),
        0.82: (0.05, 0.075, 0.1, 0.15, 0.2),
        9.0: (0.05, 0.075, 0.1, 0.15, 0.2),
    }


@pytest.mark.parametrize("ceiling", [0.0, 0.05, 0.06])
def test_a_ceiling_below_the_next_certified_bound_loosens_nothing(ceiling: float) -> None:
    config = LoadConfig(max_regret_ceiling=ceiling)
    assert bounds_under_load(0.05, REGRET_BOUNDS, config, 99.0) == (0.05,)


@given(pressures, pressures, st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 0.99))
def test_more_pressure_never_gives_a_stricter_bound_nor_one_above_the_ceiling(
    a: float, b: float, default: float, ceiling: float, loosen_at: float
) -> None:
    config = LoadConfig(max_regret_ceiling=ceiling, loosen_at=loosen_at)
    low, high = (
        bounds_under_load(default, REGRET_BOUNDS, config, p) for p in (min(a, b), max(a, b))
    )
    assert high[: len(low)] == low
    assert high == tuple(sorted(high))
    assert high[0] == default
    assert all(bound <= ceiling for bound in high[1:])


@given(st.floats(0, 0.99), st.floats(0.01, 0.4))
def test_every_step_comes_before_the_first_refusal(loosen_at: float, ceiling: float) -> None:
    config = LoadConfig(max_regret_ceiling=ceiling, loosen_at=loosen_at)
    almost = bounds_under_load(0.005, REGRET_BOUNDS, config, 1.0 - 1e-9)
    assert almost == bounds_under_load(0.005, REGRET_BOUNDS, config, 50.0)


probabilities = st.lists(st.floats(0, 1), min_size=5, max_size=5).map(tuple)
images = st.lists(
    st.builds(
        ImageCase,
        tokens=st.just((1, 9, 36, 144, 576)),
        p_success=st.none() | probabilities,
        detail=st.sampled_from(("auto", "low", "high")),
    ),
    min_size=1,
    max_size=3,
)
limits = st.builds(
    Limits,
    max_regret=st.just(0.05),
    min_scale=st.none() | st.sampled_from((1, 9, 36)),
    max_scale=st.none() | st.sampled_from((36, 144, 576)),
    latency_budget_ms=st.none() | st.floats(1, 200),
)


@given(images, limits, pressures, pressures, st.integers(10, 2000))
def test_more_pressure_never_gives_a_finer_scale(
    cases: list[ImageCase], limits: Limits, a: float, b: float, room: int
) -> None:
    prices = FakePredictor(thresholds=[(b, 100 * b**3) for b in REGRET_BOUNDS]).threshold

    def scales(pressure: float) -> tuple[int, ...]:
        bounds = bounds_under_load(0.05, REGRET_BOUNDS, CONFIG, pressure)
        decision = decide_under_load(
            cases, LADDER, limits, bounds, prices, lambda tokens: 0.1 * tokens, room
        )
        assert decision.cost_ms == pytest.approx(0.1 * sum(i.tokens for i in decision.images))
        for image in decision.images:
            assert limits.min_scale is None or image.scale >= limits.min_scale
        return decision.scales

    calm, busy = scales(min(a, b)), scales(max(a, b))
    assert all(after <= before for before, after in zip(calm, busy, strict=True))


def test_one_image_may_not_take_what_load_has_taken_from_another() -> None:
    """Both would like 576 tokens and the context has room for one: both get 144. At a looser bound
    the first needs 1, which would leave room for the second."""
    cases = [
        ImageCase((1, 9, 36, 144, 576), p) for p in ((0.8, 0.8, 0.8, 0.8, 0.9), (0, 0, 0, 0, 1.0))
    ]
    prices = {0.05: 0.01, 0.1: 0.5}

    def threshold(bound: float) -> float:
        return prices[2 * bound]

    def bounded(*bounds: float) -> tuple[int, ...]:
        return decide_under_load(
            cases, LADDER, Limits(0.05), bounds, threshold, float, image_room=600
        ).scales

    assert decide(cases, LADDER, Limits(0.1), threshold, float, 600).scales == (1, 576)
    strict = bounded(0.05)
    assert all(a <= b for a, b in zip(bounded(0.05, 0.1), strict, strict=True))


def test_held_pressure_rises_at_once_and_falls_within_seconds() -> None:
    held = HeldPressure()
    assert held.follow(1.2, 0.0) == 1.2
    assert held.follow(0.0, HALF_LIFE_S) == pytest.approx(0.6)
    assert held.follow(0.9, HALF_LIFE_S) == 0.9
    value, now = 1.0, HALF_LIFE_S
    while value >= CONFIG.loosen_at:
        now += 0.1
        value = held.follow(0.0, now)
    assert now < 4.0
    assert held.follow(0.0, now + 10) == 0


def test_a_pressure_that_wavers_does_not_flap() -> None:
    """Around the very pressure of a step, as much as ±10%, ten times a second, for ten seconds."""
    held, bounds = HeldPressure(), []
    for tick in range(100):
        wavering = CONFIG.loosen_at * (1.1 if tick % 2 else 0.9)
        bounds.append(
            bounds_under_load(0.05, REGRET_BOUNDS, CONFIG, held.follow(wavering, tick / 10))
        )
    assert bounds[0] == (0.05,)
    assert set(bounds[1:]) == {(0.05, 0.075)}


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 5)), max_size=30))
def test_held_pressure_is_never_below_the_pressure(
    steps: list[tuple[float, float]],
) -> None:
    held, now = HeldPressure(), 0.0
    for pressure, later in steps:
        now += later
        value = held.follow(pressure, now)
        assert value >= pressure or pressure <= NEGLIGIBLE


# The service: who is refused, and what the response says.


def service(backend: FakeBackend | None = None, **config: Any) -> RoutingService:
    load = {"max_regret_ceiling": 0.2} | config.pop("load", {})
    settings = RouterConfig(load=LoadConfig(**load), **config)
    clock = Clock()
    return RoutingService(
        backend or FakeBackend(),
        FakePredictor(),
        settings,
        clock=clock,
        admission=Admission(settings.load, 2, clock=clock),
    )


def press(routing: RoutingService, pressure: float) -> None:
    """Puts the service under a pressure that others have made."""
    start_ms = pressure * routing.config.load.max_wait_s * 1e3
    routing.admission.take_report([report(start_ms)], EMPTY)


async def ask(routing: RoutingService, body: dict[str, Any] | None = None) -> httpx.Response:
    async with client_of(build_app(routing)) as client:
        return await client.post("/v1/chat/completions", json=body or chat())


async def test_under_load_the_services_own_bound_loosens_and_the_response_says_so() -> None:
    routing = service()
    calm = await ask(routing)
    assert (calm.headers["x-m3-scale"], calm.headers["x-m3-max-regret"]) == ("36", "0.05")
    assert "x-m3-loosened-from" not in calm.headers
    assert calm.json()["m3"]["loosened_from"] is None
    press(routing, 0.9)
    busy = await ask(routing)
    assert (busy.headers["x-m3-scale"], busy.headers["x-m3-max-regret"]) == ("9", "0.2")
    assert busy.headers["x-m3-loosened-from"] == "0.05"
    assert busy.json()["m3"]["loosened_from"] == 0.05
    assert busy.json()["m3"]["reason"] == ["predicted"]


EXPLICIT: dict[str, dict[str, Any]] = {
    "max_regret": chat(m3={"max_regret": 0.05}),
    "a strict max_regret": chat(m3={"max_regret": 0.01}),
    "scale": chat(m3={"scale": 144}),
    "model": chat(model="m3-576"),
    "min_scale": chat(m3={"min_scale": 36}),
    "detail high": chat(image_part(detail="high"), QUESTION),
}


@pytest.mark.parametrize("case", EXPLICIT)
async def test_what_the_caller_has_said_is_never_changed(case: str) -> None:
    routing = service()
    calm = await ask(routing, EXPLICIT[case])
    press(routing, 0.99)
    busy = await ask(routing, EXPLICIT[case])
    assert busy.headers["x-m3-scale"] == calm.headers["x-m3-scale"]
    if case not in ("min_scale", "detail high"):
        assert "x-m3-loosened-from" not in busy.headers
        assert busy.headers["x-m3-max-regret"] == calm.headers["x-m3-max-regret"]


async def test_beyond_the_longest_wait_the_answer_is_429_with_the_time_of_the_backlog() -> None:
    backend = FakeBackend()
    routing = service(backend)
    press(routing, 3.2)
    refused = await ask(routing)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "overloaded"
    assert refused.headers["retry-after"] == "7"  # 6.4 s of work
    assert backend.requests == []


async def test_a_refusal_does_not_wait_for_the_body() -> None:
    routing = service()
    press(routing, 1.5)

    async def unread() -> Any:
        raise AssertionError("somebody reads it")
        yield b""

    async with client_of(build_app(routing)) as client:
        refused = await client.post("/v1/chat/completions", content=unread())
    assert refused.status_code == 429


@pytest.mark.parametrize("path", ["/v1/route", "/v1/route/batch"])
async def test_explanations_are_refused_like_answers(path: str) -> None:
    routing = service()
    press(routing, 1.5)
    async with client_of(build_app(routing)) as client:
        assert (await client.post(path, json=chat())).status_code == 429
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


async def test_batch_is_refused_earlier_and_before_its_images_are_looked_at() -> None:
    backend = FakeBackend()
    routing = service(backend)
    press(routing, 0.6)
    batch = chat(image_part(b"no image at all"), QUESTION, m3={"priority": "batch"})
    refused = await ask(routing, batch)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert (await ask(routing)).status_code == 200
    press(routing, 0.4)
    assert (await ask(routing, batch)).json()["error"]["code"] == "unsupported_image_format"
    assert (await ask(routing, chat(m3={"priority": "batch"}))).status_code == 200
    assert [request.priority for request in backend.requests] == ["interactive", "batch"]


@given(pressures)
def test_whoever_refuses_interactive_refuses_batch(pressure: float) -> None:
    look = Look(pressure * CONFIG.max_wait_s, pressure, pressure)

    def refused(priority: Any) -> bool:
        try:
            look.require(priority, CONFIG)
        except OverloadedError:
            return True
        return False

    assert refused("interactive") == (pressure >= 1)
    assert refused("batch") == (pressure >= limit_of("batch", CONFIG))
    assert refused("batch") or not refused("interactive")


async def test_a_shorter_time_of_the_callers_own_reaches_the_replica() -> None:
    backend = FakeBackend()
    routing = service(backend, request_timeout_s=30.0)
    for timeout_ms in (5_000, 90_000):
        await ask(routing, chat(m3={"timeout_ms": timeout_ms}))
    assert [request.deadline for request in backend.requests] == [105.0, 130.0]


async def test_what_cannot_be_in_time_is_refused_at_once() -> None:
    backend = FakeBackend()
    routing = service(backend)
    press(routing, 0.5)  # one second of others' work
    with pytest.raises(OverloadedError) as caught:
        await handle(routing, chat(m3={"timeout_ms": 800}))
    assert caught.value.retry_after_s == 1.0
    with pytest.raises(DeadlineExceededError):
        await handle(routing, chat(m3={"timeout_ms": 5}))  # encoding alone takes 10 ms
    assert backend.requests == []
    await handle(routing, chat(m3={"timeout_ms": 1_500}))
    assert len(backend.requests) == 1


async def handle(routing: RoutingService, body: dict[str, Any]) -> Any:
    return await routing.handle(json.dumps(body).encode(), Trace("id"))


async def test_requests_are_counted_from_the_door_to_their_end_however_they_end() -> None:
    routing = service()
    door = routing.admission
    answer = await handle(routing, chat())
    assert (door.in_flight, door.own) == (1, EMPTY)
    async with aclosing(answer):
        async for _ in answer:
            pass
    assert door.in_flight == 0
    for backend, body in (
        (FakeBackend(), chat(model="gpt-4o")),
        (FakeBackend(error=OverloadedError("full")), chat()),
    ):
        routing = service(backend)
        with pytest.raises(ServiceError):
            await handle(routing, body)
        assert routing.admission.in_flight == 0
        assert routing.admission.look().wait_s == 0


async def test_a_request_waits_in_line_until_a_replica_takes_it_up() -> None:
    class Busy(FakeBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            await asyncio.Event().wait()
            yield

    routing = service(Busy())
    task = asyncio.ensure_future(handle(routing, chat(model="m3-576")))
    while not routing.admission.own.count:
        await asyncio.sleep(0)
    start_ms = MODEL.costs.start_ms(576 + len(QUESTION) // 4, 1)
    assert routing.admission.own.start_ms == pytest.approx(start_ms)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (routing.admission.own, routing.admission.in_flight) == (EMPTY, 0)


@pytest.mark.parametrize("begins_first", [False, True])
async def test_a_request_whose_replica_is_lost_stands_in_line_once_more(begins_first: bool) -> None:
    """One ticket from the door to the end, however many replicas it takes."""
    second, asked, free = FakeBackend(), asyncio.Event(), asyncio.Event()

    class Dying(FakeBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            self.requests.append(request)
            if len(self.requests) == 1:
                if begins_first:
                    yield Started((36,), 50, ("miss",), 0.0, 0.0, 0.0)
                raise BackendError("gone", code="replica_lost")
            asked.set()
            await free.wait()
            async for event in second.generate(request):
                yield event

    routing = service(Dying())
    door = routing.admission
    task = asyncio.ensure_future(handle(routing, chat(stream=True)))
    await asked.wait()
    assert (door.own.count, door.in_flight) == (1, 1)
    free.set()
    async with aclosing(await task) as answer:
        assert (door.own, door.in_flight) == (EMPTY, 1)
        assert [event async for event in answer]
    assert (door.own, door.in_flight) == (EMPTY, 0)


async def test_the_callers_own_deadline_bounds_what_comes_after_a_loss() -> None:
    class Gone(FakeBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            self.requests.append(request)
            if len(self.requests) == 1:
                raise BackendError("gone", code="replica_lost")
            await asyncio.Event().wait()  # Serve holds a request until there is a replica
            yield

    backend = Gone()
    routing = service(backend)
    with pytest.raises(BackendError) as caught:
        async with asyncio.timeout(60):  # half of the service's own
            await handle(routing, chat(m3={"timeout_ms": 500}))
    assert caught.value.code == "backend_unavailable"
    assert len({request.deadline for request in backend.requests}) == 1
    assert (routing.admission.own, routing.admission.in_flight) == (EMPTY, 0)


async def test_replicas_are_asked_and_their_silence_is_survived() -> None:
    class Silent(FakeBackend):
        async def stats(self) -> Any:
            raise ConnectionError

    backend = FakeBackend()
    backend.reports = {"one": report(1000.0)}
    routing = service(backend)
    await routing.ask_load()
    assert routing.admission.latest.wait_s == 1.0
    silent = service(Silent())
    await silent.ask_load()
    assert silent.admission.latest.wait_s == 0.0


async def test_the_app_asks_in_the_background_while_it_lives() -> None:
    asked = asyncio.Event()

    class Asked(FakeBackend):
        async def stats(self) -> Any:
            asked.set()
            return {}

    app = build_app(service(Asked()))
    async with app.router.lifespan_context(app):
        await asyncio.wait_for(asked.wait(), 30)


async def test_a_service_that_is_stopped_finishes_what_it_has_and_takes_nothing_new() -> None:
    routing = service()
    answer = await handle(routing, chat())
    routing.admission.stop()
    async with client_of(build_app(routing)) as client:
        refused = await client.post("/v1/chat/completions", json=chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200
    async with aclosing(answer):
        assert [event async for event in answer]
    assert routing.admission.in_flight == 0


async def test_metrics_of_load() -> None:
    routing, telemetry = service(), Telemetry()
    async with client_of(build_app(routing, telemetry)) as client:

        async def post(**m3: Any) -> None:
            await client.post("/v1/chat/completions", json=chat(m3=m3))

        press(routing, 0.75)
        await post()
        await post(max_regret=0.05)
        await post(priority="batch")
        press(routing, 2.0)
        await post()
        exposition = (await client.get("/metrics")).text
    lines = dict(line.rsplit(" ", 1) for line in exposition.splitlines() if line[0] != "#")
    assert float(lines["m3_pressure"]) == pytest.approx(2.0)
    assert lines["m3_loosened_requests_total"] == "1.0"
    assert lines['m3_shed_requests_total{priority="batch"}'] == "1.0"
    assert lines['m3_shed_requests_total{priority="interactive"}'] == "1.0"
