"""A circuit breaker: after repeated failures a dependency is left alone for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable

from m3_backend.stats import BreakerState


class CircuitBreaker:
    """Closed until `failures` in a row, then open for `pause_s`, then one trial decides.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(
        self, clock: Callable[[], float], *, failures: int = 3, pause_s: float = 5
    ) -> None:
        self._clock, self._limit, self._pause_s = clock, failures, pause_s
        self._lock = threading.Lock()
        self._failures = 0
        self._retry_at = 0.0

    def allows(self) -> bool:
        """Whether to try now. When half open, true for one caller per pause."""
        with self._lock:
            if self._failures < self._limit:
                return True
            if self._clock() < self._retry_at:
                return False
            self._retry_at = self._clock() + self._pause_s
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        with self._lock:
            self._failures += 1
            self._retry_at = self._clock() + self._pause_s

    @property
    def state(self) -> BreakerState:
        with self._lock:
            if self._failures < self._limit:
                return "closed"
            return "open" if self._clock() < self._retry_at else "half_open"
