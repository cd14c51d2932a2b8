"""What happened to one request, filled in along its way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

from m3_backend.errors import ServiceError
from m3_backend.messages import Delta, Event, Finished, Priority, Sampling, Started
from router.access import ANYBODY, Caller
from router.errors import translate
from router.evidence import Draw, Evidence
from router.policy import Decision
from router.stages import Stages

faults_log = logging.getLogger("m3_router.faults")  # what nobody foresaw, with its traceback

OK = "ok"
UNROUTED = "none"  # endpoint label of a request that no route took


@dataclass(frozen=True, slots=True)
class Facts:
    """What a caller asked for, as far as it is nobody's secret.

    Args:
        model: as the caller names it; it exists.
        served: the checkpoint.
        finest_tokens: image tokens, had every image got the finest scale.
    """

    model: str
    served: str
    sampling: Sampling
    finest_tokens: int


@dataclass
class Trace:
    """Who sent one HTTP request and what happened to it, filled in along its way.

    Times are seconds on the injected monotonic timer; points in time count from `arrived`.
    `routing_s` is the router's own work, so without `fetch_s`, which is spent on remote images.

    Args:
        parent: W3C trace context that the client sent, by header.
        wall_ns: Unix time of the arrival.
        fetch_extent: when fetching of remote images began and ended.
        evidence: what the decision was made from.
        pressure: the load when it arrived.
        draw: if it was drawn for a shadow label.
        handed_s, started_s: when it was handed over, and when a replica had started on it.
        total_s: how long it took; None while it is not over.
        answer: its text, piece by piece. Told to nobody: feedback is compared with its fingerprint.
        trace_id: of the distributed trace that it is part of, if it is one.
    """

    request_id: str
    caller: Caller = ANYBODY
    timer: Callable[[], float] = perf_counter
    parent: Mapping[str, str] = field(default_factory=dict)
    wall_ns: int = field(default_factory=time.time_ns)
    stages: Stages = field(default_factory=Stages)
    endpoint: str = UNROUTED
    status: int = 200
    code: str = OK
    stream: bool = False
    decision: Decision | None = None
    predictor: str | None = None
    asked: Facts | None = None
    evidence: Evidence | None = None
    pressure: float | None = None
    draw: Draw | None = None
    routing_s: float | None = None
    fetch_s: float = 0.0
    priority: Priority = "interactive"
    fetch_extent: tuple[float, float] | None = None
    handed_s: float | None = None
    retries: int = 0
    started: Started | None = None
    started_s: float | None = None
    ttft_s: float | None = None
    finished: Finished | None = None
    answer: list[str] = field(default_factory=list)
    trace_id: str | None = None
    total_s: float | None = None
    arrived: float = field(init=False)

    def __post_init__(self) -> None:
        self.arrived = self.timer()

    @property
    def degraded(self) -> tuple[str, ...]:
        """Parts that were down and done without, here or on the replica."""
        started = () if self.started is None else self.started.degraded
        return tuple(dict.fromkeys((*self.caller.degraded, *started)))

    def elapsed_s(self) -> float:
        return self.timer() - self.arrived

    def phases(self) -> dict[str, float]:
        """Seconds of what happened behind the router, in order, as far as it got.

        `queue` is everything between hand-over and prefill that is not work: Serve's queue, the way
        there, the replica's own queue.
        """
        if self.started is None or self.started_s is None or self.handed_s is None:
            return {}
        fetch_s, encode_s = self.started.fetch_ms / 1e3, self.started.encode_ms / 1e3
        waited_s = max(self.started_s - self.handed_s - fetch_s - encode_s, 0.0)
        phases = {"queue": waited_s, "fetch": fetch_s, "encode": encode_s}
        if self.finished is not None:
            phases["prefill"] = self.finished.prefill_ms / 1e3
            phases["decode"] = self.finished.decode_ms / 1e3
        return phases

    @property
    def tokens_saved(self) -> int:
        """Image tokens in the prompt fewer than at the finest scale."""
        if self.started is None or self.asked is None:
            return 0
        return self.asked.finest_tokens - sum(self.started.image_tokens)

    def saw(self, event: Event) -> None:
        """Takes from an event what metrics need."""
        if isinstance(event, Started):  # perhaps once more, after a replica was lost
            self.started, self.started_s, self.ttft_s = event, self.elapsed_s(), None
            self.answer.clear()
        elif isinstance(event, Finished):
            self.finished = event
            if not self.stream and self.started_s is not None:
                # The text of a whole answer comes at its end; the replica knows when it began.
                self.ttft_s = min(self.started_s + event.prefill_ms / 1e3, self.elapsed_s())
        elif isinstance(event, Delta):
            self.answer.append(event.text)
            if self.ttft_s is None:
                self.ttft_s = self.elapsed_s()

    def lost(self) -> None:
        """Notes that a replica failed the request, and that it goes to another one."""
        self.retries += 1

    def failed(self, error: Exception) -> ServiceError:
        """Notes the outcome, also of a stream that had answered 200 before it broke.

        Returns:
            The error as the client may see it. What nobody foresaw is logged here, once, in full.
        """
        shown = translate(error)
        self.status, self.code = shown.status, str(shown.code)
        if shown is not error and shown.status >= 500:
            faults_log.error("request %s failed", self.request_id, exc_info=error)
        return shown
