"""The feature cache while its Redis fails: every answer is right, soon enough, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m3_backend.feature_cache import Encoded, FeatureCache, FeatureSource, Lookup
from m3_backend.redis_store import RedisStore, StoreUnavailableError
from m3_backend.scales import ScaleLadder
from m3_backend.vision import pool
from tests.conftest import RedisServer, start_redis
from tests.fault_proxy import FaultProxy, fault_proxy, flips

LADDER = ScaleLadder()
SOURCE = FeatureSource(
    image="a" * 64,
    model="m" * 64,
    processor="p" * 64,
    salt="",
    ladder=LADDER,
    tiles=1,
    hidden=16,
    dtype=torch.float32,
)
FULL = torch.randn(1, 576, 16, generator=torch.manual_seed(0))
TIMEOUT_S = 0.25  # the service's own
GENEROUS_S = 5.0  # for one lookup on a busy machine; the faults below would take half a minute
FOREVER_S = 30.0
PAUSE_S = 5.0  # of the breaker


class SkippableClock:
    """The real one, with leaps over the breaker's pauses."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def __call__(self) -> float:
        return time.perf_counter() + self.skipped

    def skip(self, seconds: float) -> None:
        self.skipped += seconds


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with fault_proxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def clock() -> SkippableClock:
    return SkippableClock()


@pytest.fixture
def cache(proxy: FaultProxy, clock: SkippableClock) -> Iterator[FeatureCache]:
    """Without memory, so that every lookup asks Redis."""
    cache = FeatureCache(0, proxy.url, timeout_s=TIMEOUT_S, stall_s=TIMEOUT_S, clock=clock)
    yield cache
    cache.close()


def lookup(
    cache: FeatureCache, clock: SkippableClock, image: str = "a", *, settled: bool = True
) -> Lookup:
    """One lookup that must be right and not take long. Encoding is slow enough to be cached.

    Args:
        settled: wait for what is written behind its back.
    """

    def encode() -> Encoded:
        clock.skip(0.2)
        return Encoded(FULL, 200.0)

    began = time.perf_counter()
    found = cache.get(replace(SOURCE, image=image * 64), 36, encode)
    assert time.perf_counter() - began < GENEROUS_S
    assert torch.equal(found.features, pool(FULL, LADDER, 36))
    if settled:
        cache.flush()
    return found


def slow(proxy: FaultProxy) -> None:
    proxy.delay_s = FOREVER_S


def dripping(proxy: FaultProxy) -> None:
    """Never silent for as long as a socket's time-out, and not done with a read in that time."""
    proxy.delay_s, proxy.piece = TIMEOUT_S / 4, 1


def refusing(proxy: FaultProxy) -> None:
    proxy.refuse()


def cutting(proxy: FaultProxy) -> None:
    proxy.answered = lambda _: b""


def babbling(proxy: FaultProxy) -> None:
    """Something else listens there."""
    proxy.answered = lambda data: b"HTTP/1.1 400 Bad Request\r\n\r\n"


@pytest.mark.parametrize("fault", [slow, dripping, refusing, cutting, babbling])
def test_a_failing_redis_is_left_alone_and_taken_up_again(
    fault: Callable[[FaultProxy], None],
    cache: FeatureCache,
    proxy: FaultProxy,
    clock: SkippableClock,
) -> None:
    lookup(cache, clock)
    assert lookup(cache, clock).level == "redis"
    fault(proxy)
    for _ in range(4):
        found = lookup(cache, clock, settled=False)
        assert (found.level, found.degraded) == ("miss", True)
    assert cache.stats().breaker == "open"
    proxy.mend()
    cache.flush()  # of what is still being written
    fault(proxy)
    stats, asked = cache.stats(), proxy.connections
    assert stats.redis_errors >= 3
    for _ in range(20):  # costs nothing now
        assert lookup(cache, clock).degraded
    assert (cache.stats().redis_errors, proxy.connections) == (stats.redis_errors, asked)

    clock.skip(PAUSE_S)
    assert lookup(cache, clock).degraded  # one trial, which fails
    assert cache.stats().breaker == "open"

    proxy.mend()
    assert lookup(cache, clock).degraded  # not before the pause is over
    clock.skip(PAUSE_S)
    found = lookup(cache, clock)
    assert (found.level, found.degraded) == ("redis", False)
    assert cache.stats().breaker == "closed"


def test_a_redis_that_is_too_slow_to_read_is_left_alone_though_it_takes_writes(
    proxy: FaultProxy, clock: SkippableClock
) -> None:
    with closing(RedisStore(proxy.url, ttl_s=60, timeout_s=10, clock=clock)) as store:
        proxy.delay_s = 0.1
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                store.fetch([(b"key", 5)], timeout_s=0.01)
            store.store(b"key", lambda: b"value")
            store.flush()
        assert (store.breaker.state, store.errors) == ("open", 3)
        proxy.mend()
        clock.skip(PAUSE_S)
        assert store.fetch([(b"key", 5)], timeout_s=10) == (0, b"value")
        assert store.breaker.state == "closed"


def test_a_restarted_redis_is_filled_again(
    cache: FeatureCache, clock: SkippableClock, redis_server: RedisServer, tmp_path: Path
) -> None:
    lookup(cache, clock)
    redis_server.kill()
    for _ in range(3):
        assert lookup(cache, clock).degraded
    again = start_redis(tmp_path, redis_server.port)
    try:
        clock.skip(PAUSE_S)
        empty = lookup(cache, clock)
        assert (empty.level, empty.degraded) == ("miss", False)
        assert lookup(cache, clock).level == "redis"
        assert cache.stats().breaker == "closed"
    finally:
        again.kill()


def test_a_full_redis_that_evicts_nothing_is_no_fault_of_its_reads(
    cache: FeatureCache, clock: SkippableClock, redis_server: RedisServer
) -> None:
    lookup(cache, clock)
    client = redis_server.client()
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    for _ in range(5):
        found = lookup(cache, clock, "b")
        assert (found.level, found.degraded) == ("miss", False)
    assert lookup(cache, clock).level == "redis"
    assert (cache.stats().breaker, cache.stats().redis_errors) == ("closed", 10)  # two scales each
    client.config_set("maxmemory", 0)
    lookup(cache, clock, "b")
    assert lookup(cache, clock, "b").level == "redis"


@pytest.mark.parametrize("share", [1e-4, 1e-2])
def test_flipped_bits_anywhere_are_misses(
    share: float, cache: FeatureCache, proxy: FaultProxy, clock: SkippableClock
) -> None:
    """In values, lengths and types of answers, and in what is stored: never in an answer."""
    lookup(cache, clock)
    levels = set()
    for seed in range(60):
        proxy.asked, proxy.answered = flips(seed, share / 10), flips(seed, share)
        levels.add(lookup(cache, clock, "ab"[seed % 2]).level)
        clock.skip(PAUSE_S)
    stats = cache.stats()
    assert stats.redis_errors + stats.redis_rejected > 0
    assert "miss" in levels
    assert ("redis" in levels) == (share < 1e-3)

    proxy.mend()
    for _ in range(3):  # whatever is on its way is gone, and what is stored is put right
        clock.skip(PAUSE_S)
        lookup(cache, clock)
    assert lookup(cache, clock).level == "redis"
    assert cache.stats().breaker == "closed"
