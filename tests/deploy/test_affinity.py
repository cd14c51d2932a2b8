"""The request router in a real Ray Serve: two replicas, told apart by their names."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle, serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from deploy.affinity import AffinityRouter
from deploy.backend import HandleBackend
from deploy.pools import PooledBackend
from deploy.transport import Message
from m3_backend.messages import Delta, GenerationRequest, ImageInput
from m3_backend.stats import CacheStats, EngineStats
from tests.fakes import MODEL

NO_CACHE = CacheStats(0, 0, 0, 0, 0, 0, None, 0, 0)
PLACES = 16


class Model:
    """Answers with its own name; a request called "wait" keeps it busy until it is cancelled."""

    def __init__(self) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id

    async def info(self) -> Any:
        return MODEL

    async def stats(self) -> tuple[str, EngineStats]:
        return self._name, EngineStats(0, 0, 0, PLACES, NO_CACHE)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Message]:
        yield (Delta(self._name),)
        if request.request_id == "wait":
            await asyncio.Event().wait()


class Caller:
    """Asks as an ingress replica does."""

    def __init__(self, model: DeploymentHandle[Any], coarse: DeploymentHandle[Any]) -> None:
        self.backend = HandleBackend(model)
        self.pools = PooledBackend(
            {"coarse": ((1, 9, 36), HandleBackend(coarse)), "fine": ((36, 144, 576), self.backend)}
        )
        self.holding: list[str] = []
        self.free = asyncio.Event()

    async def who(self, picture: int | None) -> str:
        names = [
            event.text
            async for event in self.backend.generate(request("ask", picture))
            if isinstance(event, Delta)
        ]
        return names[0]

    async def hold(self, picture: int) -> str:
        """Who has a request that stays until `let_go`. Every call is a request of its own."""
        stream = self.backend.generate(request("wait", picture))
        event = await anext(stream)
        assert isinstance(event, Delta)
        self.holding.append(event.text)
        await self.free.wait()
        await stream.aclose()
        return event.text

    async def held(self) -> int:
        return len(self.holding)

    async def let_go(self) -> None:
        self.free.set()

    async def pool_of_who(self, pool: str) -> str:
        """The pool of the replica that answers a request for a pool."""
        asked = replace(request("ask", 1), pool=pool)
        async for event in self.pools.generate(asked):
            assert isinstance(event, Delta)
            return (await self.pools.stats())[event.text].pool
        raise AssertionError("nobody answered")

    async def pools_are(self) -> tuple[Any, Any]:
        return await self.pools.info(), await self.pools.ping()

    async def replicas(self) -> list[str]:
        return list(await self.backend.stats())


def request(what: str, picture: int | None) -> GenerationRequest:
    image = ImageInput(b"", f"{picture:064x}", 1, 1) if picture is not None else None
    images, scales = ((image,), (576,)) if image else ((), ())
    return GenerationRequest(
        what, turns=(), images=images, scales=scales, work_ms=100.0, encode_ms=250.0
    )


@pytest.fixture(scope="module")
def caller(ray_cluster: Path) -> DeploymentHandle[Any]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    router: Any = f"{AffinityRouter.__module__}.{AffinityRouter.__name__}"
    model = serve.deployment(
        num_replicas=2,
        max_ongoing_requests=PLACES,
        ray_actor_options={"num_cpus": 0},
        request_router_config=RequestRouterConfig(request_router_class=router),
    )(Model)
    serve.start(proxy_location="Disabled")
    front = serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=64)(Caller)
    coarse = serve.deployment(name="Coarse", ray_actor_options={"num_cpus": 0})(Model)
    return serve.run(front.bind(model.bind(), coarse.bind()), name="affinity", route_prefix=None)


def test_a_crowd_for_one_picture_spreads_and_leaves_nothing_behind(
    caller: DeploymentHandle[Any],
) -> None:
    """The first test here: a router hears late of the end of what others have asked before."""
    waiting = []
    limit = time.monotonic() + 60
    for count in range(1, 13):
        waiting.append(caller.hold.remote(3))
        while caller.held.remote().result() < count:
            assert time.monotonic() < limit
    caller.let_go.remote().result()
    names = [one.result(timeout_s=60) for one in waiting]
    home = names[0]
    assert set(names[:3]) == {home}  # until the other is shorter by more than an encoding
    assert names[3] != home
    assert len(set(names)) == 2
    assert abs(names.count(home) - 6) <= 2
    # Their work is off the books, as soon as the router has heard of their end.
    deadline = time.monotonic() + 30
    while caller.who.remote(3).result() != home:
        assert time.monotonic() < deadline


def test_a_picture_stays_with_one_replica_and_pictures_go_to_both(
    caller: DeploymentHandle[Any],
) -> None:
    homes = [{caller.who.remote(picture).result() for _ in range(4)} for picture in range(12)]
    assert all(len(names) == 1 for names in homes)
    assert set.union(*homes) == set(caller.replicas.remote().result())


def test_questions_without_pictures_are_answered(caller: DeploymentHandle[Any]) -> None:
    assert caller.who.remote(None).result() in caller.replicas.remote().result()


def test_a_request_goes_to_the_pool_that_it_names(caller: DeploymentHandle[Any]) -> None:
    for pool in ("coarse", "fine", "coarse"):
        assert caller.pool_of_who.remote(pool).result() == pool
    info, replicas = caller.pools_are.remote().result()
    assert [(pool.name, pool.scales) for pool in info.pools] == [
        ("coarse", (1, 9, 36)),
        ("fine", (36, 144, 576)),
    ]
    assert (replicas.answering, replicas.asked) == (3, 3)
