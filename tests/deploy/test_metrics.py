"""Replica statistics among the ingress's metrics, through the router's own app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import httpx

from deploy.metrics import AllIngresses, Exposed, ReplicaMetrics
from m3_backend.stats import CacheStats, EngineStats
from router.config import RouterConfig
from router.http import build_app
from router.service import RoutingService
from router.telemetry import Telemetry
from router.trace import Trace
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


def ingress(name: str, requests: int) -> Telemetry:
    telemetry = Telemetry({"ingress": name})
    for _ in range(requests):
        telemetry.begin()
        telemetry.end(Trace("id", endpoint="/readyz"))
    return telemetry


def scrape(
    mine: Telemetry, ask: Callable[[], Awaitable[Mapping[str, Exposed]]]
) -> tuple[AllIngresses, Callable[[], str]]:
    everyone = AllIngresses(mine.exposed, ask, "one")
    mine.show_instead(everyone)
    return everyone, lambda: mine.exposition().decode()


COUNTED = 'm3_requests_total{{code="ok",endpoint="/readyz",ingress="{}",status="200"}} {}'


async def test_any_ingress_answers_for_all_of_them() -> None:
    mine, other = ingress("one", 2), ingress("two", 5)

    async def ask() -> dict[str, Exposed]:
        stale = ingress("one", 1)
        return {"one": [*stale.exposed.collect()], "two": [*other.exposed.collect()]}

    everyone, shown = scrape(mine, ask)
    await everyone.refresh()
    text = shown()
    assert COUNTED.format("one", "2.0") in text  # its own figures are the live ones
    assert COUNTED.format("two", "5.0") in text
    assert text.count("# TYPE m3_requests_total counter") == 1  # else no scraper takes it
    assert shown() == text  # nothing adds up by looking


async def test_an_ingress_that_is_gone_is_no_longer_shown_and_a_silent_one_is() -> None:
    answers: list[dict[str, Exposed]] = [
        {"two": [*ingress("two", 5).exposed.collect()]},
        {},
    ]

    async def ask() -> dict[str, Exposed]:
        if not answers:
            raise ConnectionError
        return answers.pop(0)

    everyone, shown = scrape(ingress("one", 2), ask)
    await everyone.refresh()
    assert COUNTED.format("two", "5.0") in shown()
    await everyone.refresh()
    assert 'ingress="two"' not in shown()
    answers.append({"two": [*ingress("two", 7).exposed.collect()]})
    await everyone.refresh()
    await everyone.refresh()  # nobody answers
    assert COUNTED.format("two", "7.0") in shown()
