"""How long something takes."""

from __future__ import annotations

import time
from collections.abc import Callable


def quickest_s(work: Callable[[], object], repeats: int = 5) -> float:
    """Seconds, the best of some after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
