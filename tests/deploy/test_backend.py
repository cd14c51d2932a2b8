"""The handle backend on a real Ray Serve; a stand-in for the model misbehaves on demand."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle, serve
from ray.serve.handle import DeploymentHandle

from deploy.backend import HandleBackend
from deploy.transport import Message, packed
from m3_backend.errors import ContextLengthError, ServiceError
from m3_backend.messages import Delta, Event, Finished, GenerationRequest
from m3_backend.stats import CacheStats, EngineStats
from tests.fakes import MODEL

MAX_ONGOING, MAX_QUEUED = 2, 1
NO_CACHE = CacheStats(0, 0, 0, 0, 0, 0, None, 0, 0)


class Model:
    """Has the methods of M3Replica; the request's id says what happens."""

    def __init__(self) -> None:
        self.running = 0
        self.broken = False

    async def info(self) -> Any:
        return MODEL

    async def break_down(self) -> None:
        self.broken = True

    async def stats(self) -> tuple[str, EngineStats]:
        if self.broken:
            raise RuntimeError("the loop has ended")
        return "one", EngineStats(self.running, 0, 0, MAX_ONGOING, NO_CACHE)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Message]:
        async for message in packed(self._answer(request), whole=request.whole):
            yield message

    async def _answer(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        self.running += 1
        try:
            yield Delta("first")
            match request.request_id:
                case "refuse":
                    raise ContextLengthError("too long")
                case "crash":
                    raise KeyError("an accident")
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "endless":
                    await asyncio.Event().wait()
            yield Finished("stop", 1, 1.0, 1.0)
        finally:
            self.running -= 1


class Caller:
    """Runs a HandleBackend where the router does: inside another replica."""

    def __init__(self, model: DeploymentHandle[Any]) -> None:
        self.backend = HandleBackend(model)

    async def ask(self, what: str) -> list[Any]:
        """Events until the end, the error last."""
        seen: list[Any] = []
        try:
            async for event in self.backend.generate(request(what)):
                seen.append(event)
        except ServiceError as error:
            seen.append(error)
        return seen

    async def start_and_close(self) -> int:
        """Closes an endless answer after its first event; gives what still runs then."""
        async with aclosing(self.backend.generate(request("endless"))) as events:
            await anext(events)
            assert await self.running() == 1
        return await self.comes_to_rest()

    async def start_and_cancel(self) -> int:
        """The same for a task that is cancelled while it waits for an event."""
        first = asyncio.Event()

        async def read(events: AsyncGenerator[Event, None]) -> None:
            async with aclosing(events):
                async for _ in events:
                    first.set()

        task = asyncio.create_task(read(self.backend.generate(request("endless"))))
        await first.wait()
        task.cancel()
        await asyncio.wait([task])
        return await self.comes_to_rest()

    async def crowd(self, late: int) -> list[Any]:
        """Fills the replica, then comes with `late` more at once; gives the refusals."""
        streams = [self.backend.generate(request("endless")) for _ in range(MAX_ONGOING + late)]
        for stream in streams[:MAX_ONGOING]:
            await anext(stream)
        tasks = [asyncio.ensure_future(anext(stream)) for stream in streams[MAX_ONGOING:]]
        while (refused := [task for task in tasks if task.done()]) != tasks[MAX_QUEUED:]:
            await asyncio.sleep(0)
        for waiting in tasks[:MAX_QUEUED]:
            waiting.cancel()
        await asyncio.wait(tasks)
        await self.backend.ping()  # full, and there
        for stream in streams:
            await stream.aclose()
        return [task.exception() for task in refused]

    async def info(self) -> Any:
        return await self.backend.info()

    async def ping(self) -> str | None:
        """The code of the error, if there is one."""
        try:
            await self.backend.ping()
        except ServiceError as error:
            return error.code
        return None

    async def running(self) -> int:
        return sum(stats.running for stats in (await self.backend.stats()).values())

    async def comes_to_rest(self) -> int:
        for _ in range(1000):
            if not await self.running():
                return 0
        return await self.running()


def request(what: str) -> GenerationRequest:
    return GenerationRequest(what, turns=(), images=(), scales=())


@pytest.fixture(scope="module")
def caller(ray_cluster: Path) -> DeploymentHandle[Any]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    model = serve.deployment(max_ongoing_requests=MAX_ONGOING, max_queued_requests=MAX_QUEUED)(
        Model
    )
    serve.start(proxy_location="Disabled")
    return serve.run(serve.deployment(Caller).bind(model.bind()), name="test", route_prefix=None)


def test_info_and_events_arrive_as_they_were_sent(caller: DeploymentHandle[Any]) -> None:
    assert caller.info.remote().result() == MODEL
    assert caller.ask.remote("answer").result() == [
        Delta("first"),
        Finished("stop", 1, 1.0, 1.0),
    ]


def test_a_refusal_keeps_its_code_and_message(caller: DeploymentHandle[Any]) -> None:
    [_, error] = caller.ask.remote("refuse").result()
    assert isinstance(error, ContextLengthError)
    assert (error.status, error.message) == (400, "too long")


def test_an_accident_is_an_error_that_tells_nothing(caller: DeploymentHandle[Any]) -> None:
    [_, error] = caller.ask.remote("crash").result()
    assert (error.status, error.code) == (502, "backend_error")
    assert "accident" not in error.message


def test_closing_an_answer_ends_it_on_the_replica(caller: DeploymentHandle[Any]) -> None:
    assert caller.start_and_close.remote().result() == 0
    assert caller.start_and_cancel.remote().result() == 0


def test_too_many_at_once_are_refused_with_a_hint(caller: DeploymentHandle[Any]) -> None:
    errors = caller.crowd.remote(MAX_QUEUED + 2).result(timeout_s=30)
    assert [error.code for error in errors] == ["overloaded"] * 2
    assert all(error.status == 429 and error.retry_after_s for error in errors)


def test_a_replica_that_dies_is_an_error_and_is_replaced(caller: DeploymentHandle[Any]) -> None:
    error = caller.ask.remote("die").result()[-1]
    assert (error.status, error.code) == (502, "replica_lost")
    assert caller.ask.remote("answer").result()[-1] == Finished("stop", 1, 1.0, 1.0)


def test_a_ping_asks_the_replica_itself(caller: DeploymentHandle[Any]) -> None:
    """What the model is, is remembered; whether it is there is asked afresh. Breaks the replica."""
    assert caller.ping.remote().result() is None
    serve.get_deployment_handle("Model", "test").break_down.remote().result()
    assert caller.info.remote().result() == MODEL
    assert caller.ping.remote().result() == "backend_error"
