"""Requests that are over as OpenTelemetry traces, sent to a collector over OTLP/HTTP.

A request's spans are made when it has ended, from the times that were taken on its way anyhow:

    chat m3-auto            the request; child of the client's own span, if it sent one
    ├── routing             the router's own work, with one child per stage (router/stages.py)
    ├── image_fetch         remote images
    └── queue, fetch, encode, prefill, decode     as the replica reported them, end to end

Names of attributes are those of OpenTelemetry's GenAI conventions, `m3.*` are our own. None holds
the question, the answer, a stop string or an image. Sending happens on a thread of its own, from a
queue of bounded length: a collector that is slow or gone costs spans, never a request.

Needs OpenTelemetry's packages, the extra `otel`; router/tracing.py imports it where it is wanted.
"""

from __future__ import annotations

import threading
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from router.config import TelemetryConfig
from router.stages import Stage
from router.trace import OK, Trace
from router.version import DISTRIBUTION, installed_version

CHAT_ENDPOINT = "/v1/chat/completions"
TRACES_PATH = "/v1/traces"
# About five hundred requests; the oldest go first when the collector does not keep up.
QUEUED_SPANS, SPANS_PER_EXPORT, EXPORT_EVERY_MS = 8192, 512, 1000
STAGE_SPANS = 64  # of one request: a batch of routes may run through thousands of stages
EXPORT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0

Attributes = dict[str, Any]


class Tracing:
    """Makes spans of requests. Fits `router.telemetry.Follower`.

    Args:
        endpoint: base URL of the collector.
        instance: names this process in the traces.
    """

    def __init__(self, endpoint: str, config: TelemetryConfig, instance: str) -> None:
        url = endpoint.rstrip("/").removesuffix(TRACES_PATH) + TRACES_PATH
        self._exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S)
        self._provider = _provider(self._exporter, config, instance)
        self._tracer = self._provider.get_tracer(DISTRIBUTION, installed_version())
        self._propagator = TraceContextTextMapPropagator()

    def follow(self, trace: Trace) -> None:
        """Queues the request's spans, if it is among those that are traced."""
        context = self._propagator.extract(trace.parent)
        end_s = trace.elapsed_s()
        span = self._tracer.start_span(
            _name(trace),
            context,
            kind=SpanKind.SERVER,
            start_time=trace.wall_ns,
        )
        if not span.is_recording():
            return
        span.set_attributes(attributes(trace))
        trace.trace_id = format(span.get_span_context().trace_id, "032x")
        self._add_parts(trace, span)
        if trace.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(_unix_ns(trace, end_s))

    def close(self) -> None:
        """Sends what is queued, for as long as that takes no more than seconds."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)
        if closing.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # gives up on the rest

    def _add_parts(self, trace: Trace, root: Span) -> None:
        below_root = set_span_in_context(root)
        if (routing := _extent(trace)) is not None:
            span = self._part(trace, "routing", routing, below_root)
            below = set_span_in_context(span)
            for interval in trace.stages.intervals[:STAGE_SPANS]:
                extent = interval.began_s - trace.arrived, interval.ended_s - trace.arrived
                self._part(trace, _stage_name(interval.stage), extent, below)
        if trace.fetch_extent is not None:
            self._part(trace, "image_fetch", trace.fetch_extent, below_root)
        began_s = trace.handed_s or 0.0
        for phase, took_s in trace.phases().items():
            self._part(trace, phase, (began_s, began_s + took_s), below_root)
            began_s += took_s

    def _part(self, trace: Trace, name: str, extent: tuple[float, float], parent: Context) -> Span:
        span = self._tracer.start_span(name, parent, start_time=_unix_ns(trace, extent[0]))
        span.end(_unix_ns(trace, extent[1]))
        return span


def attributes(trace: Trace) -> Attributes:
    """What the span of a request says."""
    found: Attributes = {
        "http.route": trace.endpoint,
        "http.response.status_code": trace.status,
        "m3.request_id": trace.request_id,
    }
    if trace.code != OK:
        found["error.type"] = trace.code
    if trace.endpoint == CHAT_ENDPOINT:
        found["gen_ai.operation.name"] = "chat"
        found["gen_ai.provider.name"] = DISTRIBUTION
    if trace.degraded:
        found["m3.degraded"] = trace.degraded
    if trace.retries:
        found["m3.retries"] = trace.retries
    return found | _asked(trace) | _decided(trace) | _answered(trace)


def _asked(trace: Trace) -> Attributes:
    if trace.asked is None:
        return {}
    sampling = trace.asked.sampling
    found: Attributes = {
        "gen_ai.request.model": trace.asked.model,
        "gen_ai.request.stream": trace.stream,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
    }
    if sampling.max_tokens is not None:
        found["gen_ai.request.max_tokens"] = sampling.max_tokens
    if sampling.seed is not None:
        found["gen_ai.request.seed"] = sampling.seed
    return found


def _decided(trace: Trace) -> Attributes:
    if trace.decision is None:
        return {}
    images = trace.decision.images
    found: Attributes = {
        "m3.scale": [image.scale for image in images],
        "m3.reason": [image.reason.value for image in images],
        "m3.cost_ms": trace.decision.cost_ms,
    }
    sufficient = [image.p_sufficient for image in images if image.p_sufficient is not None]
    if len(sufficient) == len(images):
        found["m3.p_sufficient"] = sufficient
    if trace.decision.max_regret is not None:
        found["m3.max_regret"] = trace.decision.max_regret
    if trace.decision.loosened_from is not None:
        found["m3.loosened_from"] = trace.decision.loosened_from
    if trace.decision.tightened_to is not None:
        found["m3.tightened_to"] = trace.decision.tightened_to
    if trace.predictor is not None:
        found["m3.predictor"] = trace.predictor
    return found


def _answered(trace: Trace) -> Attributes:
    if trace.started is None:
        return {}
    started, finished = trace.started, trace.finished
    cached = [n for n, c in zip(started.image_tokens, started.cache, strict=True) if c != "miss"]
    found: Attributes = {
        "gen_ai.response.id": f"chatcmpl-{trace.request_id}",
        "gen_ai.usage.input_tokens": started.prompt_tokens,
        "gen_ai.usage.cache_read.input_tokens": sum(cached),
        "m3.image_tokens": sum(started.image_tokens),
        "m3.image_tokens_saved": trace.tokens_saved,
        "m3.cache": started.cache,
        "m3.replica": started.replica,
    }
    if trace.asked is not None:
        found["gen_ai.response.model"] = trace.asked.served
    if trace.ttft_s is not None:
        found["gen_ai.response.time_to_first_chunk"] = trace.ttft_s
    if finished is not None:
        found["gen_ai.response.finish_reasons"] = [finished.reason]
        found["gen_ai.usage.output_tokens"] = finished.completion_tokens
    return found


def _name(trace: Trace) -> str:
    if trace.endpoint == CHAT_ENDPOINT:
        return "chat" if trace.asked is None else f"chat {trace.asked.model}"
    return trace.endpoint


def _stage_name(stage: Stage) -> str:
    return f"routing.{stage.value}"


def _extent(trace: Trace) -> tuple[float, float] | None:
    """From the first stage to the last, in seconds since the arrival."""
    intervals = trace.stages.intervals
    if not intervals:
        return None
    return (
        min(i.began_s for i in intervals) - trace.arrived,
        max(i.ended_s for i in intervals) - trace.arrived,
    )


def _unix_ns(trace: Trace, since_arrival_s: float) -> int:
    return trace.wall_ns + int(since_arrival_s * 1e9)


def _provider(exporter: OTLPSpanExporter, config: TelemetryConfig, instance: str) -> TracerProvider:
    """Ours alone: the process-wide one is for whoever else traces in this process."""
    about = {
        "service.name": config.service_name,
        "service.version": installed_version(),
        "service.instance.id": instance,
    }
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
        resource=Resource.create(about),
        shutdown_on_exit=False,  # `close` does it, and does not wait for long
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=QUEUED_SPANS,
            max_export_batch_size=SPANS_PER_EXPORT,
            schedule_delay_millis=EXPORT_EVERY_MS,
        )
    )
    return provider
