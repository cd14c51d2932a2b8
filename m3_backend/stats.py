"""Counters that cross process borders. Standard library only, like `messages`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m3_backend.pace import EMPTY, Line

BreakerState = Literal["closed", "open", "half_open"]


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a feature cache has done since it was made.

    Args:
        memory_hits, redis_hits, misses: images by where their features came from.
        encodes: images that the vision tower saw; at most `misses`, less when requests shared one.
        redis_errors: time-outs, refusals and other failures of Redis.
        redis_rejected: values that failed a check and were not used.
        breaker: "open" while Redis is left alone after repeated failures; None without Redis.
        entries, bytes: held in memory now.
    """

    memory_hits: int
    redis_hits: int
    misses: int
    encodes: int
    redis_errors: int
    redis_rejected: int
    breaker: BreakerState | None
    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """KV memory, in tokens.

    Args:
        tokens: all there is.
        held: used by running requests; what several share counts once.
        idle: image prefixes that are kept in case somebody asks about them again.
        joined: requests that found their prefix there, since the start.
        preempted: requests that had to give up their memory to others, and started over.
    """

    tokens: int = 0
    held: int = 0
    idle: int = 0
    joined: int = 0
    preempted: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A replica's load, for placing requests and for metrics.

    Args:
        running: requests in the batch.
        waiting: admitted requests that are not in the batch yet.
        outstanding_tokens: prompt tokens to be prefilled plus tokens that may still be generated.
        slots: most requests that run at once.
        line: the requests that wait, without those whose callers have gone.
        pace: milliseconds of that work taken up per millisecond while requests wait.
        answer_tokens: mean of the last answers.
        pool: of replicas that it belongs to, where there are several.
    """

    running: int
    waiting: int
    outstanding_tokens: int
    slots: int
    cache: CacheStats
    line: Line = EMPTY
    pace: float = 1.0
    answer_tokens: float = 16.0
    memory: MemoryStats = MemoryStats()
    pool: str = ""
