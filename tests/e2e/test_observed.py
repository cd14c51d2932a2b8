"""What a running service tells those who watch it, and what Ray's proxy tells its clients.

One service of two ingress replicas with hardly any places, so that it is overloaded at once, and
traced by a collector of the test's own.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from deploy import grafana_dashboard
from tests import prometheus
from tests.conftest import unused_port
from tests.e2e.pictures import chat, picture
from tests.e2e.service import Service, sandbox, start, until
from tests.router.test_tracing import Collector, collecting, values

CHAT = "/v1/chat/completions"
TIMEOUT_S = 2
SETTINGS = {
    "model.max_batch": 1,
    "serve.replica.max_ongoing_requests": 1,
    "serve.replica.max_queued_requests": 1,
    "serve.ingress.replicas": 2,
    "serve.ingress.max_ongoing_requests": 4,
    "serve.ingress.max_queued_requests": 1,
    "router.request_timeout_s": TIMEOUT_S,
    "router.shadow.uniform_share": 1.0,
    "router.shadow.budget": 1.0,
}
SECRET = "4929-1234-5678-9012"

seeds = count(1)


class Watching(threading.Thread):
    """Asks `/readyz` again and again while the service starts; keeps every kind of answer."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.seen: dict[int, httpx.Response] = {}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            try:
                answer = httpx.get(f"{self.url}/readyz", timeout=10)
            except httpx.TransportError:  # nobody listens yet
                continue
            self.seen[answer.status_code] = answer


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def started(collector: Collector) -> Iterator[tuple[Service, Watching]]:
    port = unused_port()
    watching = Watching(f"http://127.0.0.1:{port}")
    settings = SETTINGS | {"router.telemetry.otlp_endpoint": collector.url}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with sandbox() as box:
        watching.start()
        try:
            service = start(*options, port=port, box=box)
        finally:
            watching.done.set()
            watching.join()
        yield service, watching
        service.stop()


@pytest.fixture
def service(started: tuple[Service, Watching]) -> Service:
    return started[0]


def post(service: Service, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(f"{service.url}{CHAT}", json=body, headers=headers, timeout=60)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    return error


def logged(service: Service) -> str:
    files = service.box.folder.rglob("session_latest/logs/**/*.*")
    return "\n".join(file.read_text(errors="replace") for file in files if file.is_file())


def test_while_it_starts_it_is_not_ready_and_says_so(started: tuple[Service, Watching]) -> None:
    service, watching = started
    assert set(watching.seen) <= {200, 503}
    early = watching.seen[503]
    assert error_of(early)["code"] == "not_ready"
    assert early.headers["retry-after"] == "1"
    told = httpx.get(f"{service.url}/readyz").json()
    assert told["status"] == "ready"
    assert told["components"]["replicas"] == {"status": "ok", "answering": 1, "asked": 1}
    assert told["components"]["features_redis"] == {"breaker": "closed"}
    assert told["components"]["policy"] == {"status": "ok", "tightened_to": None}
    assert told["components"]["drift"]["status"] == "unknown"


def requests_counted(service: Service) -> dict[str, float]:
    """Answered chat requests by ingress, as one scrape shows them."""
    text = httpx.get(f"{service.url}/metrics").text
    row = rf'm3_requests_total{{code="ok",endpoint="{CHAT}",ingress="([^"]+)",status="200"}} (\S+)'
    return {name: float(value) for name, value in re.findall(row, text)}


def test_every_scrape_shows_all_ingress_replicas(service: Service) -> None:
    before = sum(requests_counted(service).values())
    sent = 0
    while len(requests_counted(service)) < 2:  # until each has answered something
        assert post(service, chat(picture(next(seeds)), max_tokens=1)).status_code == 200
        sent += 1
    shown = {sum(requests_counted(service).values()) for _ in range(10)}  # whoever answers
    assert shown == {before + sent}


def test_beyond_all_places_every_refusal_has_the_same_shape(service: Service) -> None:
    """Whether the ingress refuses or, because that is full itself, Ray's proxy does."""
    image = picture(next(seeds))

    def ask(_: int) -> httpx.Response:
        return post(service, chat(image, max_tokens=64))

    with ThreadPoolExecutor(40) as crowd:
        answers = list(crowd.map(ask, range(40)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} <= {200, 429, 504}
    for answer in refused:
        error = error_of(answer)
        assert (error["code"], error["type"]) == ("overloaded", "rate_limit_error")
        assert int(answer.headers["retry-after"]) >= 1
    by_proxy = [answer for answer in refused if "x-m3-request-id" not in answer.headers]
    assert by_proxy, Counter(answer.status_code for answer in answers)


def test_an_openai_client_understands_the_proxy(service: Service) -> None:
    """A request that is never sent whole is given up on by the proxy, with a plain 408."""
    client = socket.create_connection(("127.0.0.1", int(service.url.rsplit(":", 1)[1])))
    with client:
        client.settimeout(60)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: m3\r\ncontent-length: 1000\r\n\r\n{{"
        client.sendall(head.encode())
        reply = HTTPResponse(client)
        reply.begin()
        assert reply.status == 408
        error = json.loads(reply.read())["error"]
    assert error["code"] == "deadline_exceeded"
    answer = httpx.Response(408, json={"error": error}, request=httpx.Request("POST", "http://m3"))
    with openai.OpenAI(base_url="http://m3", api_key="none") as official:
        shown = official._make_status_error_from_response(answer)
    assert shown.code == "deadline_exceeded"  # type: ignore[attr-defined]


def test_what_is_unknown_or_too_large_is_the_services_own_answer(service: Service) -> None:
    unknown = httpx.get(f"{service.url}/v2/anything")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "not_found")
    wrong = httpx.delete(f"{service.url}{CHAT}")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    large = post(service, chat(b"\0" * 16 * 2**20))
    assert (large.status_code, error_of(large)["code"]) == (413, "request_too_large")
    for answer in (unknown, wrong, large):
        assert answer.headers["x-m3-request-id"]


def test_a_request_can_be_followed_from_its_client_to_the_log(
    service: Service, collector: Collector
) -> None:
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    body = chat(picture(next(seeds)), question=f"Whose card is {SECRET}?", max_tokens=4)
    body |= {"user": SECRET, "stop": [SECRET]}
    parent = f"00-{trace_id}-00f067aa0ba902b7-01"
    answer = post(service, body, traceparent=parent, authorization=f"Bearer {SECRET}")
    request_id = answer.headers["x-m3-request-id"]

    def spans() -> dict[str, Any]:
        return {span.name: span for span in collector.spans() if span.trace_id.hex() == trace_id}

    assert until(lambda: "chat m3-auto" in spans())
    root = spans()["chat m3-auto"]
    assert values(root)["m3.request_id"] == request_id
    assert values(root)["gen_ai.response.model"] == "m3-tiny"
    below = {span.name for span in spans().values() if span.parent_span_id == root.span_id}
    assert below == {"routing", "queue", "fetch", "encode", "prefill", "decode"}

    assert until(lambda: f'"request_id":"{request_id}"' in logged(service))
    [line] = {row for row in logged(service).splitlines() if f'"request_id":"{request_id}"' in row}
    said = json.loads(line)
    assert (said["message"], said["level"], said["trace_id"]) == ("request", "info", trace_id)
    assert (said["code"], said["status"]) == ("ok", 200)


def test_nothing_that_was_said_is_in_any_log_or_span(
    service: Service, collector: Collector
) -> None:
    for body in (
        chat(picture(next(seeds)), question=SECRET),
        chat(picture(next(seeds)), question=SECRET, stream=True),
        chat(SECRET.encode(), question=SECRET),
        chat(picture(0), model=SECRET),
        {SECRET: SECRET},
    ):
        last = post(service, body, authorization=SECRET, cookie=SECRET)
        httpx.get(f"{service.url}/v1/models/{SECRET}")
    assert until(lambda: last.headers["x-m3-request-id"] in logged(service))
    assert SECRET not in logged(service)
    assert until(lambda: last.headers["x-m3-request-id"].encode() in b"".join(collector.bodies))
    assert SECRET.encode() not in b"".join(collector.bodies)


def test_it_says_in_its_log_what_has_started(service: Service) -> None:
    rows = [row for row in logged(service).splitlines() if '"logger":"m3_router.deploy"' in row]
    said = [json.loads(row) for row in rows]
    [model] = {line["model"] for line in said if line["message"] == "model ready"}
    assert model == "m3-tiny"
    assert len({line["ingress"] for line in said if line["message"] == "ingress ready"}) == 2


# Shown once there is a predictor that promises agreement, two hundred pictures, a candidate that
# watches, or feedback; this service has none of them.
UNCALLED_FOR = (
    "m3_threshold_regret_low",
    "m3_drift_psi",
    "m3_observed_images_total",
    "m3_feedback_total",
)


@pytest.mark.skipif(prometheus.BINARY is None, reason="prometheus is not installed")
def test_prometheus_finds_data_for_every_panel_of_the_dashboard(
    service: Service, tmp_path: Path
) -> None:
    """A real one scrapes the service while it answers, refuses and labels."""
    asks = [
        ask
        for ask in grafana_dashboard.expressions(rate_interval="5s")
        if not any(name in ask for name in UNCALLED_FOR)
    ]
    assert asks
    seen: set[str] = set()
    with prometheus.prometheus(tmp_path, service.url, every="500ms") as watching:

        def some_more() -> bool:
            image = picture(next(seeds))
            body = chat(image, max_tokens=8)
            with ThreadPoolExecutor(12) as crowd:
                answers = list(crowd.map(lambda _: post(service, body).status_code, range(12)))
            assert 200 in answers
            time.sleep(0.5)  # labels are made while nobody asks
            seen.update(ask for ask in set(asks) - seen if watching.query(ask))
            return seen == set(asks)

        assert until(some_more), set(asks) - seen
