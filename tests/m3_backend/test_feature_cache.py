"""The feature cache on a real Redis: levels, pooling, single flight, a Redis that fails or lies."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from m3_backend import wire
from m3_backend.breaker import CircuitBreaker
from m3_backend.errors import InvalidImageError
from m3_backend.feature_cache import Encoded, FeatureCache, FeatureSource
from m3_backend.scales import ScaleLadder
from m3_backend.vision import pool
from tests.conftest import RedisServer

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
ENTRY_BYTES = FULL.nbytes


class Tower:
    """Stands where the vision tower does and counts. Slow enough to be worth caching."""

    def __init__(self, clock: ManualClock) -> None:
        self.runs = 0
        self._clock = clock

    def __call__(self) -> Encoded:
        self.runs += 1
        self._clock.now += 0.3
        return Encoded(FULL, 200.0)


class ManualClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def tower(clock: ManualClock) -> Tower:
    return Tower(clock)


NewCache = Callable[..., FeatureCache]


@pytest.fixture
def new_cache(clock: ManualClock) -> Iterator[NewCache]:
    opened: list[FeatureCache] = []

    def make(
        url: str | None = None, memory: int = 10 * ENTRY_BYTES, secret: bytes = b""
    ) -> FeatureCache:
        # Two seconds of patience: a stalled test machine is not what these tests are about.
        cache = FeatureCache(memory, url, timeout_s=2, stall_s=2, secret=secret, clock=clock)
        opened.append(cache)
        return cache

    yield make
    for cache in opened:
        cache.close()


def test_a_finer_entry_serves_every_coarser_scale(new_cache: NewCache, tower: Tower) -> None:
    cache = new_cache()
    assert cache.get(SOURCE, 36, tower).level == "miss"
    for scale in LADDER.scales:
        lookup = cache.get(SOURCE, scale, tower)
        assert lookup.level == "memory"
        assert torch.equal(lookup.features, pool(FULL, LADDER, scale))
    assert tower.runs == 1
    stats = cache.stats()
    assert (stats.misses, stats.encodes, stats.memory_hits) == (1, 1, 5)


def test_times_are_told_apart(new_cache: NewCache, tower: Tower) -> None:
    lookup = new_cache().get(SOURCE, 1, tower)
    assert lookup.encode_ms == pytest.approx(200)
    assert lookup.fetch_ms == 0


@pytest.mark.parametrize(
    "other",
    [
        replace(SOURCE, image="b" * 64),
        replace(SOURCE, model="x" * 64),
        replace(SOURCE, processor="x" * 64),
        replace(SOURCE, salt="tenant"),
        replace(SOURCE, tiles=5),
        replace(SOURCE, dtype=torch.bfloat16),
        replace(SOURCE, model="m" * 63, processor="m" + "p" * 64),
    ],
)
def test_nothing_is_shared_between_sources(other: FeatureSource) -> None:
    keys = {source.key(scale) for source in (SOURCE, other) for scale in LADDER.scales}
    assert len(keys) == 2 * len(LADDER)


def test_the_least_recently_used_entry_makes_room(new_cache: NewCache, tower: Tower) -> None:
    cache = new_cache(memory=2 * ENTRY_BYTES)
    images = [replace(SOURCE, image=letter * 64) for letter in "abc"]
    cache.get(images[0], 576, tower)
    cache.get(images[1], 576, tower)
    cache.get(images[0], 576, tower)
    cache.get(images[2], 576, tower)
    assert cache.stats().bytes == 2 * ENTRY_BYTES
    assert cache.get(images[0], 576, tower).level == "memory"
    assert cache.get(images[1], 576, tower).level == "miss"


def test_without_memory_everything_still_works(new_cache: NewCache, tower: Tower) -> None:
    cache = new_cache(memory=0)
    assert cache.get(SOURCE, 9, tower).level == "miss"
    assert cache.get(SOURCE, 9, tower).level == "miss"
    assert cache.stats().bytes == 0


@pytest.mark.parametrize("memory", [10 * ENTRY_BYTES, 0])
def test_ten_waiters_share_one_encoding(new_cache: NewCache, memory: int) -> None:
    cache = new_cache(memory=memory)
    encoding, release = threading.Event(), threading.Event()
    runs = []

    def slow() -> Encoded:
        runs.append(1)
        encoding.set()
        assert release.wait(30)
        return Encoded(FULL, 200.0)

    with ThreadPoolExecutor(10) as threads:
        first = threads.submit(cache.get, SOURCE, 144, slow)
        assert encoding.wait(30)
        scales = [1, 9, 36, 144, 576, 1, 9, 36, 144]
        others = [threads.submit(cache.get, SOURCE, scale, slow) for scale in scales]
        release.set()
        assert first.result(30).level == "miss"
        for scale, other in zip(scales, others, strict=True):
            assert torch.equal(other.result(30).features, pool(FULL, LADDER, scale))
    assert len(runs) == 1 or memory == 0
    assert cache.stats().encodes == len(runs)


def test_a_failed_encoding_is_not_remembered(new_cache: NewCache, tower: Tower) -> None:
    cache = new_cache()

    def broken() -> Encoded:
        raise InvalidImageError("broken")

    with pytest.raises(InvalidImageError):
        cache.get(SOURCE, 9, broken)
    assert cache.get(SOURCE, 9, tower).level == "miss"


def test_a_second_process_finds_features_in_redis(
    new_cache: NewCache, tower: Tower, redis_server: RedisServer
) -> None:
    first, second = new_cache(redis_server.url), new_cache(redis_server.url)
    first.get(SOURCE, 36, tower)
    first.flush()
    for scale in (9, 576):  # from the entry at 36, then from the one at 576
        lookup = second.get(SOURCE, scale, tower)
        assert lookup.level == "redis" and not lookup.degraded
        assert torch.equal(lookup.features, pool(FULL, LADDER, scale))
    assert second.get(SOURCE, 144, tower).level == "memory"
    assert tower.runs == 1
    assert second.stats().encodes == 0
    client = redis_server.client()
    assert all(0 < client.ttl(key) <= 24 * 3600 for key in client.scan_iter())


def test_salts_separate_tenants_in_redis_too(
    new_cache: NewCache, tower: Tower, redis_server: RedisServer
) -> None:
    first, second = new_cache(redis_server.url), new_cache(redis_server.url)
    first.get(replace(SOURCE, salt="one"), 9, tower)
    first.flush()
    assert second.get(replace(SOURCE, salt="two"), 9, tower).level == "miss"


def test_what_is_quicker_to_compute_than_to_fetch_stays_at_home(
    new_cache: NewCache, redis_server: RedisServer
) -> None:
    cache = new_cache(redis_server.url)
    cache.get(SOURCE, 9, lambda: Encoded(FULL, 0.0))
    cache.flush()
    assert redis_server.client().dbsize() == 0


def test_redis_killed_in_mid_run_is_a_miss_that_says_so(
    new_cache: NewCache, tower: Tower, redis_server: RedisServer, clock: ManualClock
) -> None:
    cache = new_cache(redis_server.url, memory=0)
    cache.get(SOURCE, 9, tower)
    cache.flush()
    assert cache.get(SOURCE, 9, tower).level == "redis"
    redis_server.kill()
    for _ in range(5):
        lookup = cache.get(SOURCE, 9, tower)
        assert (lookup.level, lookup.degraded) == ("miss", True)
        assert torch.equal(lookup.features, pool(FULL, LADDER, 9))
        cache.flush()
    stats = cache.stats()
    assert stats.breaker == "open"
    assert 3 <= stats.redis_errors <= 4  # then it was left alone
    clock.now += 60
    assert cache.stats().breaker == "half_open"


def test_a_full_redis_serves_what_it_has(
    new_cache: NewCache, tower: Tower, redis_server: RedisServer
) -> None:
    cache = new_cache(redis_server.url, memory=0)
    cache.get(SOURCE, 9, tower)
    cache.flush()
    redis_server.client().config_set("maxmemory", 1)
    another = replace(SOURCE, image="b" * 64)
    assert cache.get(another, 9, tower).level == "miss"
    cache.flush()
    assert cache.stats().redis_errors > 0
    assert cache.stats().breaker == "closed"
    assert cache.get(SOURCE, 9, tower).level == "redis"


def test_eight_bits_answer_alike_from_every_level_and_never_mix_with_exact_ones(
    new_cache: NewCache, tower: Tower, redis_server: RedisServer
) -> None:
    source = replace(SOURCE, storage="int8")
    one, other, third = (new_cache(redis_server.url) for _ in range(3))
    fresh = {scale: one.get(source, scale, tower).features for scale in (9, 1, 576)}
    one.flush()
    redis = other.get(source, 9, tower)  # of the very scale
    finest = third.get(source, 576, tower)
    assert (redis.level, finest.level) == ("redis", "redis")
    assert torch.equal(redis.features, fresh[9])
    assert torch.equal(finest.features, fresh[576])
    for scale in (9, 1):  # by pooling, from memory
        assert torch.equal(third.get(source, scale, tower).features, fresh[scale])
    assert tower.runs == 1
    peeked = third.peek(source)
    assert peeked is not None
    assert torch.equal(peeked[1], fresh[1])
    assert third.peek(SOURCE) is None
    assert not torch.equal(one.get(SOURCE, 576, tower).features, fresh[576])
    assert third.stats().bytes == FULL.numel() + 576 * 4


def flipped(blob: bytes) -> bytes:
    return blob[:-1] + bytes([blob[-1] ^ 1])


@pytest.mark.parametrize(
    "lie",
    [
        flipped,
        lambda blob: b"x" * len(blob),
        lambda blob: blob[:-1],
        lambda blob: blob + b"x" * 1000,
        lambda blob: wire.encode(bytes(32), FULL)[: len(blob)].ljust(len(blob), b"\0"),
    ],
    ids=["bit", "noise", "short", "long", "other"],
)
def test_a_lying_redis_is_a_miss(
    lie: Callable[[bytes], bytes], new_cache: NewCache, tower: Tower, redis_server: RedisServer
) -> None:
    honest, reader = new_cache(redis_server.url), new_cache(redis_server.url)
    honest.get(SOURCE, 576, tower)
    honest.flush()
    client = redis_server.client()
    (key,) = client.keys()
    client.set(key, lie(client.get(key)))
    lookup = reader.get(SOURCE, 576, tower)
    assert lookup.level == "miss"
    assert torch.equal(lookup.features, FULL)
    reader.flush()  # and the sound value replaced the lie
    assert new_cache(redis_server.url).get(SOURCE, 576, tower).level == "redis"


def test_values_signed_with_another_secret_are_refused(
    new_cache: NewCache, tower: Tower, redis_server: RedisServer
) -> None:
    theirs = new_cache(redis_server.url, secret=b"theirs")
    theirs.get(SOURCE, 9, tower)
    theirs.flush()
    ours = new_cache(redis_server.url, secret=b"ours" * 40)
    assert ours.get(SOURCE, 9, tower).level == "miss"
    assert ours.stats().redis_rejected == 1


def test_a_redis_that_never_answers_costs_its_time_limit_only(tower: Tower) -> None:
    """A server that accepts connections and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        cache = FeatureCache(ENTRY_BYTES, url, timeout_s=0.05, stall_s=0.05)
        lookup = cache.get(SOURCE, 9, tower)
        assert (lookup.level, lookup.degraded) == ("miss", True)
        assert cache.stats().redis_errors >= 1
        cache.close()


def test_the_breaker_opens_pauses_tries_once_and_closes(clock: ManualClock) -> None:
    breaker = CircuitBreaker(clock, failures=2, pause_s=5)
    breaker.failed()
    assert breaker.allows() and breaker.state == "closed"
    breaker.failed()
    assert not breaker.allows() and breaker.state == "open"
    clock.now = 5
    assert breaker.state == "half_open"
    assert breaker.allows()
    assert not breaker.allows()  # one trial at a time
    breaker.failed()
    clock.now = 9.9
    assert not breaker.allows()
    clock.now = 10
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.state == "closed" and breaker.allows()


def test_what_is_pinned_outlives_newer_entries_for_its_time(
    new_cache: NewCache, tower: Tower, clock: ManualClock
) -> None:
    cache = new_cache(memory=9 * ENTRY_BYTES // 2)
    others = (replace(SOURCE, image=f"{number:064x}") for number in range(100))

    def push_out() -> None:
        for _ in range(8):
            cache.get(next(others), 576, tower)

    assert not cache.pin(SOURCE, 60)  # it is not there
    cache.get(SOURCE, 9, tower)
    assert cache.pin(SOURCE, 60)
    push_out()
    assert cache.peek(SOURCE) is not None
    assert cache.stats().bytes <= 9 * ENTRY_BYTES // 2
    crowded = next(others)
    cache.get(crowded, 576, tower)
    assert not cache.pin(crowded, 60)  # a quarter of the memory is all that may be pinned
    clock.now += 30
    assert cache.pin(SOURCE, 10)  # which never shortens it
    clock.now += 20
    push_out()
    assert cache.peek(SOURCE) is not None
    clock.now += 20
    push_out()
    assert cache.peek(SOURCE) is None


def test_what_is_let_go_is_an_entry_like_others(new_cache: NewCache, tower: Tower) -> None:
    cache = new_cache(memory=9 * ENTRY_BYTES // 2)
    cache.get(SOURCE, 576, tower)
    assert cache.pin(SOURCE, 1e9)
    cache.unpin(SOURCE)
    cache.unpin(SOURCE)
    assert cache.peek(SOURCE) is not None
    for number in range(8):
        cache.get(replace(SOURCE, image=f"{number:064x}"), 576, tower)
    assert cache.peek(SOURCE) is None
