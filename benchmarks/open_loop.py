"""An open-loop load generator: requests are sent when they are due, whoever is still waiting.

One event loop and one process, because it shares the machine with what it measures. Bodies are
joined from prepared pieces, and of the answers only what the figures need is read.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one request.

    Args:
        due: when it was to be sent, in seconds since the run began.
        seconds: from then to the last byte of the response, so that a generator or a service that
            falls behind is not excused.
        status: 0 if no response came.
        tokens: mean image tokens of its pictures, where it was answered.
        loosened: load had loosened the service's bound.
    """

    due: float
    seconds: float
    status: int
    tokens: float = 0.0
    loosened: bool = False


Body = Callable[[int], bytes]


async def closed(url: str, body: Body, *, callers: int, seconds: float) -> list[Reply]:
    """`callers` that ask one question after the other: what the service can do at most."""
    began = time.monotonic()
    replies: list[Reply] = []
    numbers = iter(range(10**9))
    async with _session() as session:

        async def ask() -> None:
            while (due := time.monotonic() - began) < seconds:
                replies.append(await _send(session, url, body(next(numbers)), due, began))

        await asyncio.gather(*(ask() for _ in range(callers)))
    return replies


async def opened(
    url: str, body: Body, phases: Sequence[tuple[float, float]], *, seed: int = 0
) -> list[Reply]:
    """Poisson arrivals at the rate of each phase, (per second, seconds)."""
    dues, start = [], 0.0
    rng = random.Random(seed)
    for rate, seconds in phases:
        due = start + rng.expovariate(rate)
        while due < start + seconds:
            dues.append(due)
            due += rng.expovariate(rate)
        start += seconds
    began = time.monotonic()
    async with _session() as session:
        tasks = []
        for number, due in enumerate(dues):
            if (early := due - (time.monotonic() - began)) > 0:
                await asyncio.sleep(early)
            tasks.append(asyncio.create_task(_send(session, url, body(number), due, began)))
        return list(await asyncio.gather(*tasks))


def _session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120))


async def _send(
    session: aiohttp.ClientSession, url: str, body: bytes, due: float, began: float
) -> Reply:
    headers = {"content-type": "application/json"}
    try:
        async with session.post(url + CHAT, data=body, headers=headers) as response:
            await response.read()
            told = response.headers.get("x-m3-scale")
            scales = [int(scale) for scale in told.split(",")] if told else [0]
            return Reply(
                due,
                time.monotonic() - began - due,
                response.status,
                sum(scales) / len(scales),
                "x-m3-loosened-from" in response.headers,
            )
    except (aiohttp.ClientError, TimeoutError):
        return Reply(due, time.monotonic() - began - due, 0)
