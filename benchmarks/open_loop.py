"""Load on a URL: open loop (requests are sent when they are due, whoever is still waiting) and
closed loop (callers that ask one question after the other).

One event loop and one process, because it shares the machine with what it measures. Bodies are
joined from prepared pieces, and of the answers only what the figures need is read: texts, where
somebody keeps the replies for their texts.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one request.

    Args:
        due: when it was to be sent, in seconds since the run began.
        seconds: from then to the last byte of the response, so that a generator or a service that
            falls behind is not excused.
        status: 0 if no response came.
        tokens: mean image tokens of its pictures, where it was answered by an m3-router.
        loosened: load had loosened the service's bound.
        number: of the request.
        cache: where an m3-router had the features from, else empty.
        said: what was read of the answer, if it was.
    """

    due: float
    seconds: float
    status: int
    tokens: float = 0.0
    loosened: bool = False
    number: int = -1
    cache: str = ""
    said: Said | None = None

    @property
    def answered(self) -> bool:
        """Whole: a stream may break after its 200."""
        return self.status == 200 and (self.said is None or self.said.complete)


@dataclass(frozen=True, slots=True)
class Said:
    """An answer.

    Args:
        first_s: from when it was due to its first text; of a whole answer to all of it.
        prompt_tokens: as the server counts them, or None if it does not tell.
    """

    text: str
    first_s: float
    prompt_tokens: int | None
    complete: bool


Body = Callable[[int], bytes]


async def closed(
    url: str,
    body: Body,
    *,
    callers: int,
    seconds: float = float("inf"),
    requests: int | None = None,
    read: bool = False,
    headers: Mapping[str, str] | None = None,
) -> list[Reply]:
    """`callers` that ask one question after the other: what the service can do at most.

    Args:
        requests: ends after so many, if that is before `seconds` have passed.
        read: also read the answers.
        headers: sent besides.
    """
    began = time.monotonic()
    replies: list[Reply] = []
    numbers = iter(range(10**9 if requests is None else requests))
    async with _session(headers) as session:

        async def ask() -> None:
            for number in numbers:
                if (due := time.monotonic() - began) >= seconds:
                    return
                replies.append(await _send(session, url, body, number, due, began, read))

        await asyncio.gather(*(ask() for _ in range(callers)))
    return replies


async def opened(
    url: str,
    body: Body,
    phases: Sequence[tuple[float, float]],
    *,
    seed: int = 0,
    read: bool = False,
    headers: Mapping[str, str] | None = None,
) -> list[Reply]:
    """Poisson arrivals at the rate of each phase, (per second, seconds). See `closed`."""
    dues = arrivals(phases, seed)
    began = time.monotonic()
    async with _session(headers) as session:
        tasks = []
        for number, due in enumerate(dues):
            if (early := due - (time.monotonic() - began)) > 0:
                await asyncio.sleep(early)
            sending = _send(session, url, body, number, due, began, read)
            tasks.append(asyncio.create_task(sending))
        return list(await asyncio.gather(*tasks))


def arrivals(phases: Sequence[tuple[float, float]], seed: int) -> list[float]:
    """When requests are due, in seconds."""
    dues, start = [], 0.0
    rng = random.Random(seed)
    for rate, seconds in phases:
        due = start + rng.expovariate(rate)
        while due < start + seconds:
            dues.append(due)
            due += rng.expovariate(rate)
        start += seconds
    return dues


def _session(headers: Mapping[str, str] | None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=120),
        headers=JSON | dict(headers or {}),
    )


async def _send(
    session: aiohttp.ClientSession,
    url: str,
    body: Body,
    number: int,
    due: float,
    began: float,
    read: bool,
) -> Reply:
    try:
        async with session.post(url + CHAT, data=body(number)) as response:
            said = None
            if read and response.status == 200:
                said = await _read(response, began + due)
            else:
                await response.read()
            told = response.headers.get("x-m3-scale")
            scales = [int(scale) for scale in told.split(",")] if told else [0]
            return Reply(
                due,
                time.monotonic() - began - due,
                response.status,
                sum(scales) / len(scales),
                "x-m3-loosened-from" in response.headers,
                number,
                response.headers.get("x-m3-cache", ""),
                said,
            )
    except (aiohttp.ClientError, TimeoutError):
        return Reply(due, time.monotonic() - began - due, 0, number=number)


async def _read(response: aiohttp.ClientResponse, due: float) -> Said:
    """The answer, streamed or whole; `due` by the monotonic clock."""
    try:
        if STREAM in response.headers.get("content-type", ""):
            return await _read_stream(response, due)
        content = json.loads(await response.read())
        text = content["choices"][0]["message"]["content"] or ""
        return Said(text, time.monotonic() - due, _prompt_tokens(content), True)
    except (ValueError, LookupError, TypeError):  # not what OpenAI's API says
        return Said("", time.monotonic() - due, None, False)


async def _read_stream(response: aiohttp.ClientResponse, due: float) -> Said:
    text, first_s, prompt_tokens, complete = "", 0.0, None, False
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            complete = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            break
        prompt_tokens = _prompt_tokens(chunk) or prompt_tokens
        for choice in chunk.get("choices") or ():
            text += choice["delta"].get("content") or ""
        if text and not first_s:
            first_s = time.monotonic() - due
    return Said(text, first_s or time.monotonic() - due, prompt_tokens, complete)


def _prompt_tokens(content: dict[str, Any]) -> int | None:
    tokens = (content.get("usage") or {}).get("prompt_tokens")
    return None if tokens is None else int(tokens)
