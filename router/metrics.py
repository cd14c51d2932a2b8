"""The Prometheus metrics of one ingress replica, and what a request adds to them."""

from __future__ import annotations

import platform

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router.trace import Trace
from router.version import installed_version

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


class RequestMetrics:
    """Counted here; gauges of what changes by itself are given their sources by `Telemetry.show`.

    Args:
        registry: what they are registered with.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "m3_requests",
            "HTTP requests by endpoint and outcome; the code is 'ok' or the error's.",
            ["endpoint", "status", "code"],
            registry=registry,
        )
        self._decisions = Counter(
            "m3_decisions",
            "Images by chosen scale, what settled it, and what became of the request.",
            ["endpoint", "scale", "reason", "code"],
            registry=registry,
        )
        self._tokens = Counter(
            "m3_tokens",
            "Tokens by kind: prompt (image tokens included), image, completion.",
            ["kind"],
            registry=registry,
        )
        self._saved = Counter(
            "m3_image_tokens_saved",
            "Image tokens in prompts fewer than at the finest scale.",
            registry=registry,
        )
        self._cache = Counter(
            "m3_image_features",
            "Images by where their features came from: prefix (not needed), memory, redis, miss.",
            ["cache"],
            registry=registry,
        )
        self._degraded = Counter(
            "m3_degraded_requests",
            "Requests answered while this part was down.",
            ["part"],
            registry=registry,
        )
        self._retries = Counter(
            "m3_retries",
            "Requests handed over once more, because their replica was lost.",
            registry=registry,
        )
        self._routing = Histogram(
            "m3_routing_seconds",
            "The router's own work: parse, check images, predict, decide.",
            buckets=ROUTING_BUCKETS_S,
            registry=registry,
        )
        self._stages = Histogram(
            "m3_routing_stage_seconds",
            "Parts of the router's own work, all images of a request together: wait (for a "
            "planning thread), parse, images (base64, digests, headers), features (decoding "
            "included), predict, decide.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        self._fetching = Histogram(
            "m3_image_fetch_seconds",
            "Fetching the remote images of a request, successful or not.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._ttft = Histogram(
            "m3_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._phases = Histogram(
            "m3_phase_seconds",
            "What happens behind the router: queue (all between hand-over and prefill that is no "
            "work), fetch (features from caches), encode (vision tower), prefill, decode.",
            ["phase"],
            buckets=PHASE_BUCKETS_S,
            registry=registry,
        )
        self._per_token = Histogram(
            "m3_time_per_output_token_seconds",
            "Of an answer with at least two tokens, from the first to the last, by their number.",
            buckets=TOKEN_BUCKETS_S,
            registry=registry,
        )
        self._duration = Histogram(
            "m3_request_seconds",
            "From a request's arrival to the end of its response.",
            ["endpoint"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.pressure = Gauge(
            "m3_pressure",
            "Estimated wait of a new request, in units of router.load.max_wait_s.",
            registry=registry,
        )
        self._loosened = Counter(
            "m3_loosened_requests",
            "Requests decided by a bound that load had loosened.",
            registry=registry,
        )
        self._tightened_requests = Counter(
            "m3_tightened_requests",
            "Requests decided at a stricter price than is certified for their bound, because live "
            "labels have broken that one.",
            registry=registry,
        )
        self.tightened = Gauge(
            "m3_tightened",
            "1 while the service's own bound is decided at a stricter price than is certified "
            "for it.",
            registry=registry,
        )
        self._shed = Counter(
            "m3_shed_requests",
            "Requests refused because of load, by priority.",
            ["priority"],
            registry=registry,
        )
        self.feedback = Counter(
            "m3_feedback",
            "Answers of which somebody has said whether they were right, by the scale that gave "
            "them (`several` where images had different ones), what the question was about, and "
            "the verdict: right, wrong.",
            ["scale", "group", "verdict"],
            registry=registry,
        )
        self.predictor_refused = Gauge(
            "m3_predictor_refused",
            "1 while a changed predictor cannot be used and the one before it stays.",
            registry=registry,
        )
        self.loop_lag = Histogram(
            "m3_event_loop_lag_seconds",
            "How much later than due the event loop came to a timer, twenty times a second.",
            buckets=LAG_BUCKETS_S,
            registry=registry,
        )
        self.in_flight = Gauge(
            "m3_requests_in_flight", "HTTP requests being handled now.", registry=registry
        )
        self.limits_breaker = Gauge(
            "m3_limits_redis_breaker_open",
            "1 while limits are counted without Redis, which is left alone after failures.",
            registry=registry,
        )
        build = Gauge(
            "m3_build_info",
            "Always 1; the versions that run.",
            ["version", "python"],
            registry=registry,
        )
        build.labels(installed_version(), platform.python_version()).set(1)

    def count(self, trace: Trace) -> None:
        """Counts a request that is over."""
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

    def _count_load(self, trace: Trace) -> None:
        if trace.decision is not None and trace.decision.loosened_from is not None:
            self._loosened.inc()
        if trace.decision is not None and trace.decision.tightened_to is not None:
            self._tightened_requests.inc()
        if trace.code == "overloaded":
            self._shed.labels(trace.priority).inc()
