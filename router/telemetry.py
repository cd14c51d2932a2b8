"""What the service tells operators: Prometheus metrics, one log line per request, and whatever else
is told of each request that is over (router/spans.py).

None of it holds the question, the answer or the image. Nothing here raises into a request.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from time import perf_counter
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from m3_backend.errors import ServiceError
from m3_backend.messages import Delta, Event, Finished, Priority, Sampling, Started
from predictor.drift import Kind, Shift
from router.access import ANYBODY, Caller
from router.errors import translate
from router.evidence import Draw, Evidence
from router.policy import Decision
from router.stages import Stages

requests_log = logging.getLogger("m3_router.requests")  # one Line per request
faults_log = logging.getLogger("m3_router.faults")  # what nobody foresaw, with its traceback

OK = "ok"
UNROUTED = "none"  # endpoint label of a request that no route took
API = "/v1/"  # paths whose requests are logged and traced
NONE = "none"  # version label of a predictor that is not there
DISTRIBUTION = "m3-router"
STAGE_BUCKETS_S = (
    *(0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002),
    *(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0),
)
ROUTING_BUCKETS_S = (
    *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.02, 0.05, 0.1, 0.25, 1.0),
)
LAG_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
LATENCY_BUCKETS_S = (
    *(0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.35),
    *(0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
PHASE_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, *LATENCY_BUCKETS_S)
TOKEN_BUCKETS_S = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03),
    *(0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5),
)


class Line(dict[str, Any]):
    """What one line of the log says, by field. As text it is one JSON object."""

    def __str__(self) -> str:
        return json.dumps(self, separators=(",", ":"), default=str)


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


class Follower(Protocol):
    """Hears of requests that are over: `router.spans.Tracing`, `router.recording.Recording`."""

    def follow(self, trace: Trace) -> None:
        """Must neither block nor raise; may set `trace.trace_id`."""

    def close(self) -> None: ...


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
        followers: told of every API request that is over, before it is logged.
    """

    def __init__(
        self,
        labels: Mapping[str, str] | None = None,
        followers: Sequence[Follower | None] = (),
    ) -> None:
        self._followers = [each for each in followers if each is not None]
        self.own = own = CollectorRegistry()
        self.exposed: Collector = _Labelled(own, labels or {})
        self.registry = CollectorRegistry()  # what is shown; others may add theirs
        self.registry.register(self.exposed)
        self._requests = Counter(
            "m3_requests",
            "HTTP requests by endpoint and outcome; the code is 'ok' or the error's.",
            ["endpoint", "status", "code"],
            registry=own,
        )
        self._decisions = Counter(
            "m3_decisions",
            "Images by chosen scale, what settled it, and what became of the request.",
            ["endpoint", "scale", "reason", "code"],
            registry=own,
        )
        self._tokens = Counter(
            "m3_tokens",
            "Tokens by kind: prompt (image tokens included), image, completion.",
            ["kind"],
            registry=own,
        )
        self._saved = Counter(
            "m3_image_tokens_saved",
            "Image tokens in prompts fewer than at the finest scale.",
            registry=own,
        )
        self._cache = Counter(
            "m3_image_features",
            "Images by where their features came from: prefix (not needed), memory, redis, miss.",
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
        self._stages = Histogram(
            "m3_routing_stage_seconds",
            "Parts of the router's own work, all images of a request together: wait (for a "
            "planning thread), parse, images (base64, digests, headers), features (decoding "
            "included), predict, decide.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
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
        self._phases = Histogram(
            "m3_phase_seconds",
            "What happens behind the router: queue (all between hand-over and prefill that is no "
            "work), fetch (features from caches), encode (vision tower), prefill, decode.",
            ["phase"],
            buckets=PHASE_BUCKETS_S,
            registry=own,
        )
        self._per_token = Histogram(
            "m3_time_per_output_token_seconds",
            "Of an answer with at least two tokens, from the first to the last, by their number.",
            buckets=TOKEN_BUCKETS_S,
            registry=own,
        )
        self._duration = Histogram(
            "m3_request_seconds",
            "From a request's arrival to the end of its response.",
            ["endpoint"],
            buckets=LATENCY_BUCKETS_S,
            registry=own,
        )
        self._pressure = Gauge(
            "m3_pressure",
            "Estimated wait of a new request, in units of router.load.max_wait_s.",
            registry=own,
        )
        self._loosened = Counter(
            "m3_loosened_requests",
            "Requests decided by a bound that load had loosened.",
            registry=own,
        )
        self._tightened_requests = Counter(
            "m3_tightened_requests",
            "Requests decided at a stricter price than is certified for their bound, because live "
            "labels have broken that one.",
            registry=own,
        )
        self._tightened = Gauge(
            "m3_tightened",
            "1 while the service's own bound is decided at a stricter price than is certified "
            "for it.",
            registry=own,
        )
        self._shed = Counter(
            "m3_shed_requests",
            "Requests refused because of load, by priority.",
            ["priority"],
            registry=own,
        )
        self._feedback = Counter(
            "m3_feedback",
            "Answers of which somebody has said whether they were right, by the scale that gave "
            "them (`several` where images had different ones), what the question was about, and "
            "the verdict: right, wrong.",
            ["scale", "group", "verdict"],
            registry=own,
        )
        self._predictor_refused = Gauge(
            "m3_predictor_refused",
            "1 while a changed predictor cannot be used and the one before it stays.",
            registry=own,
        )
        self._loop_lag = Histogram(
            "m3_event_loop_lag_seconds",
            "How much later than due the event loop came to a timer, twenty times a second.",
            buckets=LAG_BUCKETS_S,
            registry=own,
        )
        self._in_flight = Gauge(
            "m3_requests_in_flight", "HTTP requests being handled now.", registry=own
        )
        self._limits_breaker = Gauge(
            "m3_limits_redis_breaker_open",
            "1 while limits are counted without Redis, which is left alone after failures.",
            registry=own,
        )
        self._build = Gauge(
            "m3_build_info",
            "Always 1; the versions that run.",
            ["version", "python"],
            registry=own,
        )
        self._build.labels(installed_version(), platform.python_version()).set(1)
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
        self._predictor_refused.set_function(predictor_refused)
        self._limits_breaker.set_function(limits_breaker)
        self._pressure.set_function(pressure)
        self._tightened.set_function(tightened)

    def show_instead(self, all_of_us: Collector) -> None:
        """Shows `all_of_us`, which includes `exposed`, where `exposed` alone was shown."""
        self.registry.unregister(self.exposed)
        self.registry.register(all_of_us)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def loop_lagged(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    def judged(self, scale: str, group: str, *, right: bool) -> None:
        """Counts feedback."""
        self._feedback.labels(scale, group, "right" if right else "wrong").inc()

    def begin(self) -> None:
        self._in_flight.inc()

    def end(self, trace: Trace) -> None:
        """Counts, traces and logs a request that is over. Never raises."""
        self._in_flight.dec()
        steps: list[Callable[[Trace], None]] = [self._count]
        if trace.endpoint.startswith(API):
            steps += [follower.follow for follower in self._followers]
            steps.append(_log)
        for step in steps:
            try:
                step(trace)
            except Exception:
                faults_log.exception("request %s could not be recorded", trace.request_id)

    def close(self) -> None:
        """Sends off what is left to be told. Takes seconds at most; not for the event loop."""
        for follower in self._followers:
            follower.close()

    def _count_load(self, trace: Trace) -> None:
        if trace.decision is not None and trace.decision.loosened_from is not None:
            self._loosened.inc()
        if trace.decision is not None and trace.decision.tightened_to is not None:
            self._tightened_requests.inc()
        if trace.code == "overloaded":
            self._shed.labels(trace.priority).inc()

    def _count(self, trace: Trace) -> None:
        self._count_load(trace)
        self._requests.labels(trace.endpoint, trace.status, trace.code).inc()
        self._duration.labels(trace.endpoint).observe(trace.elapsed_s())
        if trace.decision is not None:
            for image in trace.decision.images:
                self._decisions.labels(
                    trace.endpoint, image.scale, image.reason.value, trace.code
                ).inc()
        if trace.routing_s is not None:
            self._routing.observe(trace.routing_s)
        for stage, took_s in trace.stages.totals().items():
            self._stages.labels(stage.value).observe(took_s)
        for phase, took_s in trace.phases().items():
            self._phases.labels(phase).observe(took_s)
        self._retries.inc(trace.retries)
        if trace.fetch_s:
            self._fetching.observe(trace.fetch_s)
        if trace.started is not None:
            self._tokens.labels("prompt").inc(trace.started.prompt_tokens)
            self._tokens.labels("image").inc(sum(trace.started.image_tokens))
            self._saved.inc(trace.tokens_saved)
            for level in trace.started.cache:
                self._cache.labels(level).inc()
        for part in trace.degraded:
            self._degraded.labels(part).inc()
        if trace.ttft_s is not None:
            self._ttft.observe(trace.ttft_s)
        if trace.finished is not None:
            tokens = trace.finished.completion_tokens
            self._tokens.labels("completion").inc(tokens)
            if tokens > 1:
                self._per_token.observe(trace.finished.decode_ms / 1e3 / (tokens - 1))


class PredictorInfo(Collector):
    """The predictor in use, as a label of a gauge that is always 1. It may change at any time."""

    def __init__(self) -> None:
        self.version: Callable[[], str | None] = lambda: None

    def collect(self) -> Iterator[Metric]:
        metric = GaugeMetricFamily(
            "m3_predictor_info",
            "Always 1; the predictor in use, `none` without one.",
            labels=["version"],
        )
        metric.add_metric([self.version() or NONE], 1)
        yield metric


class Drifted(Protocol):
    """`router.drift.DriftState`."""

    @property
    def images(self) -> int: ...
    @property
    def shifts(self) -> Mapping[Kind, Shift]: ...
    @property
    def warning(self) -> bool: ...


class DriftMetrics(Collector):
    """How far traffic has moved, where that is watched."""

    def __init__(self) -> None:
        self.now: Callable[[], Drifted | None] = lambda: None

    def collect(self) -> Iterator[Metric]:
        state = self.now()
        psi = GaugeMetricFamily(
            "m3_drift_psi",
            "Population stability index of what moved most against the samples that the predictor "
            "was certified on: features of the picture, of the question, the score.",
            labels=["kind"],
        )
        images = GaugeMetricFamily(
            "m3_drift_images", "Different images of the window that is compared.", labels=[]
        )
        warning = GaugeMetricFamily(
            "m3_drift_warning", "1 while one of them is beyond router.drift.warn_at.", labels=[]
        )
        if state is not None:
            for kind, shift in state.shifts.items():
                psi.add_metric([kind], shift.psi)
            images.add_metric([], state.images)
            warning.add_metric([], state.warning)
        yield from (psi, images, warning)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of the records of an ingress: on the stream, lost, still in memory only."""

    acknowledged: int = 0
    dropped: int = 0
    waiting: int = 0


class RecordCounts(Collector):
    """How an ingress stands with its records."""

    def __init__(self) -> None:
        self.now: Callable[[], Recorded] = Recorded

    def collect(self) -> Iterator[Metric]:
        counts = self.now()
        total = CounterMetricFamily(
            "m3_records",
            "Records of requests by what became of them: acknowledged by the stream, or dropped.",
            labels=["outcome"],
        )
        total.add_metric(["acknowledged"], counts.acknowledged)
        total.add_metric(["dropped"], counts.dropped)
        yield total
        waiting = GaugeMetricFamily(
            "m3_records_waiting", "Records in memory only, until the stream takes them.", labels=[]
        )
        waiting.add_metric([], counts.waiting)
        yield waiting


@dataclass(frozen=True, slots=True)
class Observations:
    """What an observer of this ingress has seen.

    Args:
        version: of the predictor that watches; None where none does.
        refused: a newer one cannot be used.
        images: by the scale that was chosen and the one that it would have chosen.
        failures: requests that it could not decide on.
    """

    version: str | None = None
    refused: bool = False
    images: Mapping[tuple[int, int], int] = field(default_factory=dict)
    failures: int = 0


class ObserverCounts(Collector):
    """A predictor that only watches, beside the one that serves."""

    def __init__(self) -> None:
        self.now: Callable[[], Observations] = Observations

    def collect(self) -> Iterator[Metric]:
        seen = self.now()
        info = GaugeMetricFamily(
            "m3_observer_info",
            "Always 1; the predictor that only watches, `none` without one.",
            labels=["version"],
        )
        info.add_metric([seen.version or NONE], 1)
        refused = GaugeMetricFamily(
            "m3_observer_refused",
            "1 while the predictor that is to watch cannot be used.",
            labels=[],
        )
        refused.add_metric([], float(seen.refused))
        images = CounterMetricFamily(
            "m3_observed_images",
            "Images by the scale that was chosen and the one that the predictor that only watches "
            "would have chosen.",
            labels=["scale", "observed"],
        )
        for (scale, observed), count in seen.images.items():
            images.add_metric([str(scale), str(observed)], count)
        failures = CounterMetricFamily(
            "m3_observer_failures",
            "Requests on which the predictor that only watches failed to decide.",
            labels=[],
        )
        failures.add_metric([], seen.failures)
        yield from (info, refused, images, failures)


def _log(trace: Trace) -> None:
    requests_log.info(_line(trace))


def installed_version() -> str:
    """Of this package."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


def _line(trace: Trace) -> Line:
    """Fields that this request did not get to are left out."""
    fields: dict[str, object] = {
        "request_id": trace.request_id,
        "endpoint": trace.endpoint,
        "status": trace.status,
        "code": trace.code,
        "stream": trace.stream,
        "total_ms": _ms(trace.elapsed_s()),
    }
    if trace.trace_id is not None:
        fields["trace_id"] = trace.trace_id
    if trace.caller.name is not None:
        fields["key"] = trace.caller.name
    if trace.asked is not None:
        fields["model"] = trace.asked.model
    if trace.fetch_s:
        fields["image_fetch_ms"] = _ms(trace.fetch_s)
    if trace.decision is not None:
        fields |= {
            "scale": list(trace.decision.scales),
            "reason": [image.reason for image in trace.decision.images],
            "p_sufficient": [image.p_sufficient for image in trace.decision.images],
            "max_regret": trace.decision.max_regret,
            "loosened_from": trace.decision.loosened_from,
            "tightened_to": trace.decision.tightened_to,
            "cost_ms": round(trace.decision.cost_ms, 3),
            "predictor": trace.predictor,
        }
    if trace.retries:
        fields["retries"] = trace.retries
    if trace.routing_s is not None:
        fields["routing_ms"] = _ms(trace.routing_s)
    if totals := trace.stages.totals():
        fields["stages_ms"] = {stage.value: _ms(took_s) for stage, took_s in totals.items()}
    if trace.started is not None:
        fields |= {
            "cache": trace.started.cache,
            "degraded": trace.degraded,
            "replica": trace.started.replica,
            "prompt_tokens": trace.started.prompt_tokens,
            "image_tokens": sum(trace.started.image_tokens),
            "image_tokens_saved": trace.tokens_saved,
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
    return Line(fields)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
