"""Watches how far the requests of this process have moved from what its predictor was certified on.

Off the requests' way: what was decided on goes into a sliding window when the request is over, and
a thread compares the window now and then. A shift is told, and changes nothing: neither decisions
nor readiness.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from predictor.drift import Kind, Shift, shifts
from router.config import DriftConfig
from router.in_force import InForce
from router.trace import Trace

logger = logging.getLogger("m3_router.drift")

CHAT = "/v1/chat/completions"  # what the playground tries out is no traffic
# Of so few pictures the largest of some two hundred indices is large by chance alone.
FEWEST_IMAGES = 200
_BACKLASH = 0.8  # share of the limit below which a warning ends


@dataclass(frozen=True, slots=True)
class DriftState:
    """What the window says.

    Args:
        requests, images: in the window; of the predictor in force, images each counted once.
        shifts: what moved most, by kind; empty while there are too few images, or nothing to
            compare with.
        warning: whether one of them is beyond the limit.
    """

    requests: int = 0
    images: int = 0
    shifts: Mapping[Kind, Shift] = field(default_factory=dict)
    warning: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    predictor: str
    image: str
    values: NDArray[np.float32]


class DriftWatch:
    """Fits `router.telemetry.Follower`.

    Args:
        in_force: what decides now.
    """

    def __init__(self, config: DriftConfig, in_force: Callable[[], InForce]) -> None:
        self._config, self._in_force = config, in_force
        self._window: deque[_Seen] = deque(maxlen=config.window)
        self.state = DriftState()

    def follow(self, trace: Trace) -> None:
        if trace.endpoint != CHAT or trace.evidence is None or trace.predictor is None:
            return
        for seen in trace.evidence.images:
            if seen.inputs is not None and seen.case.p_success is not None:
                score = np.array(seen.case.p_success, dtype=np.float32)
                values = np.concatenate((seen.inputs, score))
                self._window.append(_Seen(trace.predictor, seen.name, values))

    def close(self) -> None:
        """Nothing is left to be sent."""

    async def keep(self) -> None:
        """Compares again and again, until it is cancelled."""
        while True:
            await asyncio.sleep(self._config.every_s)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Compares the window with the reference of the predictor in force. CPU work."""
        now = self._in_force()
        reference = None if now.predictor is None else now.predictor.reference
        seen = [each for each in list(self._window) if each.predictor == now.version]
        images = len({each.image for each in seen})
        found: dict[Kind, Shift] = {}
        if reference is not None and images >= FEWEST_IMAGES:
            found = shifts(reference, np.stack([each.values for each in seen]))
        worst = max((shift.psi for shift in found.values()), default=0.0)
        limit = self._config.warn_at * (_BACKLASH if self.state.warning else 1.0)
        before, self.state = self.state, DriftState(len(seen), images, found, worst >= limit)
        if self.state.warning and not before.warning:
            moved = ", ".join(f"{shift.name} {shift.psi:.2f}" for shift in found.values())
            logger.warning(
                "traffic has moved from what predictor %s was certified on (population stability "
                "from %g on: %s); its bound is about other traffic, retrain",
                now.version,
                self._config.warn_at,
                moved,
            )
        elif before.warning and not self.state.warning:
            logger.warning("traffic is like what predictor %s was certified on", now.version)
