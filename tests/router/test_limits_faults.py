"""Limits while Redis fails: every request is decided on, soon enough, and by the right numbers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from router.limits import Limiter, Quota, Taken
from tests.conftest import RedisServer, start_redis
from tests.fault_proxy import FaultProxy, fault_proxy, flips

STILL = 1e9  # seconds that a bucket takes to drain: while a test runs, it does not
QUOTA = Quota("requests", 100)
TIMEOUT_S = 0.25  # the service's own
GENEROUS_S = 5.0  # for one decision on a busy machine; the faults below would take half a minute
FOREVER_S = 30.0
PAUSE_S = 5.0  # of the breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with fault_proxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def limiter(proxy: FaultProxy, clock: Clock) -> AsyncIterator[Limiter]:
    limiter = Limiter(proxy.url, clock=clock, period_s=STILL, timeout_s=TIMEOUT_S)
    yield limiter
    await limiter.close()


async def take(limiter: Limiter, cost: int = 1, account: str = "a") -> Taken:
    began = time.perf_counter()
    taken = await limiter.take(account, [QUOTA], [cost])
    assert time.perf_counter() - began < GENEROUS_S
    return taken


def left(taken: Taken) -> int:
    assert taken.short_of is None
    return taken.standings[0].remaining


def slow(proxy: FaultProxy) -> None:
    proxy.delay_s = FOREVER_S


def dripping(proxy: FaultProxy) -> None:
    proxy.delay_s, proxy.piece = TIMEOUT_S / 4, 1


def refusing(proxy: FaultProxy) -> None:
    proxy.refuse()


def cutting(proxy: FaultProxy) -> None:
    proxy.answered = lambda _: b""


def babbling(proxy: FaultProxy) -> None:
    proxy.answered = lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n"


@pytest.mark.parametrize("fault", [slow, dripping, refusing, cutting, babbling])
async def test_a_failing_redis_is_left_alone_and_taken_up_again(
    fault: Callable[[FaultProxy], None], limiter: Limiter, proxy: FaultProxy, clock: Clock
) -> None:
    assert left(await take(limiter)) == 99
    fault(proxy)
    for used in range(2, 5):  # this process goes on from where Redis was
        taken = await take(limiter)
        assert (left(taken), taken.degraded) == (100 - used, True)
    asked = proxy.connections
    for used in range(5, 25):  # costs nothing now
        assert left(await take(limiter)) == 100 - used
    assert proxy.connections == asked

    clock.now += PAUSE_S
    assert (await take(limiter)).degraded  # one trial, which fails
    proxy.mend()
    assert (await take(limiter)).degraded  # not before the pause is over
    clock.now += PAUSE_S
    taken = await take(limiter)
    # Redis counts from where it was: what it had heard of, and not what this process granted alone.
    assert not taken.degraded
    assert 100 - 7 <= left(taken) <= 98
    assert left(await take(limiter)) == left(taken) - 1


async def test_a_restarted_redis_begins_with_empty_buckets(
    limiter: Limiter, clock: Clock, redis_server: RedisServer, tmp_path: Path
) -> None:
    await take(limiter, 60)
    redis_server.kill()
    for used in (61, 62, 63):
        taken = await take(limiter)
        assert (left(taken), taken.degraded) == (100 - used, True)
    again = start_redis(tmp_path, redis_server.port)
    try:
        clock.now += PAUSE_S
        taken = await take(limiter)
        assert (left(taken), taken.degraded) == (99, False)
    finally:
        again.kill()


async def test_a_full_redis_that_evicts_nothing_lets_each_ingress_count_alone(
    limiter: Limiter, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    await take(limiter, 10)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    for used in range(11, 20):
        taken = await take(limiter)
        assert (left(taken), taken.degraded) == (100 - used, True)
    client.config_set("maxmemory", 0)
    taken = await take(limiter)  # at once: it had answered all the time
    assert (left(taken), taken.degraded) == (89, False)


@pytest.mark.parametrize("share", [1e-3, 1e-1])
async def test_flipped_bits_never_fail_a_request(
    share: float, limiter: Limiter, proxy: FaultProxy, clock: Clock
) -> None:
    degraded = 0
    for seed in range(100):
        proxy.asked, proxy.answered = flips(seed, share / 10), flips(seed, share)
        taken = await take(limiter)
        assert 0 <= taken.standings[0].remaining <= QUOTA.limit
        assert (taken.short_of is None) == (taken.wait_s <= 0)
        degraded += taken.degraded
        clock.now += PAUSE_S
    assert degraded > 0
    proxy.mend()
    for _ in range(3):
        clock.now += PAUSE_S
        before, taken = taken, await take(limiter, account="b")
    assert (left(taken), taken.degraded) == (left(before) - 1, False)
