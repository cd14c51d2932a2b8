from __future__ import annotations

import asyncio
import json
import threading
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from m3_backend.errors import (
    BackendError,
    DeadlineExceededError,
    InvalidImageError,
    OverloadedError,
    ServiceError,
)
from m3_backend.messages import Delta, Finished, ImageSlot, Sampling, Started, Turn, digest_of
from m3_backend.scales import Tiling
from router.config import RouterConfig
from router.remote_images import ImageFetcher
from router.service import RoutingService
from router.trace import Trace
from tests.fakes import MODEL, FakeBackend, FakePredictor
from tests.router.support import QUESTION, chat, image_part, picture

NOW = 1_000.0


def service(
    backend: FakeBackend, predictor: FakePredictor | None = None, **config: Any
) -> RoutingService:
    return RoutingService(backend, predictor, RouterConfig(**config), clock=lambda: NOW)


def encoded(*parts: Any, **options: Any) -> bytes:
    return json.dumps(chat(*parts, **options)).encode()


async def test_what_reaches_the_replica() -> None:
    backend = FakeBackend()
    data = picture()
    body = encoded(
        image_part(data), QUESTION, max_tokens=9, m3={"cache_salt": "tenant", "max_regret": 0.2}
    )
    routing = service(backend, FakePredictor(), request_timeout_s=30.0)
    await routing.handle(body, Trace("id-1"))
    (request,) = backend.requests
    assert request.request_id == "id-1"
    assert request.turns == (Turn("user", (ImageSlot(0), QUESTION)),)
    assert [image.digest for image in request.images] == [digest_of(data)]
    assert request.scales == (9,)
    assert request.sampling == Sampling(max_tokens=9)
    assert request.cache_salt == "tenant"
    assert request.deadline == NOW + 30.0


async def test_the_answer_is_relayed_and_traced() -> None:
    trace = Trace("id-1", timer=iter(range(100)).__next__)
    answer = await service(FakeBackend(), FakePredictor()).handle(encoded(), trace)
    events = [event async for event in answer]
    assert "".join(e.text for e in events if isinstance(e, Delta)) == "a red square"
    assert isinstance(events[-1], Finished)
    assert trace.decision is not None
    assert trace.decision.scales == (36,)
    assert trace.started is answer.started
    assert trace.finished is events[-1]
    assert trace.predictor == "fake-1"
    # A whole answer's text comes at its end: its first token was there once it had been prefilled.
    assert (trace.routing_s, trace.handed_s, trace.started_s) == (1, 3, 4)
    assert trace.ttft_s == pytest.approx(4 + events[-1].prefill_ms / 1e3)


async def test_a_streamed_answer_has_its_first_token_when_its_first_text_comes() -> None:
    trace = Trace("id-1", timer=iter(range(100)).__next__)
    answer = await service(FakeBackend(), FakePredictor()).handle(encoded(stream=True), trace)
    async for _ in answer:
        pass
    assert (trace.started_s, trace.ttft_s) == (4, 5)


async def test_every_image_is_predicted_for_the_last_question_under_the_salt() -> None:
    predictor = FakePredictor()
    first, second = picture(size=(10, 10)), picture(size=(20, 20))
    body = encoded(image_part(first), image_part(second), QUESTION, m3={"cache_salt": "s"})
    await service(FakeBackend(), predictor).handle(body, Trace("id"))
    assert predictor.asked == [(digest_of(data), QUESTION, "s") for data in (first, second)]


async def test_prediction_does_not_block_the_event_loop() -> None:
    predictor = FakePredictor()
    await service(FakeBackend(), predictor).plan(encoded(), Trace("id"))
    assert predictor.threads
    assert threading.get_ident() not in predictor.threads


async def test_planning_runs_no_model() -> None:
    backend = FakeBackend()
    plan = await service(backend, FakePredictor()).plan(encoded(), Trace("id"))
    assert plan.decision.scales == (36,)
    assert backend.requests == []


async def test_cost_counts_text_images_and_encoding() -> None:
    plan = await service(FakeBackend()).plan(encoded(image_part(), "x" * 400), Trace("id"))
    assert plan.decision.cost_ms == pytest.approx(10.0 + 5.0 + 0.1 * (100 + 576))


async def test_images_share_the_context_with_text_and_an_answer() -> None:
    small = FakeBackend(replace(MODEL, max_context=1312))
    body = encoded(image_part(), image_part(), "x" * 384)
    plan = await service(small).plan(body, Trace("id"))  # 1312 - 384 ÷ 4 - 64 = 2 × 576
    assert plan.decision.scales == (576, 576)
    longer = encoded(image_part(), image_part(), "x" * 388)
    plan = await service(small).plan(longer, Trace("id"))
    assert [(i.scale, i.reason) for i in plan.decision.images] == [(144, "context")] * 2
    forced = await service(small).plan(
        encoded(image_part(), "x" * 5000, model="m3-576"), Trace("id")
    )
    assert forced.decision.scales == (576,)


async def test_tiled_models_count_tokens_by_the_picture() -> None:
    tiled = replace(MODEL, tiling=Tiling(336, ((336, 672), (672, 336), (672, 672))))
    image = image_part(picture(size=(640, 480)))
    plan = await service(FakeBackend(tiled)).plan(encoded(image, QUESTION), Trace("id"))
    assert plan.cases[0].tokens == (7, 37, 166, 594, 2340)


@pytest.mark.parametrize("predictor", [None, FakePredictor()], ids=["forwarded", "predicted"])
async def test_a_truncated_image_is_the_callers_error_on_every_path(
    predictor: FakePredictor | None,
) -> None:
    """The header is whole, so whoever decodes first finds out: the predictor or the replica."""
    body = encoded(image_part(picture(size=(200, 200))[:-40]), QUESTION)
    with pytest.raises(InvalidImageError) as caught:
        await service(FakeBackend(), predictor).handle(body, Trace("id"))
    assert (caught.value.status, caught.value.code) == (400, "invalid_image")


async def test_an_error_before_the_start_is_the_requests_error() -> None:
    with pytest.raises(OverloadedError):
        await service(FakeBackend(error=OverloadedError("full"))).handle(encoded(), Trace("id"))


async def test_a_replica_that_says_nothing() -> None:
    class Mute(FakeBackend):
        async def generate(self, request: Any) -> Any:
            return
            yield

    with pytest.raises(BackendError):
        await service(Mute()).handle(encoded(), Trace("id"))


async def test_an_answer_without_an_end_is_an_error() -> None:
    class Cut(FakeBackend):
        async def generate(self, request: Any) -> Any:
            async for event in super().generate(request):
                if not isinstance(event, Finished):
                    yield event

    answer = await service(Cut()).handle(encoded(), Trace("id"))
    with pytest.raises(BackendError):
        async for _ in answer:
            pass


@pytest.mark.parametrize("taken", [0, 1])
async def test_closing_an_answer_ends_it_on_the_replica(taken: int) -> None:
    backend = FakeBackend()
    answer = await service(backend).handle(encoded(), Trace("id"))
    async with aclosing(answer):
        events = aiter(answer)
        for _ in range(taken):
            await anext(events)
        assert not backend.closed.is_set()
    assert backend.closed.is_set()


async def test_a_replica_that_never_starts_is_given_up_on_at_the_deadline() -> None:
    class Stuck(FakeBackend):
        async def generate(self, request: Any) -> Any:
            try:
                await asyncio.Event().wait()
                yield
            finally:
                self.closed.set()

    backend = Stuck()
    late = iter([NOW, NOW, NOW + 30.0]).__next__  # arrival, hand-over, nothing
    routing = RoutingService(backend, None, RouterConfig(request_timeout_s=30.0), clock=late)
    with pytest.raises(DeadlineExceededError):
        await routing.handle(encoded(), Trace("id"))
    assert backend.closed.is_set()


async def test_an_answer_that_stops_is_given_up_on_at_the_deadline() -> None:
    backend = FakeBackend(hold_after=1)
    late = iter([NOW, NOW, NOW, NOW, NOW + 30.0]).__next__  # …, Started, one Delta, nothing
    routing = RoutingService(backend, None, RouterConfig(request_timeout_s=30.0), clock=late)
    answer = await routing.handle(encoded(), Trace("id"))
    events = aiter(answer)
    assert [type(await anext(events)) for _ in range(2)] == [Started, Delta]
    with pytest.raises(DeadlineExceededError):
        await anext(events)
    assert backend.closed.is_set()


async def test_a_time_out_inside_the_backend_is_not_the_deadline() -> None:
    routing = service(FakeBackend(error=TimeoutError("a socket's")))
    with pytest.raises(TimeoutError, match="a socket's"):
        await routing.handle(encoded(), Trace("id"))


async def test_requests_are_refused_before_the_backend_sees_them() -> None:
    backend = FakeBackend()
    with pytest.raises(ServiceError):
        await service(backend, FakePredictor()).handle(encoded(model="gpt-4o"), Trace("id"))
    assert backend.requests == []


URL = "https://images.example/a.png"


class Shelf(ImageFetcher):
    """A fetcher that has what it was given, and knows who asked for what."""

    def __init__(self, **held: bytes) -> None:
        self.held = held or {URL: picture()}
        self.asked: list[tuple[dict[str, str], float, int]] = []

    async def fetch(self, wanted: Any, patience_s: float) -> dict[str, bytes]:
        self.asked.append((dict(wanted), patience_s, threading.get_ident()))
        return {url: self.held[url] for url in wanted}


async def test_remote_images_are_fetched_by_the_event_loop_and_used_like_any_other() -> None:
    backend, predictor, shelf = FakeBackend(), FakePredictor(), Shelf()
    config = RouterConfig(request_timeout_s=30.0)
    routing = RoutingService(backend, predictor, config, fetcher=shelf, clock=lambda: NOW)
    body = encoded(image_part(URL), image_part(), image_part(URL), QUESTION)
    trace = Trace("id", timer=iter(range(100)).__next__)
    await routing.handle(body, trace)
    [request] = backend.requests
    assert [image.digest for image in request.images] == [digest_of(picture())] * 3
    field = "messages[0].content[0].image_url.url"
    assert shelf.asked == [({URL: field}, 30.0, threading.get_ident())]
    assert threading.get_ident() not in predictor.threads
    assert (trace.fetch_s, trace.routing_s) == (1, 2)  # the time of others is not our own


async def test_all_images_of_a_batch_share_the_time_of_one_request() -> None:
    """Sixty-four slow hosts in a row would outlast the proxy in front, which answers nothing."""
    shelf, times = Shelf(), iter([NOW, NOW + 10, NOW + 29, NOW + 31])
    config = RouterConfig(request_timeout_s=30.0)
    routing = RoutingService(FakeBackend(), None, config, fetcher=shelf, clock=times.__next__)
    body = json.dumps({"requests": [chat(image_part(URL), QUESTION)] * 3}).encode()
    await routing.plan_batch(body, Trace("id"))
    assert [patience_s for _, patience_s, _ in shelf.asked] == [20.0, 1.0, -1.0]


async def test_nothing_is_fetched_for_a_request_that_is_refused_or_needs_nothing() -> None:
    shelf = Shelf()
    routing = RoutingService(FakeBackend(), None, RouterConfig(), fetcher=shelf)
    await routing.plan(encoded(), Trace("id"))
    for wrong in (
        encoded(image_part(URL), QUESTION, model="gpt-4o"),
        encoded(image_part(URL)),
        encoded(image_part(URL), QUESTION, m3={"scale": 7}),
    ):
        with pytest.raises(ServiceError):
            await routing.plan(wrong, Trace("id"))
    assert shelf.asked == []


async def test_what_was_fetched_is_judged_by_its_bytes() -> None:
    shelf = Shelf(**{URL: b"<html>"})
    routing = RoutingService(FakeBackend(), None, RouterConfig(), fetcher=shelf)
    with pytest.raises(ServiceError) as caught:
        await routing.plan(encoded(image_part(URL), QUESTION), Trace("id"))
    assert caught.value.code == "unsupported_image_format"
    assert caught.value.param == "messages[0].content[0].image_url.url"


async def test_a_listed_host_turns_fetching_on() -> None:
    remote = {"images": {"remote": {"hosts": ["other.example"]}}}
    for config, code in (({}, "remote_images_disabled"), (remote, "remote_image_forbidden")):
        with pytest.raises(ServiceError) as caught:
            await service(FakeBackend(), **config).plan(
                encoded(image_part(URL), QUESTION), Trace("id")
            )
        assert caught.value.code == code
