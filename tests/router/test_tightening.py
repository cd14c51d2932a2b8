"""A promise that labels have broken: what is decided then, who hears of it, for how long."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from router.config import RouterConfig
from router.http import build_app
from router.service import RoutingService
from router.tightening import Board, Publisher, TighteningWatch
from tests.conftest import RedisServer
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import chat, client_of, image_part

BROKEN = {0.05: 0.08}  # the threshold of the service's own bound; that of 0.01 stands
ALL_BROKEN = {0.01: 0.2, 0.05: 0.2, 0.2: 0.3}


def service_with(predictor: FakePredictor | None = None) -> RoutingService:
    return RoutingService(FakeBackend(), predictor or FakePredictor(), RouterConfig())


async def decided(service: RoutingService, body: dict[str, Any]) -> tuple[Any, ...]:
    """Scales, promise and what it was tightened to; headers say the same as the body."""
    async with client_of(build_app(service)) as client:
        response = await client.post("/v1/route", json=body)
    told = response.json()["m3"]
    to = told["tightened_to"]
    assert response.headers.get("x-m3-tightened-to") == (None if to is None else f"{to:g}")
    return told["scale"], told["max_regret"], to


@pytest.mark.parametrize(
    ("lows", "asked", "expected"),
    [
        ({}, {}, ([36], 0.05, None)),
        (BROKEN, {}, ([144], 0.05, 0.01)),
        (ALL_BROKEN, {}, ([576], 0.05, 0.0)),
        (BROKEN, {"max_regret": 0.06}, ([144], 0.06, 0.01)),  # an explicit promise is one too
        (BROKEN, {"max_regret": 0.1}, ([36], 0.1, None)),  # which is kept as it is
        (BROKEN, {"max_regret": 0.01}, ([144], 0.01, None)),
        (BROKEN, {"scale": 1}, ([1], None, None)),
        (BROKEN, {"max_scale": 36}, ([36], None, 0.01)),  # no promise, decided likewise
    ],
)
async def test_the_promise_stays_and_a_stricter_price_keeps_it(
    lows: dict[float, float], asked: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    service = service_with()
    service.tighten("fake-1", lows)
    assert await decided(service, chat(m3=asked)) == expected


async def test_images_of_one_request_share_the_promise() -> None:
    service = service_with()
    service.tighten("fake-1", {0.01: 0.03})
    two = chat(image_part(), image_part(), "Which?")
    assert await decided(service, two) == ([576, 576], 0.05, 0.0)
    assert await decided(service, chat()) == ([36], 0.05, None)


async def test_it_lasts_until_another_predictor_serves() -> None:
    service = service_with()
    service.tighten("fake-1", BROKEN)
    assert service.tightened_to == 0.01
    other = FakePredictor()
    other.version = "fake-2"
    service.use(other)
    assert service.tightened_to is None
    assert await decided(service, chat()) == ([36], 0.05, None)
    service.use(FakePredictor())  # rolled back
    assert service.tightened_to == 0.01


async def test_readiness_and_metrics_tell_of_it() -> None:
    service = service_with()
    service.tighten("fake-1", BROKEN)
    async with client_of(build_app(service)) as client:
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        told = {"status": "tightened", "tightened_to": 0.01}
        assert ready.json()["components"]["policy"] == told
        await client.post("/v1/route", json=chat())
        text = (await client.get("/metrics")).text
        assert "\nm3_tightened 1.0\n" in text
        assert "\nm3_tightened_requests_total 1.0\n" in text


async def test_every_ingress_follows_and_it_outlives_them(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    board = Board(redis_server.url)
    Publisher(board).publish({"fake-1": {0.05: 0.08, 0.01: 0.0}, "fake-0": {0.05: 0.9}})
    services = [service_with(), service_with()]
    watches = [TighteningWatch(Board(redis_server.url)) for _ in services]
    with caplog.at_level(logging.WARNING, "m3_router.policy"):
        for watch, service in zip(watches, services, strict=True):
            await watch.look(service)
            await watch.look(service)
            assert service.tightened_to == 0.01
    assert len(caplog.records) == 2  # once each
    assert "price of 0.01" in caplog.text
    board.raise_to("fake-1", {0.05: 0.02, 0.01: 0.04})  # a recorder that has begun anew
    assert board.read("fake-1") == {0.05: 0.08, 0.01: 0.04}
    later = service_with()
    await TighteningWatch(Board(redis_server.url)).look(later)
    assert later.tightened_to == 0.01
    assert redis_server.client().ttl("m3:lows:fake-1") == -1
    redis_server.client().flushall()


async def test_while_redis_is_away_what_was_known_holds() -> None:
    gone = Board("redis://127.0.0.1:1/0")
    Publisher(gone).publish({"fake-1": BROKEN})
    service = service_with()
    service.tighten("fake-1", BROKEN)
    await TighteningWatch(gone).look(service)
    assert service.tightened_to == 0.01
