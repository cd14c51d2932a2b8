"""The recorder as a deployment of its own, so that files and their compaction delay no request."""

from __future__ import annotations

import asyncio
import logging
import threading

from ray import serve

from deploy import logs
from deploy.config import Config
from deploy.recorder import RecorderStats, open_recorder
from router.request_log import Line

logger = logging.getLogger("m3_router.records")


class RecorderReplica:
    """Writes records until Serve stops it. What is on the stream then stays there."""

    def __init__(self, config: Config) -> None:
        logs.configure(config.log_level)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._recorder = open_recorder(config, self._name)
        self._stopping = threading.Event()
        arguments = config.records.every_s, self._stopping
        self._thread = threading.Thread(target=self._recorder.run, args=arguments, daemon=True)
        self._thread.start()
        logger.info(Line(message="recorder ready", recorder=self._name, store=config.records_store))

    async def stats(self) -> tuple[str, RecorderStats]:
        """This recorder's name and what it has done."""
        return self._name, self._recorder.stats

    async def flush(self) -> RecorderStats:
        """Writes what is on the stream now; returns when it is in files, or cannot be."""
        await asyncio.to_thread(self._recorder.write_all)
        return self._recorder.stats

    async def check_health(self) -> None:
        """Raises when nothing is written any more, so that Serve replaces this replica."""
        if not self._thread.is_alive():
            raise RuntimeError("the recorder's thread has ended")

    def __del__(self) -> None:
        if hasattr(self, "_thread"):
            self._stopping.set()
            self._thread.join()
            self._recorder.close()
