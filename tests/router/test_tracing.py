"""Traces, over real HTTP to a collector that parses what it gets."""

from __future__ import annotations

import gzip
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from deploy.logs import JsonFormatter
from m3_backend.errors import BackendError
from router.config import RouterConfig, TelemetryConfig
from router.http import build_app
from router.ports import BackendPort, PredictorPort
from router.service import RoutingService
from router.spans import STAGE_SPANS, attributes
from router.stages import Stage
from router.telemetry import Telemetry
from router.trace import Trace
from router.tracing import open_tracing
from tests.conftest import unused_port
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import chat, client_of, image_part, picture
from tests.test_imports import run_without

CHAT = "/v1/chat/completions"
TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRETS = ("4929-1234-5678-9012", "alices-passport.png", "sk-live-secret", "her-blood-type")


class Collector:
    """Takes OTLP over HTTP, and keeps it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies: list[bytes] = []
        self.paths: list[str] = []

    def requests(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    def spans(self) -> list[Span]:
        resources = [r for request in self.requests() for r in request.resource_spans]
        return [span for r in resources for scope in r.scope_spans for span in scope.spans]

    def named(self, name: str) -> Span:
        [found] = [span for span in self.spans() if span.name == name]
        return found


@contextmanager
def collecting(hold: threading.Event | None = None) -> Iterator[Collector]:
    """A real server; answers only when `hold`, if given, is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if hold is not None:
                hold.wait(30)
            collector.bodies.append(body)
            collector.paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def traced(
    url: str, backend: BackendPort, predictor: PredictorPort | None = None, **config: Any
) -> Iterator[httpx.AsyncClient]:
    """A client of an app that is traced; what is queued has been sent when this is left."""
    settings = RouterConfig(telemetry=TelemetryConfig(otlp_endpoint=url, **config))
    telemetry = Telemetry(followers=[open_tracing(settings.telemetry, "here")])
    client = client_of(build_app(RoutingService(backend, predictor, settings), telemetry))
    try:
        yield client
    finally:
        telemetry.close()


def values(span: Span) -> dict[str, Any]:
    """Attributes as Python's own values."""

    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind == "array_value":
            return [plain(v) for v in value.array_value.values]
        return getattr(value, kind)

    return {attribute.key: plain(attribute.value) for attribute in span.attributes}


async def test_a_request_becomes_one_tree_of_spans() -> None:
    parent = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "vendor=1"}
    with collecting() as collector:
        with traced(collector.url, FakeBackend(), FakePredictor()) as client:
            answer = await client.post(CHAT, json=chat(max_tokens=9, seed=7), headers=parent)
        assert collector.paths == ["/v1/traces"]
        root = collector.named("chat m3-auto")
        spans = collector.spans()
        [request] = collector.requests()

    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}
    assert root.parent_span_id.hex() == PARENT_ID
    assert root.trace_state == "vendor=1"
    assert root.kind == Span.SPAN_KIND_SERVER
    assert root.status.code == Status.STATUS_CODE_UNSET
    said = values(root)
    assert said.pop("m3.cost_ms") == pytest.approx(19.2)
    assert said.pop("gen_ai.response.time_to_first_chunk") > 0
    assert said == {
        "http.route": CHAT,
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "m3-router",
        "gen_ai.request.model": "m3-auto",
        "gen_ai.request.stream": False,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.seed": 7,
        "gen_ai.response.id": answer.json()["id"],
        "gen_ai.response.model": "fake",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 56,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "m3.request_id": answer.headers["x-m3-request-id"],
        "m3.scale": [36],
        "m3.reason": ["predicted"],
        "m3.p_sufficient": [pytest.approx(0.97)],
        "m3.max_regret": 0.05,
        "m3.predictor": "fake-1",
        "m3.cache": ["miss"],
        "m3.image_tokens": 36,
        "m3.image_tokens_saved": 540,
        "m3.replica": "fake-replica",
    }
    by_id = {span.span_id: span for span in spans}
    parents = {s.name: by_id[s.parent_span_id].name for s in spans if s is not root and s != root}
    below = {"routing", "queue", "fetch", "encode", "prefill", "decode"}
    assert parents == dict.fromkeys(below, "chat m3-auto") | {
        f"routing.{stage.value}": "routing" for stage in Stage
    }
    about = {a.key: a.value.string_value for a in request.resource_spans[0].resource.attributes}
    assert about["service.name"] == "m3-router"
    assert about["service.instance.id"] == "here"


async def test_spans_lie_within_their_parents_and_last_as_long_as_was_measured() -> None:
    with collecting() as collector:
        with traced(collector.url, FakeBackend(), FakePredictor()) as client:
            await client.post(CHAT, json=chat())
        spans = {span.name: span for span in collector.spans()}
    root, routing = spans["chat m3-auto"], spans["routing"]
    assert root.start_time_unix_nano <= routing.start_time_unix_nano
    for stage in Stage:
        span = spans[f"routing.{stage.value}"]
        assert routing.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= routing.end_time_unix_nano
    assert routing.end_time_unix_nano <= spans["queue"].start_time_unix_nano
    for name, took_ms in (("fetch", 0.5), ("encode", 10.0), ("prefill", 8.0), ("decode", 6.0)):
        span = spans[name]
        measured = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert measured == pytest.approx(took_ms, abs=1e-3)


async def test_failures_are_told_and_what_never_happened_is_not() -> None:
    with collecting() as collector:
        with traced(collector.url, FakeBackend(error=BackendError("gone"))) as client:
            await client.post(CHAT, json=chat())
            await client.post(CHAT, json=chat(model="gpt-4o"))
            await client.get("/readyz")  # no business of anybody's
        failed, refused = collector.named("chat m3-auto"), collector.named("chat")
        names = [span.name for span in collector.spans()]
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert values(failed)["error.type"] == "backend_error"
    assert "gen_ai.usage.input_tokens" not in values(failed)
    assert refused.status.code == Status.STATUS_CODE_UNSET  # the caller's fault
    assert values(refused)["error.type"] == "model_not_found"
    assert "gen_ai.request.model" not in values(refused)  # it may be anything
    assert "prefill" not in names
    assert len({span.trace_id for span in (failed, refused)}) == 2


async def test_a_stream_is_traced_to_its_end() -> None:
    with collecting() as collector:
        with traced(collector.url, FakeBackend()) as client:
            await client.post(CHAT, json=chat(stream=True))
        said = values(collector.named("chat m3-auto"))
    assert said["gen_ai.request.stream"] is True
    assert said["gen_ai.usage.output_tokens"] == 4


async def test_no_span_and_no_line_holds_what_was_asked_or_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    card, name, key, blood = SECRETS
    body = chat(
        image_part(f"data:image/png;name={name};base64,AAAA"),
        f"Whose card is {card}?",
        stop=[blood],
    )
    fine = chat(
        image_part(), f"Whose card is {card}?", stop=[blood], user=name, metadata={"n": name}
    )
    headers = {"Authorization": f"Bearer {key}", "x-request-id": key, "baggage": f"name={name}"}
    with collecting() as collector:
        for backend in (
            FakeBackend(words=(card, blood)),
            FakeBackend(error_after=(1, RuntimeError(card))),
        ):
            with traced(collector.url, backend, FakePredictor()) as client:
                for sent in (body, fine, fine | {"stream": True}, chat(f"{card}?"), {card: name}):
                    await client.post(CHAT, json=sent, headers=headers)
                await client.get(f"/v1/models/{name}", headers=headers)
        assert len([s for s in collector.spans() if s.name.startswith("chat")]) == 10
        exported = b"".join(collector.bodies)
    assert not [secret for secret in SECRETS if secret.encode() in exported]
    lines = [r for r in caplog.records if r.name.startswith("m3_router")]
    assert len(lines) >= 12
    written = "\n".join(JsonFormatter().format(record) for record in lines)
    assert '"type":"RuntimeError"' in written
    assert not [secret for secret in SECRETS if secret in written]


async def test_a_clients_own_choice_holds_and_others_are_drawn() -> None:
    unsampled = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
    sampled = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    with collecting() as collector:
        with traced(collector.url, FakeBackend(), sample_ratio=0.0) as client:
            await client.post(CHAT, json=chat())
            await client.post(CHAT, json=chat(), headers=unsampled)
            await client.post(CHAT, json=chat(), headers=sampled)
            await client.post(CHAT, json=chat(), headers={"traceparent": "00-nonsense"})
        assert collector.named("chat m3-auto").trace_id.hex() == TRACE_ID


async def test_a_large_batch_is_no_flood_of_spans() -> None:
    batch = {"requests": [chat(image_part(), image_part(), "What?")] * 20}
    with collecting() as collector:
        with traced(collector.url, FakeBackend(), FakePredictor()) as client:
            await client.post("/v1/route/batch", json=batch)
        names = [span.name for span in collector.spans()]
    assert names.count("/v1/route/batch") == names.count("routing") == 1
    assert len(names) == STAGE_SPANS + 2


async def test_the_log_names_the_trace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "m3_router.requests")
    parent = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    with collecting() as collector, traced(collector.url, FakeBackend()) as client:
        await client.post(CHAT, json=chat(), headers=parent)
    [line] = [r.getMessage() for r in caplog.records if r.name == "m3_router.requests"]
    assert json.loads(line)["trace_id"] == TRACE_ID


async def test_a_collector_that_hangs_or_is_gone_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.spans.CLOSE_TIMEOUT_S", 0.05)
    answered = threading.Event()
    with collecting(hold=answered) as slow:
        for url in (slow.url, f"http://127.0.0.1:{unused_port()}"):
            settings = RouterConfig(telemetry=TelemetryConfig(otlp_endpoint=url))
            tracing = open_tracing(settings.telemetry)
            telemetry = Telemetry(followers=[tracing])
            app = build_app(RoutingService(FakeBackend(), None, settings), telemetry)
            async with client_of(app) as client:
                for _ in range(60):  # more spans than are sent at once
                    assert (await client.post(CHAT, json=chat())).status_code == 200
            telemetry.close()
        assert not slow.bodies  # it still holds the first one: nobody has waited for it
        answered.set()


def test_what_cannot_be_sent_is_said_at_the_start() -> None:
    """And where nothing is to be sent, nothing needs to be installed."""
    opening = """
from router.config import TelemetryConfig
from router.tracing import TracingError, open_tracing
assert open_tracing(TelemetryConfig()) is None
try:
    open_tracing(TelemetryConfig(otlp_endpoint="http://collector:4318"))
except TracingError as error:
    print(error.message)
"""
    said = run_without(("opentelemetry",), opening)
    assert "opentelemetry is not installed: pip install 'm3-router[otel]'" in said.stdout, said


@pytest.mark.parametrize("url", ["collector:4318", "ftp://x", "http://", "http://user:pw@host"])
def test_a_collector_has_a_plain_url(url: str) -> None:
    with pytest.raises(ValueError, match="otlp_endpoint"):
        TelemetryConfig(otlp_endpoint=url)


async def test_names_are_those_of_the_conventions() -> None:
    traces: list[Trace] = []

    class Remembering:
        def follow(self, trace: Trace) -> None:
            traces.append(trace)

        def close(self) -> None:
            pass

    service = RoutingService(FakeBackend(), FakePredictor(), RouterConfig())
    async with client_of(build_app(service, Telemetry(followers=[Remembering()]))) as client:
        await client.post(CHAT, json=chat(image_part(picture()), "What?", seed=1))
    [trace] = traces
    ours = {name for name in attributes(trace) if name.startswith("gen_ai.")}
    known = {v for k, v in vars(gen_ai_attributes).items() if k.startswith("GEN_AI_")}
    assert len(ours) >= 12
    assert ours <= known
