"""What the page shows of the records, from a deployment of its own: no query delays a request."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from typing import Any

from ray import serve

from deploy import logs
from deploy.config import Config
from router.dashboard.looks import Looked
from router.dashboard.rollups import RollUps
from router.dashboard.views import Price, Views
from router.request_log import Line

logger = logging.getLogger("m3_router.dashboard")

REFRESH_S = 2.0  # between two looks for new files
NICER = 10  # than those who answer requests, where they share a machine


class Dashboard:
    """Adds up records as their files appear, and answers from the sums."""

    def __init__(self, config: Config) -> None:
        logs.configure(config.log_level)
        os.nice(NICER)  # this process is this replica's alone
        assert config.records_store is not None
        self._rollups = RollUps(config.records_store)
        price = Price(config.dashboard.price_per_replica_hour, config.dashboard.currency)
        self._views = Views(self._rollups, price, time.time)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._thread.start()
        name = serve.get_replica_context().replica_id.unique_id
        logger.info(Line(message="dashboard ready", dashboard=name, store=config.records_store))

    async def show(self, looked: Looked) -> dict[str, Any]:
        """One view."""
        return await asyncio.to_thread(self._views.show, looked)

    async def check_health(self) -> None:
        """Raises when nothing is added up any more, so that Serve replaces this replica."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that reads records has ended")

    def _keep_up(self) -> None:
        while not self._stopping.is_set():
            try:
                self._rollups.refresh()
            except OSError as error:  # the store is away; it may come back
                logger.warning("records cannot be read: %r", error)
            self._stopping.wait(REFRESH_S)

    def __del__(self) -> None:
        if hasattr(self, "_stopping"):
            self._stopping.set()
