"""How much a caller may use per minute, counted for all ingress replicas together.

Every limit is a bucket that holds one minute's worth and drains at that rate (GCRA, in the form of
a leaky bucket): a caller may use its limit at once, and then as fast as it drains. Unlike a window
of counters it is two numbers however many requests there are, knows to the millisecond when there
is room again, and takes back what was reserved and not used.

Redis holds the buckets and its clock is the only one that counts; one script looks at all limits of
a caller and fills either all of them or none. While Redis is away, every process goes on with
buckets of its own, of the same size, from where Redis left them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from m3_backend.breaker import CircuitBreaker
from m3_backend.messages import Delta, Event, Finished, Started
from router.errors import RateLimitError

Kind = Literal["requests", "tokens"]

PERIOD_S = 60.0
TIMEOUT_S = 0.25  # for one look at Redis; long enough for a busy event loop
PREFIX = "m3:limit:"
DEEPEST = 2  # times the limit; more debt than this was not earned by requests

# KEYS: one bucket per limit. ARGV: period, whether to fill them even if they run over, then cost
# and limit of each. Gives the seconds until it would fit (0: it did) and the new levels.
# A bucket with no sense in it is an empty one; one that is fuller than can be, or was filled in the
# future (Redis' clock was put back), is put right at once, for refusals alone would never empty it.
# It has no time to live: Redis evicts what has one.
SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local period, force = tonumber(ARGV[1]), ARGV[2] == '1'
local levels, wait = {}, 0
for i, key in ipairs(KEYS) do
  local cost, limit = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
  local stored = redis.call('HMGET', key, 'level', 'at')
  local level, at = tonumber(stored[1]) or 0, tonumber(stored[2]) or now
  level = level - math.max(now - at, 0) * limit / period
  if not (level > 0) then level = 0 end
  levels[i] = math.min(level, limit * DEEPEST)
  if at > now or level > levels[i] then
    redis.call('HSET', key, 'level', string.format('%.17g', levels[i]),
               'at', string.format('%.17g', now))
  end
  wait = math.max(wait, (levels[i] + cost - limit) * period / limit)
end
if force or wait < 1e-6 then
  wait = 0
  for i, key in ipairs(KEYS) do
    local cost, limit = tonumber(ARGV[2 * i + 1]), tonumber(ARGV[2 * i + 2])
    if cost ~= 0 then
      levels[i] = math.min(math.max(levels[i] + cost, 0), limit * DEEPEST)
      redis.call('HSET', key, 'level', string.format('%.17g', levels[i]),
                 'at', string.format('%.17g', now))
    end
  end
end
local answer = {string.format('%.17g', wait)}
for i, level in ipairs(levels) do answer[i + 1] = string.format('%.17g', level) end
return answer
""".replace("DEEPEST", str(DEEPEST))


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit of one caller, per minute."""

    kind: Kind
    limit: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of a quota.

    Args:
        remaining: whole units that fit now.
        reset_s: seconds until all of it is there again.
    """

    quota: Quota
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of asking for some.

    Args:
        short_of: None if it was granted, else the quota that has the least room for it.
        wait_s: seconds until it would be granted.
        degraded: Redis was away, and this process alone decided.
    """

    short_of: Quota | None
    wait_s: float
    standings: tuple[Standing, ...]
    degraded: bool


class LocalBuckets:
    """The buckets of one process: what the script does, in Python.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float], period_s: float) -> None:
        self._clock, self._period_s = clock, period_s
        self._buckets: dict[str, tuple[float, float]] = {}  # level, and when it was that

    def take(
        self, names: Sequence[str], costs: Sequence[tuple[float, int]], *, force: bool
    ) -> tuple[float, list[float]]:
        """Seconds until it would fit (0: it did) and the new levels. `costs` are (cost, limit)."""
        now, period_s = self._clock(), self._period_s
        levels, wait_s = [], 0.0
        for name, (cost, limit) in zip(names, costs, strict=True):
            level, at = self._buckets.get(name, (0.0, now))
            level = min(max(level - (now - at) * limit / period_s, 0.0), limit * DEEPEST)
            levels.append(level)
            wait_s = max(wait_s, (level + cost - limit) * period_s / limit)
        if force or wait_s < 1e-6:
            wait_s = 0.0
            levels = [
                min(max(level + cost, 0.0), limit * DEEPEST)
                for level, (cost, limit) in zip(levels, costs, strict=True)
            ]
        self.put(names, levels)
        return wait_s, levels

    def put(self, names: Sequence[str], levels: Sequence[float]) -> None:
        """Takes over what Redis knows."""
        now = self._clock()
        self._buckets.update((n, (level, now)) for n, level in zip(names, levels, strict=True))


class Limiter:
    """Buckets by caller.

    Args:
        redis_url: where the buckets are shared; None keeps them in this process.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        period_s: float = PERIOD_S,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._period_s, self._timeout_s = period_s, timeout_s
        self._local = LocalBuckets(clock, period_s)
        self._breaker = CircuitBreaker(clock)
        self._settling: set[asyncio.Task[Taken]] = set()
        self._client: Any = None
        if redis_url is not None:
            self._client = redis.asyncio.Redis.from_url(
                redis_url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),  # the client's default would wait for seconds
            )
            self._script = self._client.register_script(SCRIPT)

    @property
    def breaker_open(self) -> bool:
        """Whether there is a Redis and it is left alone."""
        return self._client is not None and self._breaker.state == "open"

    async def take(
        self,
        account: str,
        quotas: Sequence[Quota],
        costs: Sequence[int],
        *,
        force: bool = False,
        alone: bool = False,
    ) -> Taken:
        """Fills every bucket by its cost, or none if one would run over.

        Args:
            account: whose buckets.
            costs: one per quota; 0 only looks, a negative one gives back.
            force: fill them even if they run over.
            alone: only this process's own buckets.
        """
        # In braces, so that a Redis cluster keeps a caller's buckets together.
        names = [f"{PREFIX}{{{account}}}:{quota.kind}" for quota in quotas]
        pairs = [(cost, quota.limit) for cost, quota in zip(costs, quotas, strict=True)]
        shared = None if alone else await self._take_shared(names, pairs, force=force)
        wait_s, levels = shared or self._local.take(names, pairs, force=force)
        over = [(level + cost) / limit for level, (cost, limit) in zip(levels, pairs, strict=True)]
        return Taken(
            quotas[over.index(max(over))] if wait_s > 0 else None,
            wait_s,
            tuple(self._standing(q, level) for q, level in zip(quotas, levels, strict=True)),
            degraded=shared is None and self._client is not None,
        )

    async def _take_shared(
        self, names: list[str], pairs: list[tuple[int, int]], *, force: bool
    ) -> tuple[float, list[float]] | None:
        """The same in Redis; None while it is away."""
        if self._client is None or not self._breaker.allows():
            return None
        arguments = [self._period_s, int(force), *(value for pair in pairs for value in pair)]
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._script(keys=names, args=arguments)
            wait_s, *levels = map(float, answer)
            if len(levels) != len(names) or not all(map(math.isfinite, (wait_s, *levels))):
                raise ValueError("not what the script answers")
        except redis.ResponseError:  # full or read-only: it still answers others
            return None
        except Exception:  # damaged replies break the client's parser in many ways
            self._breaker.failed()
            return None
        self._breaker.succeeded()
        self._local.put(names, levels)
        return wait_s, levels

    def settle(self, account: str, quota: Quota, cost: int, *, alone: bool = False) -> None:
        """Corrects a bucket afterwards, behind the caller's back."""
        task = asyncio.ensure_future(self.take(account, [quota], [cost], force=True, alone=alone))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def settled(self) -> None:
        """Waits for the corrections that are under way."""
        await asyncio.gather(*self._settling)

    async def close(self) -> None:
        await self.settled()
        if self._client is not None:
            await self._client.aclose()

    def _standing(self, quota: Quota, level: float) -> Standing:
        remaining = max(0, int(quota.limit - level + 1e-6))
        return Standing(quota, remaining, level * self._period_s / quota.limit)


class Charge:
    """Tokens that were reserved for a request, until it is known how many it used.

    Args:
        alone: they were reserved while Redis was away, so it must not give back what it never took.
    """

    def __init__(
        self,
        limiter: Limiter,
        account: str,
        quota: Quota | None,
        reserved: int,
        *,
        alone: bool = False,
    ) -> None:
        self._limiter, self._account, self._quota = limiter, account, quota
        self._reserved, self._alone = reserved, alone

    async def settled_by(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """`events`; when they end, however they do, what they used is what was charged."""
        prompt = answer = 0
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Started):  # perhaps once more, after a replica was lost
                        prompt, answer = event.prompt_tokens, 0
                    elif isinstance(event, Delta):
                        answer += len(event.token_ids)
                    elif isinstance(event, Finished):
                        answer = event.completion_tokens
                    yield event
        finally:
            self.settle(prompt + answer)

    def settle(self, used: int) -> None:
        """Leaves what was used."""
        if self._quota is not None:
            over = used - self._reserved
            self._limiter.settle(self._account, self._quota, over, alone=self._alone)


def refusal(taken: Taken, quota: Quota, cost: int) -> RateLimitError:
    """What a caller hears who was short of a quota; without a time if it will never be enough.

    Args:
        cost: of the whole request, what it was granted before included.
    """
    if cost > quota.limit:
        less = "a shorter answer or a coarser scale" if quota.kind == "tokens" else "fewer at once"
        return RateLimitError(
            f"This request takes up to {cost:,} {quota.kind}, and this API key is limited to "
            f"{quota.limit:,} per minute; ask for {less}."
        )
    return RateLimitError(
        f"This API key has used up its {quota.limit:,} {quota.kind} per minute; try again in "
        f"{taken.wait_s:.1f} s.",
        retry_after_s=taken.wait_s,
    )
