"""Replicas that die: who is asked again, what the client sees, and what it costs the caller."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from openai import APIError, OpenAI

from m3_backend.errors import (
    BackendError,
    ContextLengthError,
    DeadlineExceededError,
    OverloadedError,
    ServiceError,
)
from m3_backend.messages import Delta, Event, Finished, GenerationRequest, Started, TokenLogprob
from router.access import Caller
from router.auth import Key
from router.config import RouterConfig
from router.limits import Limiter
from router.retry import LONGEST_PAUSE_S, Retrying
from router.service import RoutingService
from router.trace import Trace
from tests.fakes import FakeBackend
from tests.router.support import app_of, chat, client_of, image_part, serving, user

STARTED = Started((36,), 50, ("miss",), 0.0, 0.0, 0.0)
AGAIN = replace(STARTED, cache=("memory",))
FINISHED = Finished("stop", 2, 0.0, 0.0)
Script = Sequence[Event | ServiceError]


def lost() -> BackendError:
    return BackendError("gone", code="replica_lost")


def stopping() -> BackendError:
    return BackendError("going", code="replica_stopping", status=503)


@dataclass
class World:
    """Attempts that go as they are written, on a clock that only pauses move."""

    scripts: list[Script]
    now: float = 0.0
    attempts: int = 0
    pauses: list[float] = field(default_factory=list)
    open: int = 0

    async def attempt(self) -> AsyncGenerator[Event, None]:
        script = self.scripts[min(self.attempts, len(self.scripts) - 1)]
        self.attempts += 1
        self.open += 1
        try:
            for step in script:
                if isinstance(step, ServiceError):
                    raise step
                yield step
        finally:
            self.open -= 1

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    async def run(
        self,
        *,
        streamed: bool = False,
        deadline: float = 100.0,
        max_attempts: int = 3,
        jitter: Callable[[], float] = lambda: 0.0,
    ) -> list[Event | ServiceError]:
        """Events to the end, the error last."""
        retrying = Retrying(max_attempts, lambda: self.now, self.sleep, jitter)
        seen: list[Event | ServiceError] = []
        try:
            async for event in retrying.answer(self.attempt, streamed=streamed, deadline=deadline):
                seen.append(event)
        except ServiceError as error:
            seen.append(error)
        assert self.open == 0
        return seen


def code_of(seen: list[Event | ServiceError]) -> str:
    error = seen[-1]
    assert isinstance(error, ServiceError)
    return error.code


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("before", [(), (STARTED,), (STARTED, Delta("", (1,)))])
async def test_what_nobody_has_seen_is_begun_anew(streamed: bool, before: Script) -> None:
    whole = [AGAIN, Delta("a", (1,)), FINISHED]
    world = World([[*before, lost()], whole])
    assert await world.run(streamed=streamed) == [*before, *whole]
    assert (world.attempts, len(world.pauses)) == (2, 1)


async def test_a_whole_answer_is_begun_anew_until_its_end() -> None:
    cut = [STARTED, Delta("a", (1,)), Delta("b", (2,))]
    whole = [AGAIN, Delta("a", (1,)), FINISHED]
    assert await World([[*cut, lost()], whole]).run() == [*cut, *whole]


LOGPROB = TokenLogprob("a", -0.5)


@pytest.mark.parametrize("delta", [Delta("a", (1,)), Delta("", (1,), (LOGPROB,))])
async def test_a_stream_whose_text_was_sent_ends_with_the_error(delta: Delta) -> None:
    world = World([[STARTED, delta, lost()], [AGAIN, FINISHED]])
    assert code_of(await world.run(streamed=True)) == "replica_lost"
    assert world.attempts == 1


async def test_a_request_that_brings_replicas_down_does_not_take_them_all() -> None:
    world = World([[STARTED, lost()]])
    assert code_of(await world.run(max_attempts=3)) == "replica_lost"
    assert world.attempts == 3


async def test_pauses_grow_to_a_bound_and_vary() -> None:
    world = World([[stopping()]])
    seen = await world.run(deadline=60.0)
    assert world.pauses[:3] == [0.05, 0.1, 0.2]
    assert max(world.pauses) == LONGEST_PAUSE_S
    # Not by count: nobody took it, so it waits for somebody until its deadline.
    assert (code_of(seen), world.now) == ("backend_unavailable", pytest.approx(60.0))
    error = seen[-1]
    assert isinstance(error, ServiceError)
    assert error.status == 503
    jittered = World([[lost()], [STARTED, FINISHED]])
    await jittered.run(jitter=lambda: 0.5)
    assert jittered.pauses == [0.05 * 0.75]


@pytest.mark.parametrize(
    "error", [ContextLengthError("long"), BackendError("failed"), OverloadedError("full")]
)
async def test_what_another_replica_would_say_too_is_final(error: ServiceError) -> None:
    world = World([[error], [STARTED, FINISHED]])
    assert await world.run() == [error]
    assert world.attempts == 1


async def test_an_accepted_request_is_not_refused_for_want_of_room() -> None:
    """Its replica is gone, and the others are full with those who came along."""
    full = OverloadedError("full", retry_after_s=1.0)
    world = World([[STARTED, lost()], [full], [full], [AGAIN, FINISHED]])
    assert (await world.run())[-1] is FINISHED
    assert world.attempts == 4


async def test_a_deadline_without_a_replica_is_503_and_with_one_504() -> None:
    late = DeadlineExceededError("late")
    assert code_of(await World([[late]]).run()) == "deadline_exceeded"
    assert code_of(await World([[lost()], [late]]).run()) == "backend_unavailable"
    assert code_of(await World([[lost()], [STARTED, late]]).run()) == "deadline_exceeded"


class Replicas(FakeBackend):
    """The n-th request goes to the n-th of these, and from then on to the last."""

    def __init__(self, *replicas: FakeBackend) -> None:
        super().__init__()
        self.replicas = replicas

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        replica = self.replicas[min(len(self.requests), len(self.replicas) - 1)]
        self.requests.append(request)
        async with aclosing(replica.generate(request)) as events:
            async for event in events:
                yield event


def dying(after: int | None, **options: Any) -> FakeBackend:
    """A replica that dies before it starts, or after so many words."""
    if after is None:
        return FakeBackend(error=lost(), **options)
    return FakeBackend(error_after=(after, lost()), **options)


@pytest.mark.parametrize("after", [None, 0, 1, 4])
async def test_a_whole_answer_is_right_and_so_are_its_headers(after: int | None) -> None:
    """The first replica had Redis away; the second one, whose answer it is, had it."""
    replicas = Replicas(dying(after, degraded=("redis",)), FakeBackend(words=("b", "c")))
    async with client_of(app_of(replicas)) as client:
        answer = await client.post("/v1/chat/completions", json=chat())
        exposition = (await client.get("/metrics")).text
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "bc"
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert "x-m3-degraded" not in answer.headers
    assert answer.json()["m3"]["degraded"] == []
    assert len({request.deadline for request in replicas.requests}) == 1
    assert "m3_retries_total 1.0" in exposition


@pytest.mark.parametrize("after", [None, 0])
async def test_a_stream_begins_once_and_with_headers_that_are_true(after: int | None) -> None:
    replicas = Replicas(dying(after, degraded=("redis",)), FakeBackend(words=("", "b", "c")))
    async with client_of(app_of(replicas)) as client:
        answer = await client.post("/v1/chat/completions", json=chat(stream=True))
    assert answer.status_code == 200
    assert "x-m3-degraded" not in answer.headers
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks].count("assistant") == 1
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == "bc"


async def test_logprobs_of_a_lost_attempt_are_forgotten() -> None:
    replicas = Replicas(dying(2), FakeBackend(words=("b",)))
    async with client_of(app_of(replicas)) as client:
        answer = await client.post("/v1/chat/completions", json=chat(logprobs=True, top_logprobs=1))
    tokens = answer.json()["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in tokens] == ["b"]


def test_the_official_client_raises_on_a_stream_that_breaks() -> None:
    with serving(app_of(dying(1))) as url, OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        stream = client.chat.completions.create(
            model="m3-auto",
            messages=[user(image_part(), "What?")],  # type: ignore[list-item]
            stream=True,
        )
        texts = []
        with pytest.raises(APIError) as caught:
            for chunk in stream:
                texts += [choice.delta.content for choice in chunk.choices]
        raw = httpx.post(f"{url}/v1/chat/completions", json=chat(stream=True)).text
    assert "".join(text or "" for text in texts) == "a "
    assert caught.value.code == "replica_lost"
    assert caught.value.type == "server_error"
    assert '"code": "replica_lost"' in raw
    assert "[DONE]" not in raw


async def test_nobody_takes_over_before_the_deadline() -> None:
    class Gone(FakeBackend):
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
            self.requests.append(request)
            if len(self.requests) == 1:
                raise lost()
            await asyncio.Event().wait()  # Serve holds a request until there is a replica
            yield STARTED

    async with client_of(app_of(Gone(), request_timeout_s=0.3)) as client:
        answer = await client.post("/v1/chat/completions", json=chat())
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "backend_unavailable"
    assert answer.headers["retry-after"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_lost_attempt_is_not_charged(stream: bool) -> None:
    """One answer, one charge: the prompt of the second attempt and the words that were sent."""
    limit = 100_000
    limiter = Limiter(None, period_s=1e9)
    caller = Caller(Key("alice", bytes(32), tokens_per_minute=limit), limiter)
    replicas = Replicas(dying(0 if stream else 2), FakeBackend(words=("b", "c")))
    service = RoutingService(replicas, None, RouterConfig())
    trace = Trace("id", caller)
    answer = await service.handle(json.dumps(chat(stream=stream)).encode(), trace)
    async for _ in answer:
        pass
    await limiter.settled()
    await caller.take_tokens(0)
    left = int(caller.headers()["x-ratelimit-remaining-tokens"])
    assert left == limit - answer.started.prompt_tokens - 2
    assert trace.retries == 1
    await limiter.close()
