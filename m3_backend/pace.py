"""How fast an engine takes up what waits, and how long a new request would wait for it.

Work is counted in estimated replica milliseconds (`costs.py`), in two parts. Before a request can
answer, its images are encoded and its prompt prefilled, which nobody shares; afterwards it holds a
slot, and every step of the batch is shared by all slots. What matters to a request that arrives is
the work in front of it: of those that fit into free slots only the first part, of the others all.

The estimates are those of a request alone on an idle device. What they are worth under load (other
processes, batches that cost more than one request, features that were cached) is measured: the pace
is the work taken up per millisecond *while requests wait to be taken up*, for others or only for
their own preparation. When nobody waits it says nothing, since an idle engine takes up nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

_MEMORY_S = 5.0  # of waiting, after which a measurement counts for a third
_PRIOR_S = 0.5  # what the estimates themselves weigh at the start, as seconds of measurement
_SLOWEST, _FASTEST = 0.05, 1000.0
_ANSWERS_REMEMBERED = 50
_FIRST_ANSWER_TOKENS = 16.0


@dataclass(frozen=True, slots=True)
class Line:
    """Requests that wait, and their work.

    Args:
        count: how many.
        start_ms: replica time before their answers begin, all together.
        hold_ms: replica time of their answers, as shares of full batches.
    """

    count: int = 0
    start_ms: float = 0.0
    hold_ms: float = 0.0

    def __add__(self, other: Line) -> Line:
        return Line(
            self.count + other.count,
            self.start_ms + other.start_ms,
            self.hold_ms + other.hold_ms,
        )

    def __mul__(self, times: int) -> Line:
        return Line(self.count * times, self.start_ms * times, self.hold_ms * times)

    def __sub__(self, other: Line) -> Line:
        """What is left without `other`; nothing falls below zero."""
        if self.count <= other.count:
            return EMPTY
        return Line(
            self.count - other.count,
            max(self.start_ms - other.start_ms, 0.0),
            max(self.hold_ms - other.hold_ms, 0.0),
        )


EMPTY = Line()


def wait_s(line: Line, free_slots: int, pace: float) -> float:
    """Seconds until a request that joins the end of `line` is taken up.

    Args:
        pace: milliseconds of work per millisecond, of all engines that serve the line together.
    """
    if not line.count:
        return 0.0
    beyond = max(line.count - free_slots, 0) / line.count
    return (line.start_ms + line.hold_ms * beyond) / pace / 1e3


class Pace:
    """Work taken up per millisecond, measured over the last seconds in which requests waited."""

    def __init__(self) -> None:
        self._seconds = _PRIOR_S
        self._work_ms = _PRIOR_S * 1e3

    @property
    def value(self) -> float:
        """1 is as fast as a request alone on an idle device."""
        return min(max(self._work_ms / (self._seconds * 1e3), _SLOWEST), _FASTEST)

    def observe(self, seconds: float, work_ms: float) -> None:
        """`work_ms` was taken up within `seconds` during which requests waited."""
        kept = exp(-seconds / _MEMORY_S)
        self._seconds = self._seconds * kept + seconds
        self._work_ms = self._work_ms * kept + work_ms


class AnswerLength:
    """Tokens that an answer takes: the mean of the last ones, since `max_tokens` says little."""

    def __init__(self) -> None:
        self.mean = _FIRST_ANSWER_TOKENS
        self._seen = 0

    def saw(self, tokens: int) -> None:
        self._seen = min(self._seen + 1, _ANSWERS_REMEMBERED)
        self.mean += (tokens - self.mean) / self._seen
