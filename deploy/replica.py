"""The replica that holds the model: one engine, reached through a Serve handle."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import AsyncIterator

from ray import serve

from deploy import logs
from deploy.config import Config
from deploy.feedback import open_held_answers
from deploy.garbage import settle
from deploy.recorder import open_stream
from deploy.shadow import ShadowLabeller, ShadowStats, open_queue
from deploy.transport import Message, packed
from m3_backend.messages import GenerationRequest, ModelInfo
from m3_backend.stats import EngineStats
from predictor.record_store import LABELS
from router.request_log import Line

logger = logging.getLogger("m3_router.deploy")


class M3Replica:
    """Serves one checkpoint. Serve creates it, checks its health and calls its async methods.

    Raises:
        CheckpointError: the configured checkpoint cannot be opened; the replica does not start.
    """

    def __init__(self, config: Config) -> None:
        logs.configure(config.log_level)
        # Set before torch is loaded, which reads it once. Ray would otherwise leave every replica
        # with as many threads as the machine has cores, all fighting for the same ones.
        os.environ["OMP_NUM_THREADS"] = str(config.threads)
        from deploy.engines import open_engine  # noqa: PLC0415 - loads torch

        self._name = serve.get_replica_context().replica_id.unique_id
        began_s = time.monotonic()
        self._engine = open_engine(config, replica=self._name)
        self._shadow: ShadowLabeller | None = None
        self._stopping = threading.Event()
        if config.shadow_labels:
            self._shadow = ShadowLabeller(
                open_queue(config),
                open_stream(config, LABELS).append,
                self._engine.scorer().scores,
                self._idle,
                config.router.shadow,
                replica=self._name,
                held=open_held_answers(config),
            )
            arguments = (self._stopping,)
            threading.Thread(target=self._shadow.run, args=arguments, daemon=True).start()
        settle()
        logger.info(
            Line(
                message="model ready",
                replica=self._name,
                model=self._engine.info.name,
                identity=self._engine.info.identity,
                max_context=self._engine.info.max_context,
                took_s=round(time.monotonic() - began_s, 3),
            )
        )

    async def info(self) -> ModelInfo:
        return self._engine.info

    async def stats(self) -> tuple[str, EngineStats]:
        """This replica's name and what its engine has done."""
        return self._name, self._engine.stats()

    async def shadow_stats(self) -> tuple[str, ShadowStats]:
        """This replica's name and what became of drawn requests."""
        return self._name, ShadowStats() if self._shadow is None else self._shadow.stats

    def _idle(self) -> bool:
        stats = self._engine.stats()
        return stats.running == stats.waiting == 0

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Message]:
        """Started, Deltas, Finished; or a ServiceError as the last item (deploy/transport.py)."""
        async for message in packed(self._engine.generate(request), whole=request.whole):
            yield message

    async def check_health(self) -> None:
        """Raises when the engine's loop has ended, so that Serve replaces this replica."""
        self._engine.stats()

    def __del__(self) -> None:
        if hasattr(self, "_stopping"):
            self._stopping.set()
        if hasattr(self, "_engine"):
            self._engine.close()
