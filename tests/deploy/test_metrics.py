"""Replica statistics among the ingress's metrics, through the router's own app."""

from __future__ import annotations

import httpx

from deploy.metrics import ReplicaMetrics
from m3_backend.stats import CacheStats, EngineStats
from router.config import RouterConfig
from router.http import build_app
from router.service import RoutingService
from router.telemetry import Telemetry
from tests.fakes import FakeBackend


def stats(encodes: int) -> EngineStats:
    cache = CacheStats(
        memory_hits=5,
        redis_hits=2,
        misses=4,
        encodes=encodes,
        redis_errors=1,
        redis_rejected=0,
        breaker="open",
        entries=3,
        bytes=4096,
    )
    return EngineStats(running=2, waiting=1, outstanding_tokens=700, slots=16, cache=cache)


def client_of(replicas: ReplicaMetrics) -> httpx.AsyncClient:
    telemetry = Telemetry()
    telemetry.registry.register(replicas)
    service = RoutingService(FakeBackend(), None, RouterConfig())
    app = build_app(service, telemetry, before_scrape=replicas.refresh)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_a_scrape_shows_what_every_replica_counts_now() -> None:
    encodes = 0

    async def ask() -> dict[str, EngineStats]:
        nonlocal encodes
        encodes += 1
        return {"one": stats(encodes), "two": stats(10 * encodes)}

    async with client_of(ReplicaMetrics(ask)) as client:
        await client.get("/metrics")
        text = (await client.get("/metrics")).text
    assert 'm3_vision_encodings_total{replica="one"} 2.0' in text
    assert 'm3_vision_encodings_total{replica="two"} 20.0' in text
    assert 'm3_replica_outstanding_tokens{replica="one"} 700.0' in text
    assert 'm3_redis_breaker_open{replica="one"} 1.0' in text


async def test_only_scrapes_ask_the_replicas() -> None:
    async def ask() -> dict[str, EngineStats]:
        raise AssertionError("asked")

    async with client_of(ReplicaMetrics(ask)) as client:
        assert (await client.get("/healthz")).status_code == 200


async def test_replicas_that_do_not_answer_leave_the_last_figures_standing() -> None:
    async def ask() -> dict[str, EngineStats]:
        raise ConnectionError

    replicas = ReplicaMetrics(ask)
    replicas.latest = {"one": stats(7)}
    async with client_of(replicas) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert 'm3_vision_encodings_total{replica="one"} 7.0' in answer.text
