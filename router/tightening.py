"""What live labels say of thresholds, on its way from the recorder to every ingress: in Redis.

A hash for each predictor: certified bound → what the regret of its price is at least. Values never
fall. They have no time to live, so `volatile-lfu` does not evict them, and hold as long as that
Redis holds anything; a recorder that finds nothing there puts them there again from the labels in
files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from predictor.tightening import Lows
from router.service import RoutingService

logger = logging.getLogger("m3_router.policy")

LOOK_EVERY_S = 1.0
_PREFIX = "m3:lows:"
_TIMEOUT_S = 2.0


class Board:
    """Where what is known of thresholds is put up. Blocks: not for an event loop."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )

    def raise_to(self, version: str, lows: Lows) -> None:
        """Puts up what is more than was there. Raises redis.RedisError."""
        there = self.read(version)
        more: dict[Any, Any] = {
            repr(b): repr(low) for b, low in lows.items() if low > there.get(b, 0.0)
        }
        if more:
            self._redis.hset(_PREFIX + version, mapping=more)

    def read(self, version: str) -> dict[float, float]:
        """What is known of a predictor's thresholds. Raises redis.RedisError."""
        found: Any = self._redis.hgetall(_PREFIX + version)
        return {float(bound): float(low) for bound, low in found.items()}

    def close(self) -> None:
        self._redis.close()


class Publisher:
    """Puts up what has changed since it last could."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._told: dict[str, Lows] = {}

    def publish(self, lows: Mapping[str, Lows]) -> None:
        """Never raises: what cannot be told now is told with the next labels."""
        for version, found in lows.items():
            if self._told.get(version) == found:
                continue
            try:
                self._board.raise_to(version, found)
            except Exception as error:  # damaged replies break the client's parser in many ways
                logger.warning("what labels say of thresholds cannot be told: %r", error)
                return
            self._told[version] = dict(found)


class TighteningWatch:
    """Has a service decide with what is put up. While Redis is away, what was known holds."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._said: tuple[str | None, float | None] = None, None

    async def keep(self, service: RoutingService) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            await self.look(service)
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self, service: RoutingService) -> None:
        """Looks once. Never raises."""
        version = service.predictor_version
        if version is not None:
            try:
                lows = await asyncio.to_thread(self._board.read, version)
            except Exception as error:
                logger.debug("what labels say of thresholds cannot be read: %r", error)
            else:
                service.tighten(version, lows)
        self._say(version, service.tightened_to, service.config.max_regret)

    def _say(self, version: str | None, to: float | None, promise: float) -> None:
        if (version, to) == self._said:
            return
        (_, before), self._said = self._said, (version, to)
        if to is not None:
            logger.warning(
                "predictor %s breaks the promise of %g with 95%% confidence: decided at %s until "
                "another one is promoted; run m3-router retrain",
                version,
                promise,
                f"the price of {to:g}" if to else "the finest scale",
            )
        elif before is not None:
            logger.warning("predictor %s decides at its own prices again", version)
