"""Limits: exact among several processes' worth of limiters on a real Redis, and without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_backend.errors import BackendError
from m3_backend.messages import Delta, Event, Finished, Started
from router.limits import Charge, Limiter, LocalBuckets, Quota
from tests.conftest import RedisServer

STILL = 1e9  # seconds that a bucket takes to drain: while a test runs, it does not
REQUESTS, TOKENS = Quota("requests", 10), Quota("tokens", 1000)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def limiters(
    url: str | None, count: int = 1, period_s: float = STILL, **options: Any
) -> AsyncIterator[list[Limiter]]:
    made = [Limiter(url, period_s=period_s, timeout_s=30, **options) for _ in range(count)]
    try:
        yield made
    finally:
        for limiter in made:
            await limiter.close()


async def granted(limiter: Limiter, cost: int = 1, account: str = "a") -> bool:
    return (await limiter.take(account, [REQUESTS], [cost])).short_of is None


async def test_several_ingresses_share_one_limit_to_the_unit(redis_server: RedisServer) -> None:
    async with limiters(redis_server.url, 4) as replicas:
        tries = [granted(replica) for _ in range(10) for replica in replicas]
        assert sum(await asyncio.gather(*tries)) == REQUESTS.limit
        assert not await granted(replicas[0])
        assert await granted(replicas[0], account="b")


async def test_all_of_a_callers_limits_are_taken_or_none(redis_server: RedisServer) -> None:
    both = [REQUESTS, TOKENS]
    for url in (redis_server.url, None):
        async with limiters(url) as [limiter]:
            refused = await limiter.take("a", both, [1, 1001])
            assert refused.short_of is TOKENS
            assert [s.remaining for s in refused.standings] == [10, 1000]
            taken = await limiter.take("a", both, [1, 400])
            assert taken.short_of is None
            assert [s.remaining for s in taken.standings] == [9, 600]
            looked = await limiter.take("a", both, [0, 0])
            assert [s.remaining for s in looked.standings] == [9, 600]
            last = await limiter.take("a", both, [9, 500])
            assert [s.remaining for s in last.standings] == [0, 100]
            assert (await limiter.take("a", both, [1, 0])).short_of is REQUESTS


async def test_what_was_not_used_comes_back_and_what_was_overused_is_owed(
    redis_server: RedisServer,
) -> None:
    for url in (redis_server.url, None):
        async with limiters(url) as [limiter]:
            await limiter.take("a", [TOKENS], [900])
            limiter.settle("a", TOKENS, -700)
            await limiter.settled()
            assert (await limiter.take("a", [TOKENS], [0])).standings[0].remaining == 800
            limiter.settle("a", TOKENS, 1000)
            await limiter.settled()
            owed = await limiter.take("a", [TOKENS], [0])
            assert owed.standings[0].remaining == 0
            assert owed.wait_s == pytest.approx(200 * STILL / 1000)
            limiter.settle("a", TOKENS, -(10**9))  # more than there was: empty, and not below
            await limiter.settled()
            assert (await limiter.take("a", [TOKENS], [0])).standings[0].remaining == 1000


def test_a_bucket_drains_as_time_goes_by() -> None:
    clock = Clock()
    buckets = LocalBuckets(clock, 60.0)
    for _ in range(10):
        assert buckets.take(["a"], [(1, 10)], force=False)[0] == 0
    wait_s, _ = buckets.take(["a"], [(1, 10)], force=False)
    assert wait_s == pytest.approx(6.0)
    clock.now = 5.99
    assert buckets.take(["a"], [(1, 10)], force=False)[0] > 0
    clock.now = 6.0
    assert buckets.take(["a"], [(1, 10)], force=False)[0] == 0
    clock.now = 1000.0
    assert buckets.take(["a"], [(10, 10)], force=False)[0] == 0


async def test_redis_drains_by_its_own_clock(redis_server: RedisServer) -> None:
    async with limiters(redis_server.url, period_s=0.2) as [limiter]:
        await limiter.take("a", [REQUESTS], [10])
        while not await granted(limiter, 10):
            await asyncio.sleep(0.01)


COSTS = st.lists(st.tuples(st.integers(-5, 30), st.booleans()), max_size=20)


@given(limit=st.integers(1, 50), steps=COSTS)
def test_local_buckets_never_hold_more_than_was_allowed(
    limit: int, steps: list[tuple[int, bool]]
) -> None:
    buckets, level = LocalBuckets(Clock(), 60.0), 0
    for cost, force in steps:
        wait_s, [told] = buckets.take(["a"], [(cost, limit)], force=force)
        fits = level + cost <= limit
        assert (wait_s == 0) == (fits or force)
        if fits or force:
            level = min(max(level + cost, 0), 2 * limit)
        assert told == pytest.approx(level)


async def test_redis_and_local_buckets_agree(redis_server: RedisServer) -> None:
    steps = [(3, False), (6, False), (2, False), (1, False), (15, True), (0, False), (-9, True)]
    steps += [(30, True), (-100, True), (11, False), (10, False)]
    seen = []
    for url in (redis_server.url, None):
        async with limiters(url) as [limiter]:
            taken = [await limiter.take("a", [REQUESTS], [c], force=f) for c, f in steps]
            seen.append([(t.short_of, t.standings[0].remaining) for t in taken])
    assert seen[0] == seen[1]


async def test_without_redis_the_same_numbers_hold_from_where_it_left(
    redis_server: RedisServer,
) -> None:
    async with limiters(redis_server.url) as [limiter]:
        for _ in range(4):
            assert await granted(limiter)
        redis_server.kill()
        taken = [await limiter.take("a", [REQUESTS], [1]) for _ in range(10)]
        assert [t.short_of is None for t in taken] == [True] * 6 + [False] * 4
        assert all(t.degraded for t in taken)


async def test_without_a_redis_nothing_is_degraded() -> None:
    async with limiters(None) as [limiter]:
        assert not (await limiter.take("a", [REQUESTS], [1])).degraded


async def test_a_redis_that_hangs_is_left_alone_after_a_while(silent_port: int) -> None:
    clock = Clock()
    limiter = Limiter(f"redis://127.0.0.1:{silent_port}/0", clock=clock, timeout_s=0.05)
    for _ in range(3):
        assert (await limiter.take("a", [REQUESTS], [1])).degraded
    limiter._timeout_s = 1e9  # whoever asked it now would wait for good
    async with asyncio.timeout(30):
        assert (await limiter.take("a", [REQUESTS], [1])).standings[0].remaining == 6
    await limiter.close()


@pytest.fixture
async def silent_port() -> AsyncIterator[int]:
    """A port where somebody listens and never says anything."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.mark.parametrize(
    "stored",
    [
        {"level": "nonsense", "at": "nonsense"},
        {"level": "nan", "at": "nan"},
        {"level": "-1e300", "at": "1e300"},
        {"level": "5"},
        {"other": "x"},
    ],
)
async def test_nonsense_in_redis_is_an_empty_bucket(
    redis_server: RedisServer, stored: dict[str, str]
) -> None:
    redis_server.client().hset("m3:limit:{a}:requests", mapping=stored)
    async with limiters(redis_server.url) as [limiter]:
        taken = await limiter.take("a", [REQUESTS], [1])
        assert (taken.short_of, taken.degraded) == (None, False)


@pytest.mark.parametrize(
    ("level", "at"), [("1e300", "1e300"), ("1e300", "0"), ("10", "1e300"), ("inf", "1e300")]
)
async def test_a_full_bucket_that_nobody_filled_is_bounded_and_drains(
    redis_server: RedisServer, level: str, at: str
) -> None:
    """Redis' clock may have been put back, or somebody else wrote there."""
    name = "m3:limit:{a}:requests"
    redis_server.client().hset(name, mapping={"level": level, "at": at})
    async with limiters(redis_server.url, period_s=60.0) as [limiter]:
        assert (await limiter.take("a", [REQUESTS], [1])).wait_s <= 66.1
    async with limiters(redis_server.url, period_s=0.2) as [limiter], asyncio.timeout(30):
        while not await granted(limiter):
            await asyncio.sleep(0.01)


async def test_another_kind_of_value_in_redis_is_redis_being_away(
    redis_server: RedisServer,
) -> None:
    redis_server.client().set("m3:limit:{a}:requests", "x")
    async with limiters(redis_server.url) as [limiter]:
        taken = await limiter.take("a", [REQUESTS], [1])
        assert (taken.short_of, taken.degraded) == (None, True)


@pytest.mark.parametrize(
    "answer", [None, [], [b"x", b"1"], [b"0", b"nan"], [b"0"], [b"0", b"1", b"2"], 7]
)
async def test_what_the_script_never_answers_is_redis_being_away(answer: Any) -> None:
    async with limiters("redis://127.0.0.1:1/0") as [limiter]:

        async def lying(**_: Any) -> Any:
            return answer

        limiter._script = lying  # type: ignore[assignment]
        taken = await limiter.take("a", [REQUESTS], [1])
        assert (taken.short_of, taken.degraded) == (None, True)
        assert taken.standings[0].remaining == 9


async def test_redis_gives_back_only_what_it_took(redis_server: RedisServer) -> None:
    async with limiters(redis_server.url) as [limiter]:
        await limiter.take("a", [TOKENS], [500])
        taken = await limiter.take("a", [TOKENS], [300], alone=True)  # as while Redis is away
        assert taken.standings[0].remaining == 200
        Charge(limiter, "a", TOKENS, 300, alone=True).settle(0)
        await limiter.settled()
        assert (await limiter.take("a", [TOKENS], [0], alone=True)).standings[0].remaining == 500
        assert (await limiter.take("a", [TOKENS], [0])).standings[0].remaining == 500


async def test_buckets_have_no_time_to_live(redis_server: RedisServer) -> None:
    """Redis runs with `volatile-lfu`: what may expire may be evicted, and a limit with it."""
    async with limiters(redis_server.url) as [limiter]:
        await granted(limiter)
    assert redis_server.client().ttl("m3:limit:{a}:requests") == -1


STARTED = Started((36,), 50, ("miss",), 0.0, 0.0, 0.0)


async def events(*given: Event, error: Exception | None = None) -> AsyncGenerator[Event, None]:
    for event in given:
        yield event
    if error is not None:
        raise error


@pytest.mark.parametrize(
    ("given", "taken", "used"),
    [
        ((STARTED, Delta("a", (1,)), Finished("stop", 3, 0.0, 0.0)), 9, 53),
        ((STARTED, Delta("a", (1,)), Delta("b", (2, 3)), Finished("stop", 3, 0.0, 0.0)), 3, 53),
        ((STARTED, Delta("a", (1,)), Finished("stop", 3, 0.0, 0.0)), 1, 50),
        ((), 9, 0),
    ],
)
async def test_a_charge_is_settled_with_what_was_used(
    given: tuple[Event, ...], taken: int, used: int
) -> None:
    async with limiters(None) as [limiter]:
        await limiter.take("a", [TOKENS], [600])
        watched = Charge(limiter, "a", TOKENS, 600).settled_by(events(*given))
        async with aclosing(watched):
            for _ in range(taken):
                await anext(watched, None)
        await limiter.settled()
        left = (await limiter.take("a", [TOKENS], [0])).standings[0].remaining
    assert left == TOKENS.limit - used


async def test_an_error_settles_too() -> None:
    async with limiters(None) as [limiter]:
        await limiter.take("a", [TOKENS], [600])
        charge = Charge(limiter, "a", TOKENS, 600)
        with pytest.raises(BackendError):
            async for _ in charge.settled_by(events(STARTED, error=BackendError("gone"))):
                pass
        await limiter.settled()
        assert (await limiter.take("a", [TOKENS], [0])).standings[0].remaining == 950
