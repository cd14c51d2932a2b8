"""What the service tells operators: Prometheus metrics and one log line per request.

Neither holds the question, the answer or the image. Nothing here raises into a request.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from m3_backend.errors import ServiceError
from m3_backend.messages import Delta, Event, Finished, Started
from router.access import ANYBODY, Caller
from router.errors import translate
from router.policy import Decision

requests_log = logging.getLogger("m3_router.requests")  # one JSON object per line
faults_log = logging.getLogger("m3_router.faults")  # what nobody foresaw, with its traceback

OK = "ok"
UNROUTED = "none"  # endpoint label of a request that no route took
ROUTING_BUCKETS_S = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.02, 0.05, 0.1, 0.25, 1.0),
)
LATENCY_BUCKETS_S = (
    *(0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.35),
    *(0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)


@dataclass
class Trace:
    """Who sent one HTTP request and what happened to it, filled in along its way.

    Times are seconds on the injected monotonic timer. `routing_s` is the router's own work, so
    without `fetch_s`, which is spent on remote images.
    """

    request_id: str
    caller: Caller = ANYBODY
    timer: Callable[[], float] = perf_counter
    endpoint: str = UNROUTED
    status: int = 200
    code: str = OK
    stream: bool = False
    decision: Decision | None = None
    predictor: str | None = None
    routing_s: float | None = None
    fetch_s: float = 0.0
    retries: int = 0
    started: Started | None = None
    ttft_s: float | None = None
    finished: Finished | None = None
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

    def saw(self, event: Event) -> None:
        """Takes from an event what metrics need."""
        if isinstance(event, Started):  # perhaps once more, after a replica was lost
            self.started, self.ttft_s = event, None
        elif isinstance(event, Finished):
            self.finished = event
        elif isinstance(event, Delta) and self.ttft_s is None:
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


class _Labelled(Collector):
    """Another collector's metrics with the same labels added to every series."""

    def __init__(self, metrics: Collector, labels: Mapping[str, str]) -> None:
        self._metrics = metrics
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for metric in self._metrics.collect():
            metric.samples = [
                s._replace(labels={**s.labels, **self._labels}) for s in metric.samples
            ]
            yield metric


class Telemetry:
    """The service's own metrics, and its log.

    Args:
        labels: put on every series of its own, to tell this process from others.
    """

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        own = CollectorRegistry()
        self.registry = CollectorRegistry()  # what is shown; others may add theirs
        self.registry.register(_Labelled(own, labels or {}))
        self._requests = Counter(
            "m3_requests",
            "HTTP requests by endpoint and outcome; the code is 'ok' or the error's.",
            ["endpoint", "status", "code"],
            registry=own,
        )
        self._decisions = Counter(
            "m3_decisions",
            "Images by chosen scale and what settled it.",
            ["endpoint", "scale", "reason"],
            registry=own,
        )
        self._tokens = Counter(
            "m3_tokens",
            "Tokens by kind: prompt (image tokens included), image, completion.",
            ["kind"],
            registry=own,
        )
        self._cache = Counter(
            "m3_image_features",
            "Images by where their features came from: memory, redis or miss.",
            ["cache"],
            registry=own,
        )
        self._degraded = Counter(
            "m3_degraded_requests",
            "Requests answered while this part was down.",
            ["part"],
            registry=own,
        )
        self._retries = Counter(
            "m3_retries",
            "Requests handed over once more, because their replica was lost.",
            registry=own,
        )
        self._routing = Histogram(
            "m3_routing_seconds",
            "The router's own work: parse, check images, predict, decide.",
            buckets=ROUTING_BUCKETS_S,
            registry=own,
        )
        self._fetching = Histogram(
            "m3_image_fetch_seconds",
            "Fetching the remote images of a request, successful or not.",
            buckets=LATENCY_BUCKETS_S,
            registry=own,
        )
        self._ttft = Histogram(
            "m3_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=LATENCY_BUCKETS_S,
            registry=own,
        )
        self._duration = Histogram(
            "m3_request_seconds",
            "From a request's arrival to the end of its response.",
            ["endpoint"],
            buckets=LATENCY_BUCKETS_S,
            registry=own,
        )
        self.predictor_refused = Gauge(
            "m3_predictor_refused",
            "1 while a changed predictor cannot be used and the one before it stays.",
            registry=own,
        )
        self._in_flight = Gauge(
            "m3_requests_in_flight", "HTTP requests being handled now.", registry=own
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def begin(self) -> None:
        self._in_flight.inc()

    def end(self, trace: Trace) -> None:
        """Counts and logs a request that is over. Never raises."""
        try:
            self._in_flight.dec()
            self._count(trace)
            if trace.endpoint.startswith("/v1/"):
                requests_log.info(_line(trace))
        except Exception:
            faults_log.exception("request %s could not be recorded", trace.request_id)

    def _count(self, trace: Trace) -> None:
        self._requests.labels(trace.endpoint, trace.status, trace.code).inc()
        self._duration.labels(trace.endpoint).observe(trace.elapsed_s())
        if trace.decision is not None:
            for image in trace.decision.images:
                self._decisions.labels(trace.endpoint, image.scale, image.reason.value).inc()
        if trace.routing_s is not None:
            self._routing.observe(trace.routing_s)
        self._retries.inc(trace.retries)
        if trace.fetch_s:
            self._fetching.observe(trace.fetch_s)
        if trace.started is not None:
            self._tokens.labels("prompt").inc(trace.started.prompt_tokens)
            self._tokens.labels("image").inc(sum(trace.started.image_tokens))
            for level in trace.started.cache:
                self._cache.labels(level).inc()
        for part in trace.degraded:
            self._degraded.labels(part).inc()
        if trace.ttft_s is not None:
            self._ttft.observe(trace.ttft_s)
        if trace.finished is not None:
            self._tokens.labels("completion").inc(trace.finished.completion_tokens)


def _line(trace: Trace) -> str:
    """One JSON object; fields that this request did not get to are left out."""
    fields: dict[str, object] = {
        "request_id": trace.request_id,
        "endpoint": trace.endpoint,
        "status": trace.status,
        "code": trace.code,
        "stream": trace.stream,
        "total_ms": _ms(trace.elapsed_s()),
    }
    if trace.caller.name is not None:
        fields["key"] = trace.caller.name
    if trace.fetch_s:
        fields["image_fetch_ms"] = _ms(trace.fetch_s)
    if trace.decision is not None:
        fields |= {
            "scale": list(trace.decision.scales),
            "reason": [image.reason for image in trace.decision.images],
            "p_sufficient": [image.p_sufficient for image in trace.decision.images],
            "max_regret": trace.decision.max_regret,
            "cost_ms": round(trace.decision.cost_ms, 3),
            "predictor": trace.predictor,
        }
    if trace.retries:
        fields["retries"] = trace.retries
    if trace.routing_s is not None:
        fields["routing_ms"] = _ms(trace.routing_s)
    if trace.started is not None:
        fields |= {
            "cache": trace.started.cache,
            "degraded": trace.degraded,
            "replica": trace.started.replica,
            "prompt_tokens": trace.started.prompt_tokens,
            "image_tokens": sum(trace.started.image_tokens),
            "queue_ms": trace.started.queue_ms,
            "fetch_ms": trace.started.fetch_ms,
            "encode_ms": trace.started.encode_ms,
        }
    if trace.ttft_s is not None:
        fields["ttft_ms"] = _ms(trace.ttft_s)
    if trace.finished is not None:
        fields |= {
            "completion_tokens": trace.finished.completion_tokens,
            "finish_reason": trace.finished.reason,
            "prefill_ms": trace.finished.prefill_ms,
            "decode_ms": trace.finished.decode_ms,
        }
    return json.dumps(fields, separators=(",", ":"))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
