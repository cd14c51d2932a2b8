"""What the service tells operators: Prometheus metrics, one log line per request, and whatever else
is told of each request that is over (router/spans.py).

None of it holds the question, the answer or the image. Nothing here raises into a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from router import request_log
from router.collectors import DriftMetrics, Labelled, ObserverCounts, PredictorInfo, RecordCounts
from router.metrics import RequestMetrics
from router.trace import Trace, faults_log

API = "/v1/"  # paths whose requests are logged and traced


class Follower(Protocol):
    """Hears of requests that are over: `router.spans.Tracing`, `router.recording.Recording`."""

    def follow(self, trace: Trace) -> None:
        """Must neither block nor raise; may set `trace.trace_id`."""

    def close(self) -> None: ...


class Telemetry:
    """The service's own metrics, and its log.

    Args:
        labels: put on every series of its own, to tell this process from others.
        followers: told of every API request that is over, before it is logged.
    """

    def __init__(
        self,
        labels: Mapping[str, str] | None = None,
        followers: Sequence[Follower | None] = (),
    ) -> None:
        self._followers = [each for each in followers if each is not None]
        self.own = own = CollectorRegistry()
        self.exposed: Collector = Labelled(own, labels or {})
        self.registry = CollectorRegistry()  # what is shown; others may add theirs
        self.registry.register(self.exposed)
        self._metrics = RequestMetrics(own)
        self._predictor = PredictorInfo()
        own.register(self._predictor)
        self.records = RecordCounts()
        own.register(self.records)
        self.observed = ObserverCounts()
        own.register(self.observed)
        self.drift = DriftMetrics()
        own.register(self.drift)

    def show(
        self,
        *,
        predictor: Callable[[], str | None],
        predictor_refused: Callable[[], bool],
        limits_breaker: Callable[[], bool],
        pressure: Callable[[], float],
        tightened: Callable[[], bool],
    ) -> None:
        """Where the gauges of what changes by itself have their values from."""
        self._predictor.version = predictor
        self._metrics.predictor_refused.set_function(predictor_refused)
        self._metrics.limits_breaker.set_function(limits_breaker)
        self._metrics.pressure.set_function(pressure)
        self._metrics.tightened.set_function(tightened)

    def show_instead(self, all_of_us: Collector) -> None:
        """Shows `all_of_us`, which includes `exposed`, where `exposed` alone was shown."""
        self.registry.unregister(self.exposed)
        self.registry.register(all_of_us)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def loop_lagged(self, seconds: float) -> None:
        self._metrics.loop_lag.observe(seconds)

    def judged(self, scale: str, group: str, *, right: bool) -> None:
        """Counts feedback."""
        self._metrics.feedback.labels(scale, group, "right" if right else "wrong").inc()

    def begin(self) -> None:
        self._metrics.in_flight.inc()

    def end(self, trace: Trace) -> None:
        """Counts, traces and logs a request that is over. Never raises."""
        self._metrics.in_flight.dec()
        steps: list[Callable[[Trace], None]] = [self._metrics.count]
        if trace.endpoint.startswith(API):
            steps += [follower.follow for follower in self._followers]
            steps.append(request_log.log)
        for step in steps:
            try:
                step(trace)
            except Exception:
                faults_log.exception("request %s could not be recorded", trace.request_id)

    def close(self) -> None:
        """Sends off what is left to be told. Takes seconds at most; not for the event loop."""
        for follower in self._followers:
            follower.close()
