"""Where the router's own time goes: the stages of a decision, each timed where it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter


class Stage(StrEnum):
    """A part of the router's own work. Stable: also labels of metrics and names of spans."""

    WAIT = "wait"  # for a planning thread
    PARSE = "parse"  # JSON, schema, the conversation
    IMAGES = "images"  # base64, digests, checks of the headers
    FEATURES = "features"  # decoding a small view; features of picture and question
    PREDICT = "predict"  # probabilities from features
    DECIDE = "decide"  # the rule and the caller's limits


@dataclass(frozen=True, slots=True)
class Interval:
    """One run of a stage, in seconds on the timer."""

    stage: Stage
    began_s: float
    ended_s: float


class Stages:
    """What one request spent on every stage. Filled by one thread at a time."""

    def __init__(self, timer: Callable[[], float] = perf_counter) -> None:
        self._timer = timer
        self._intervals: list[Interval] = []

    @property
    def intervals(self) -> tuple[Interval, ...]:
        return tuple(self._intervals)

    def now(self) -> float:
        return self._timer()

    def add(self, stage: Stage, began_s: float, ended_s: float) -> None:
        self._intervals.append(Interval(stage, began_s, ended_s))

    @contextmanager
    def of(self, stage: Stage) -> Iterator[None]:
        """Times what is done inside, also when it raises."""
        began_s = self._timer()
        try:
            yield
        finally:
            self.add(stage, began_s, self._timer())

    def totals(self) -> dict[Stage, float]:
        """Seconds by stage, in the order in which stages came first."""
        totals: dict[Stage, float] = {}
        for interval in self._intervals:
            took_s = interval.ended_s - interval.began_s
            totals[interval.stage] = totals.get(interval.stage, 0.0) + took_s
        return totals
