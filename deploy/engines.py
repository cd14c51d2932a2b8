"""The engine that a configuration describes. Loads torch; knows nothing of Ray."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from deploy.config import Config
from m3_backend.engine import Engine, EngineSettings, TorchEngine
from m3_backend.feature_cache import FeatureCache
from m3_backend.messages import Event, GenerationRequest, ModelInfo
from m3_backend.stats import EngineStats
from router.ports import Replicas


class EngineBackend:
    """A BackendPort over an engine in this very process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def info(self) -> ModelInfo:
        return self._engine.info

    async def ping(self) -> Replicas:
        stats = self._engine.stats()  # raises when the engine's loop has ended
        return Replicas(answering=1, asked=1, redis=stats.cache.breaker)

    async def stats(self) -> dict[str, EngineStats]:
        return {"": self._engine.stats()}

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        return self._engine.generate(request)


def open_engine(config: Config, *, replica: str) -> TorchEngine:
    """Loads the checkpoint and starts the engine's thread.

    Raises:
        CheckpointError: the checkpoint cannot be opened.
    """
    cache = FeatureCache(
        config.cache.memory,
        config.redis_url,
        ttl_s=config.cache.ttl_s,
        secret=config.cache.secret.get_secret_value().encode(),
        storage=config.cache.storage,
    )
    return TorchEngine.open(
        config.model.checkpoint,
        dtype=config.model.dtype,
        device=config.model.device,
        cache=cache,
        settings=EngineSettings(
            max_batch=config.model.max_batch,
            max_context=config.model.max_context,
            kv_tokens=config.model.kv_tokens,
            prefill_budget=config.model.prefill_budget,
            threads=config.threads,
            towers=config.towers,
            replica=replica,
        ),
    )
