"""Several pools of replicas as one backend: each a deployment of its own, for some scales."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

from ray.serve.handle import DeploymentHandle

from deploy.backend import BREAKER_STATES, HandleBackend
from deploy.config import Config, ConfigError
from deploy.shadow import ShadowStats
from m3_backend.messages import Event, GenerationRequest, ModelInfo, Pool
from m3_backend.stats import EngineStats
from router.ports import Replicas


def open_backend(
    config: Config, models: Mapping[str, DeploymentHandle[Any]]
) -> HandleBackend | PooledBackend:
    """Over the handles of the configured pools, by name; one without a name serves everything."""
    backends = {name: HandleBackend(handle) for name, handle in models.items()}
    if not config.serve.pools:
        [backend] = backends.values()
        return backend
    scales = {name: pool.scales for name, pool in config.serve.pools.items()}
    return PooledBackend({name: (scales[name], backend) for name, backend in backends.items()})


def joined(told: Mapping[str, tuple[tuple[int, ...], ModelInfo]]) -> ModelInfo:
    """What the pools are together, from the scales and the model of each by its name.

    Raises:
        ConfigError: they serve different models, a scale that the model does not have, or not all
            of its scales.
    """
    infos = {name: info for name, (_, info) in told.items()}
    first_name, first = next(iter(infos.items()))
    for name, info in infos.items():
        if replace(info, costs=first.costs, max_context=first.max_context) != first:
            raise ConfigError(f"serve.pools: {name} and {first_name} serve different models.")
    ladder = first.ladder.scales
    for name, (scales, _) in told.items():
        if unknown := [scale for scale in scales if scale not in ladder]:
            raise ConfigError(
                f"serve.pools.{name}.scales: {first.name} has no scale {unknown[0]}; it has "
                f"{', '.join(map(str, ladder))}."
            )
    served = {scale for scales, _ in told.values() for scale in scales}
    if missing := [scale for scale in ladder if scale not in served]:
        raise ConfigError(f"serve.pools: no pool serves scale {missing[0]} of {first.name}.")
    pools = tuple(
        Pool(name, tuple(sorted(scales)), info.costs) for name, (scales, info) in told.items()
    )
    finest = next(pool for pool in pools if ladder[-1] in pool.scales)
    shortest = min(info.max_context for info in infos.values())
    return replace(first, costs=finest.costs, pools=pools, max_context=shortest)


class PooledBackend:
    """A BackendPort that hands every request to the pool that it names.

    Args:
        pools: scales and replicas of each, by its name.
    """

    def __init__(self, pools: Mapping[str, tuple[tuple[int, ...], HandleBackend]]) -> None:
        self._pools = pools
        self._info: ModelInfo | None = None

    async def info(self) -> ModelInfo:
        """What the model is; waits for the first replica of every pool.

        Raises:
            ConfigError: see `joined`.
        """
        if self._info is None:
            infos = await asyncio.gather(*(backend.info() for _, backend in self._pools.values()))
            pairs = zip(self._pools.items(), infos, strict=True)
            self._info = joined({name: (scales, info) for (name, (scales, _)), info in pairs})
        return self._info

    async def ping(self) -> Replicas:
        """All replicas of all pools. Raises where a pool has none that answers: its scales would
        not be served.
        """
        told = await asyncio.gather(*(backend.ping() for _, backend in self._pools.values()))
        breakers = {each.redis for each in told}
        counts = [(each.answering, each.asked) for each in told]
        busy = any(answering is None or asked is None for answering, asked in counts)
        return Replicas(
            answering=None if busy else sum(answering or 0 for answering, _ in counts),
            asked=None if busy else sum(asked or 0 for _, asked in counts),
            redis=next((state for state in BREAKER_STATES if state in breakers), None),
        )

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        _, backend = self._pools[request.pool]
        async for event in backend.generate(request):
            yield event

    async def stats(self) -> dict[str, EngineStats]:
        """Of every replica by its name, with its pool. One pool that does not answer hides none of
        the others.
        """
        asked = (backend.stats() for _, backend in self._pools.values())
        told = await asyncio.gather(*asked, return_exceptions=True)
        found: dict[str, EngineStats] = {}
        for name, answer in zip(self._pools, told, strict=True):
            if not isinstance(answer, BaseException):
                found |= {replica: replace(each, pool=name) for replica, each in answer.items()}
        if not found:
            raise next(answer for answer in told if isinstance(answer, BaseException))
        return found

    async def shadow_stats(self) -> dict[str, ShadowStats]:
        """What became of drawn requests in every running replica, by its name."""
        asked = (backend.shadow_stats() for _, backend in self._pools.values())
        found: dict[str, ShadowStats] = {}
        for answer in await asyncio.gather(*asked):
            found |= answer
        return found
