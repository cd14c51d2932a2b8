"""A predictor that is replaced while the service runs, when what it was read from has changed.

Whoever writes the new one may take a while, so it is read once it has stayed the same between two
looks. What cannot be used changes nothing: the one before stays in force, and log, metric and
`/readyz` say so until something usable is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

logger = logging.getLogger("m3_router.predictor")

CHECK_EVERY_S = 1.0


class Using(Protocol):
    """Who works with a predictor: `RoutingService`, `Observer`."""

    def use(self, predictor: Any, *, refused: bool = False) -> None: ...


class Versioned(Protocol):
    @property
    def version(self) -> str: ...


P = TypeVar("P", bound=Versioned)


class PredictorWatch(Generic[P]):
    """The predictor in force.

    Args:
        read: opens the predictor, checked against the model, or gives None where there is none
            (yet, or any more); raises if it cannot be used.
        signature: changes when what `read` reads does; raises OSError if it is not there.
        instead: gives what to begin with where that which is there is known not to be usable.

    Raises:
        Exception: what `read` raises: nothing starts with a predictor that cannot be used.
    """

    def __init__(
        self,
        read: Callable[[], P | None],
        signature: Callable[[], object],
        *,
        instead: Callable[[], P | None] | None = None,
    ) -> None:
        self._read, self._signature = read, signature
        self._tried = self._last = self._signature_now()
        self.predictor = read() if instead is None else instead()
        self.refused = instead is not None  # whether what is there now cannot be used

    @property
    def version(self) -> str | None:
        return None if self.predictor is None else self.predictor.version

    async def keep(self, user: Using) -> None:
        """Has `user` use what is in force, until it is cancelled."""
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            await self.look()
            user.use(self.predictor, refused=self.refused)

    async def look(self) -> None:
        """Takes over a predictor that has changed since it was last tried, and not since the last
        look. Never raises.
        """
        signature = await asyncio.to_thread(self._signature_now)
        settled, self._last = signature == self._last, signature
        if signature == self._tried or not settled:
            return
        try:
            new = await asyncio.to_thread(self._read)
        except Exception as error:
            self.refused = True
            logger.error(
                "the predictor has changed and cannot be used; %s stays: %s",
                self.version or "none",
                error,
            )
        else:
            self.refused = False
            before, after = self.version, None if new is None else new.version
            if after != before:
                logger.warning("predictor %s is in force, in place of %s", after, before)
                self.predictor = new
        self._tried = signature

    def _signature_now(self) -> object:
        try:
            return self._signature()
        except OSError:
            return None
