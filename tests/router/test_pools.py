"""Pools: every request fits one, promises hold, and a full pool turns away its own only."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_backend.errors import OverloadedError
from m3_backend.messages import Pool
from m3_backend.pace import Line
from m3_backend.scales import ScaleLadder
from m3_backend.stats import CacheStats, EngineStats
from router.config import LoadConfig, RouterConfig
from router.policy import Decision, ImageCase, Reason, choice_at
from router.pools import PoolLoads, fitted
from router.service import RoutingService
from router.trace import Trace
from tests.fakes import MODEL, FakeBackend
from tests.router.support import chat, image_part

LADDER = ScaleLadder()
CASE = ImageCase(tokens=LADDER.scales, p_success=(0.5, 0.6, 0.7, 0.8, 0.9))
NO_CACHE = CacheStats(0, 0, 0, 0, 0, 0, None, 0, 0)
COARSE = Pool("coarse", (1, 9, 36), MODEL.costs)
FINE = Pool("fine", (36, 144, 576), MODEL.costs)
PLENTY = 10_000


def decided(*scales: int, bound: float | None = 0.05) -> Decision:
    choices = [choice_at(CASE, LADDER, LADDER.index(s), Reason.PREDICTED) for s in scales]
    return Decision(tuple(choices), bound, float(sum(scales)))


def fit(decision: Decision, *pools: Pool, room: int = PLENTY) -> Decision:
    images = (CASE,) * len(decision.images)
    return fitted(decision, images, LADDER, pools, float, room)


def told(decision: Decision) -> list[tuple[int, str]]:
    return [(image.scale, image.reason.value) for image in decision.images]


def test_what_a_pool_serves_is_left_as_it_is() -> None:
    for scales in ((9,), (576,), (1, 36), (36, 576)):
        assert fit(decided(*scales), COARSE, FINE) == decided(*scales)
    assert fit(decided(1, 576)) == decided(1, 576)  # no pools


def test_images_of_one_request_meet_in_one_pool_at_finer_scales() -> None:
    fit_ = fit(decided(9, 144, 1), COARSE, FINE)
    assert told(fit_) == [(36, "pool"), (144, "predicted"), (36, "pool")]
    assert fit_.max_regret == 0.05
    assert fit_.cost_ms == 36 + 144 + 36
    assert fit_.images[0].p_sufficient == pytest.approx(1 - (0.9 - 0.7))


def test_without_room_they_get_coarser_and_the_promise_is_void() -> None:
    fit_ = fit(decided(9, 144), COARSE, FINE, room=60)
    assert told(fit_) == [(9, "predicted"), (36, "pool")]
    assert fit_.max_regret is None
    # Not even that fits: the fewest tokens there are, and the replica judges.
    assert fit(decided(9, 144), COARSE, FINE, room=1).scales == (9, 36)


pools = st.lists(
    st.sets(st.sampled_from(LADDER.scales), min_size=1).map(sorted).map(tuple), max_size=3
).map(lambda sets: [Pool(str(n), scales, MODEL.costs) for n, scales in enumerate(sets)])
scales = st.lists(st.sampled_from(LADDER.scales), min_size=1, max_size=4)


@given(pools, scales)
def test_some_pool_always_serves_what_comes_out_and_nothing_gets_coarser(
    some: list[Pool], chosen: list[int]
) -> None:
    served = {scale for pool in some for scale in pool.scales}
    missing = tuple(scale for scale in LADDER.scales if scale not in served)
    if missing:  # together they serve all
        some = [*some, Pool("rest", missing, MODEL.costs)]
    fit_ = fit(decided(*chosen), *some)
    assert any(pool.serves(fit_.scales) for pool in some)
    assert all(now >= then for now, then in zip(fit_.scales, chosen, strict=True))
    assert max(fit_.scales) == max(chosen)  # so ceilings of the request hold
    assert fit_.max_regret == 0.05


def busy(pool: str, wait_s: float) -> EngineStats:
    """A replica whose places are taken and that has so much work waiting."""
    line = Line(10, wait_s * 1e3, 0.0)
    return EngineStats(4, 10, 0, 4, NO_CACHE, line=line, pool=pool)


def test_the_pool_with_the_shorter_wait_is_taken() -> None:
    loads = PoolLoads(LoadConfig(), clock=lambda: 0.0)
    loads.take_report([busy("coarse", 1.5), busy("fine", 0.1)], {})
    assert loads.least_busy((COARSE, FINE), (36,)) == FINE
    assert loads.least_busy((COARSE, FINE), (9,)) == COARSE
    assert loads.least_busy((), (9,)) is None
    assert loads.of("coarse").replicas_wait_s(0.0) == pytest.approx(1.5)


def test_a_full_pool_takes_nobody_and_forgets_who_was_refused() -> None:
    loads = PoolLoads(LoadConfig(max_wait_s=2.0, batch_at=0.5), clock=lambda: 0.0)
    loads.take_report([busy("fine", 1.2)], {})
    with pytest.raises(OverloadedError):
        loads.enter("fine", "batch")
    assert loads.of("fine").in_flight == 0
    ticket = loads.enter("fine", "interactive")
    assert loads.of("fine").in_flight == 1
    ticket.close()
    loads.take_report([busy("fine", 2.5)], {})
    with pytest.raises(OverloadedError):
        loads.enter("fine", "interactive")


def pooled() -> tuple[RoutingService, FakeBackend]:
    backend = FakeBackend(replace(MODEL, pools=(COARSE, FINE)))
    return RoutingService(backend, None, RouterConfig()), backend


async def answer(service: RoutingService, *images: Any, **options: Any) -> Trace:
    body = chat(*(images or (image_part(),)), "What is it?", **options)
    trace = Trace("id")
    answer = await service.handle(json.dumps(body).encode(), trace)
    async for _ in answer:
        pass
    await answer.aclose()
    return trace


async def test_requests_go_to_a_pool_that_serves_them_and_leave_no_line_behind() -> None:
    service, backend = pooled()
    await answer(service, model="m3-9")
    await answer(service)
    assert [(r.pool, r.scales) for r in backend.requests] == [("coarse", (9,)), ("fine", (576,))]
    for load in (service.admission, service.pools.of("coarse"), service.pools.of("fine")):
        assert load.own == Line()
        assert load.in_flight == 0


async def test_a_full_fine_pool_refuses_its_own_requests_only() -> None:
    service, backend = pooled()
    backend.reports = {"one": busy("fine", 2.6), "two": replace(busy("coarse", 0.0), running=0)}
    await service.ask_load()
    with pytest.raises(OverloadedError):
        await answer(service)
    await answer(service, model="m3-9")
    assert [request.pool for request in backend.requests] == ["coarse"]
    assert service.admission.in_flight == 0
    assert service.pools.of("fine").in_flight == 0


async def test_several_images_are_moved_into_one_pool() -> None:
    service, backend = pooled()
    low, high = image_part(detail="low"), image_part(detail="high")
    trace = await answer(service, low, high)
    assert trace.decision is not None
    assert backend.requests[0].scales == trace.decision.scales == (36, 576)
    assert backend.requests[0].pool == "fine"
