from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client import Gauge

from m3_backend.errors import (
    BackendError,
    ContextLengthError,
    DeadlineExceededError,
    OverloadedError,
)
from router.explain import REQUEST_ID_HEADER
from router.stages import Stage
from router.telemetry import Telemetry
from router.trace import Trace
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import (
    QUESTION,
    app_of,
    chat,
    client_of,
    image_part,
    picture,
    png_header,
)

CHAT = "/v1/chat/completions"
TIMINGS = {"queue": 1.0, "fetch": 0.5, "encode": 10.0, "prefill": 8.0, "decode": 6.0}


async def post(
    body: Any = None,
    backend: FakeBackend | None = None,
    predictor: FakePredictor | None = None,
    path: str = CHAT,
    **config: Any,
) -> httpx.Response:
    app = app_of(backend or FakeBackend(), predictor, **config)
    async with client_of(app) as client:
        content = body if isinstance(body, bytes) else json.dumps(body or chat()).encode()
        return await client.post(path, content=content)


def events(response: httpx.Response) -> list[Any]:
    """The events of a stream, `[DONE]` as the string it is."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_a_name_from_the_proxy_stands_alone() -> None:
    async with client_of(app_of(FakeBackend(), None)) as client:
        bare = await client.get("/healthz")
        proxied = await client.get("/healthz", headers={"X-Request-ID": "from-the-proxy"})
    assert bare.headers["x-request-id"] == bare.headers[REQUEST_ID_HEADER]
    assert "x-request-id" not in proxied.headers  # the proxy adds its own
    assert proxied.headers[REQUEST_ID_HEADER] not in ("", "from-the-proxy")


async def test_an_answer_explains_its_scale() -> None:
    response = await post(predictor=FakePredictor())
    assert response.status_code == 200
    told = response.headers
    assert told["x-m3-scale"] == "36"
    assert told["x-m3-reason"] == "predicted"
    assert told["x-m3-p-sufficient"] == "0.9700"
    assert told["x-m3-max-regret"] == "0.05"
    assert told["x-m3-predictor"] == "fake-1"
    assert told["x-m3-cache"] == "miss"
    assert float(told["x-m3-cost-ms"]) == pytest.approx(10 + 5 + 0.1 * (6 + 36))
    assert float(told["x-m3-routing-ms"]) > 0
    assert "x-m3-degraded" not in told

    body = response.json()
    m3 = body.pop("m3")
    assert m3.pop("routing_ms") == pytest.approx(float(told["x-m3-routing-ms"]), abs=0.001)
    assert m3 == {
        "request_id": told[REQUEST_ID_HEADER],
        "scale": [36],
        "reason": ["predicted"],
        "p_sufficient": [pytest.approx(0.97)],
        "max_regret": 0.05,
        "loosened_from": None,
        "tightened_to": None,
        "predictor": "fake-1",
        "cost_ms": pytest.approx(19.2),
        "cache": ["miss"],
        "degraded": [],
        "notes": [],
        "timings_ms": TIMINGS,
    }
    assert body.pop("created") > 0
    assert body == {
        "id": f"chatcmpl-{told[REQUEST_ID_HEADER]}",
        "object": "chat.completion",
        "model": "m3-auto",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "a red square", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 56,
            "completion_tokens": 4,
            "total_tokens": 60,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 36},
        },
    }


async def test_several_images_are_listed_in_order() -> None:
    predictor = FakePredictor()
    backend = FakeBackend()
    first, second = image_part(picture(size=(9, 9)), "high"), image_part(picture(size=(8, 8)))
    await post(chat(first, QUESTION), backend)
    response = await post(chat(first, second, QUESTION), backend, predictor)
    told = response.headers
    # 0.05 ÷ 2 is certified by the stricter bound of 0.01, which tolerates a shortfall of 0.02
    assert told["x-m3-scale"] == "144,144"
    assert told["x-m3-reason"] == "predicted,predicted"
    assert told["x-m3-p-sufficient"] == "0.9900,0.9900"
    assert told["x-m3-cache"] == "memory,miss"
    usage = response.json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 144, "image_tokens": 288}


async def test_a_voided_promise_and_a_missing_predictor_are_said() -> None:
    response = await post(chat(m3={"max_scale": 9}))
    told = response.headers
    assert (told["x-m3-scale"], told["x-m3-reason"]) == ("9", "ceiling")
    assert told["x-m3-max-regret"] == "void"
    assert told["x-m3-predictor"] == told["x-m3-p-sufficient"] == "none"
    m3 = response.json()["m3"]
    assert m3["max_regret"] is m3["predictor"] is m3["p_sufficient"][0] is None


async def test_what_was_down_is_said() -> None:
    response = await post(backend=FakeBackend(degraded=("redis",)))
    assert response.status_code == 200
    assert response.headers["x-m3-degraded"] == "redis"
    assert response.json()["m3"]["degraded"] == ["redis"]


async def test_stream() -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    response = await post(body, predictor=FakePredictor())
    assert response.headers["x-m3-scale"] == "36"
    assert response.headers["x-m3-cache"] == "miss"
    role, *deltas, finish, usage, done = events(response)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [d["choices"][0]["delta"] for d in deltas] == [
        {"content": word} for word in ("a ", "red ", "square")
    ]
    assert all("m3" not in chunk for chunk in (role, *deltas, usage))
    assert finish["choices"][0]["delta"] == {}
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert finish["m3"]["timings_ms"] == TIMINGS
    assert finish["m3"]["scale"] == [36]
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 60
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in (role, *deltas, finish, usage)}) == 1


async def test_a_stream_counts_tokens_only_when_asked() -> None:
    assert all("usage" not in e for e in events(await post(chat(stream=True)))[:-1])


async def test_logprobs() -> None:
    expected = {
        "token": "a ",
        "logprob": -0.5,
        "bytes": [97, 32],
        "top_logprobs": [
            {"token": "a ", "logprob": -0.5, "bytes": [97, 32]},
            {"token": "other", "logprob": -1.5, "bytes": list(b"other")},
        ],
    }
    whole = await post(chat(logprobs=True, top_logprobs=2))
    content = whole.json()["choices"][0]["logprobs"]["content"]
    assert (content[0], len(content)) == (expected, 4)
    streamed = events(await post(chat(stream=True, logprobs=True, top_logprobs=2)))
    pieces = [e["choices"][0]["logprobs"] for e in streamed[1:-2]]
    assert [entry for piece in pieces for entry in piece["content"]] == content


async def test_an_error_in_mid_stream_is_an_event_and_ends_the_stream() -> None:
    backend = FakeBackend(error_after=(2, BackendError("The replica is gone.")))
    response = await post(chat(stream=True), backend)
    assert response.status_code == 200
    *chunks, last = events(response)
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "a ", "red "]
    assert last == {
        "error": {
            "message": "The replica is gone.",
            "type": "server_error",
            "param": None,
            "code": "backend_error",
        }
    }
    assert backend.closed.is_set()


async def test_what_nobody_foresaw_is_logged_once_and_not_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for stream in (False, True):
        for backend in (
            FakeBackend(error=RuntimeError("secret 0x7f")),
            FakeBackend(error_after=(1, RuntimeError("secret 0x7f"))),
        ):
            caplog.clear()
            response = await post(chat(stream=stream), backend)
            assert "secret" not in response.text
            assert "internal_error" in response.text
            logged = [r for r in caplog.records if r.levelno >= logging.ERROR]
            assert len(logged) == 1
            assert response.headers[REQUEST_ID_HEADER] in logged[0].getMessage()
            assert "secret" in caplog.text


async def test_route_explains_without_running_the_model() -> None:
    backend = FakeBackend()
    response = await post(backend=backend, predictor=FakePredictor(), path="/v1/route")
    assert backend.requests == []
    assert response.headers["x-m3-scale"] == "36"
    assert "x-m3-cache" not in response.headers
    body = response.json()
    assert body["object"] == "m3.route"
    assert body["m3"]["cache"] is None
    (image,) = body["images"]
    assert (image["scale"], image["reason"]) == (36, "predicted")
    assert [o["scale"] for o in image["options"]] == [1, 9, 36, 144, 576]
    assert [o["p_success"] for o in image["options"]] == [0.3, 0.6, 0.9, 0.92, 0.93]
    assert [o["image_tokens"] for o in image["options"]] == [1, 9, 36, 144, 576]
    assert image["options"][2]["cost_ms"] == pytest.approx(body["m3"]["cost_ms"])


async def test_route_prices_an_option_with_the_other_images_as_chosen() -> None:
    body = chat(image_part(), image_part(detail="low"), QUESTION)
    images = (await post(body, path="/v1/route")).json()["images"]
    base = 2 * 10 + 5 + 0.1 * 6
    assert [o["cost_ms"] for o in images[1]["options"]] == pytest.approx(
        [base + 0.1 * (576 + tokens) for tokens in (1, 9, 36, 144, 576)]
    )


async def test_a_batch_of_routes_explains_each_and_runs_nothing() -> None:
    backend = FakeBackend()
    requests = [
        chat(image_part(picture(size=(9, 9))), QUESTION),
        chat(model="gpt-4o"),
        chat(image_part(), QUESTION, m3={"scale": 100}),
        chat(m3={"max_scale": 9}),
        7,
    ]
    batch = {"requests": requests}
    answer = await post(batch, backend, FakePredictor(), path="/v1/route/batch")
    assert answer.status_code == 200
    body = answer.json()
    first, unknown, scale, last, nonsense = body["data"]
    assert body["object"] == "list"
    assert (first["object"], first["images"][0]["scale"]) == ("m3.route", 36)
    assert last["m3"]["reason"] == ["ceiling"]
    assert (unknown["error"]["code"], unknown["error"]["param"]) == (
        "model_not_found",
        "requests[1].model",
    )
    assert scale["error"]["param"] == "requests[2].m3.scale"
    assert nonsense["error"]["param"] == "requests[4]"
    assert all(e["error"].keys() == {"message", "type", "param", "code"} for e in (unknown, scale))
    assert backend.requests == []


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"[]", "invalid_request", None),
        (b"{}", "invalid_request", "requests"),
        (b'{"requests": []}', "invalid_request", "requests"),
        (b'{"requests": {}}', "invalid_request", "requests"),
        (b'{"requests": [1, 2, 3]}', "invalid_request", "requests"),
        (b'{"requests": [1], "model": "m3-auto"}', "unsupported_parameter", "model"),
    ],
)
async def test_a_batch_that_is_none(body: bytes, code: str, param: str | None) -> None:
    answer = await post(body, path="/v1/route/batch", max_route_batch=2)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, param)


BAD_IMAGES = {
    "not an image": (b"hello", "unsupported_image_format"),
    "truncated": (picture(size=(200, 200))[:-40], "invalid_image"),
    "a header of 50,000 × 50,000": (png_header(50_000, 50_000), "image_too_large"),
}
REFUSALS: list[tuple[Any, int, str]] = [
    *((chat(image_part(data), QUESTION), 400, code) for data, code in BAD_IMAGES.values()),
    (b"{", 400, "invalid_json"),
    (chat(temperature=9), 400, "invalid_request"),
    (chat(n=2), 400, "unsupported_parameter"),
    (chat(QUESTION), 400, "no_image"),
    (chat(*[image_part()] * 17, QUESTION), 400, "too_many_images"),
    (chat(image_part()), 400, "empty_question"),
    (chat(image_part("http://example.org/a.png"), QUESTION), 400, "remote_images_disabled"),
    (chat(model="gpt-4o"), 404, "model_not_found"),
    (chat(m3={"scale": 100}), 400, "invalid_scale"),
    (chat(m3={"scale": 36, "max_regret": 0.1}), 400, "conflicting_limits"),
    (b"x" * 1_000_001, 413, "request_too_large"),
]


@pytest.mark.parametrize("path", [CHAT, "/v1/route"])
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_in_the_usual_shape(path: str, stream: bool) -> None:
    app = app_of(FakeBackend(), FakePredictor(), max_body_bytes=1_000_000)
    async with client_of(app) as client:
        for body, status, code in REFUSALS:
            content = (
                body
                if isinstance(body, bytes)
                else json.dumps(body | ({"stream": True} if stream else {})).encode()
            )
            response = await client.post(path, content=content)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (status, code)
            assert error.keys() == {"message", "type", "param", "code"}
            assert error["type"] == "invalid_request_error"
            assert error["message"].endswith(".")
            assert response.headers[REQUEST_ID_HEADER]
        assert (await client.post(CHAT, json=chat())).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("raised", "status", "kind"),
    [
        (ContextLengthError("too long"), 400, "invalid_request_error"),
        (OverloadedError("full", retry_after_s=1.4), 429, "rate_limit_error"),
        (DeadlineExceededError("late"), 504, "server_error"),
        (BackendError("gone"), 502, "server_error"),
    ],
)
async def test_errors_of_the_backend(raised: Any, status: int, kind: str, stream: bool) -> None:
    response = await post(chat(stream=stream), FakeBackend(error=raised))
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (status, raised.code, kind)
    assert response.headers.get("retry-after") == ("2" if status == 429 else None)


async def test_a_body_without_a_declared_length_is_cut_off_too() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 1000

    async with client_of(app_of(FakeBackend(), max_body_bytes=10_000)) as client:
        response = await client.post(CHAT, content=endless())
    assert response.json()["error"]["code"] == "request_too_large"
    assert sent == 11


async def test_unknown_paths_and_methods() -> None:
    async with client_of(app_of(FakeBackend())) as client:
        for response, status, code in (
            (await client.get("/v2/anything"), 404, "not_found"),
            (await client.get(CHAT), 405, "method_not_allowed"),
        ):
            assert response.status_code == status
            assert response.json()["error"]["code"] == code
            assert response.headers[REQUEST_ID_HEADER]


async def test_nobody_is_sent_elsewhere() -> None:
    """A redirect would lead to whatever the Host header says."""
    async with client_of(app_of(FakeBackend())) as client:
        for method, path in (("POST", f"{CHAT}/"), ("GET", "/v1/models/"), ("GET", "/healthz/")):
            response = await client.request(method, path, headers={"host": "evil.example"})
            assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("length", ["9" * 5000, "1000001"])
async def test_a_declared_length_of_any_length_is_judged(length: str) -> None:
    async with client_of(app_of(FakeBackend(), max_body_bytes=1_000_000)) as client:
        response = await client.post(CHAT, content=b"{}", headers={"content-length": length})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


async def test_models() -> None:
    async with client_of(app_of(FakeBackend())) as client:
        listed = (await client.get("/v1/models")).json()
        names = [model["id"] for model in listed["data"]]
        assert names == ["m3-auto", "m3-1", "m3-9", "m3-36", "m3-144", "m3-576"]
        assert (await client.get("/v1/models/m3-36")).json() == listed["data"][3]
        missing = await client.get("/v1/models/m3-100")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_probes() -> None:
    backend = FakeBackend()
    async with client_of(app_of(backend, FakePredictor())) as client:
        assert (await client.get("/readyz")).json() == {
            "status": "ready",
            "model": "fake",
            "scales": [1, 9, 36, 144, 576],
            "predictor": "fake-1",
            "components": {
                "replicas": {"status": "ok", "answering": 2, "asked": 2},
                "predictor": {"status": "ok", "version": "fake-1", "refused": False},
                "policy": {"status": "ok", "tightened_to": None},
                "drift": {"status": "unknown", "moved": {}},
                "features_redis": {"breaker": "closed"},
                "limits_redis": {"breaker": "closed"},
            },
        }
        backend.ping_error = BackendError("No replica.", code="backend_unavailable")
        unready = await client.get("/readyz")
        told = unready.json()
        assert (unready.status_code, told["error"]["code"]) == (503, "not_ready")
        assert told["error"]["message"].endswith("No replica.")
        assert (told["status"], told["reason"]) == ("not_ready", "backend_unavailable")
        assert told["components"]["replicas"] == {"status": "down", "answering": 0, "asked": None}
        assert told["components"]["predictor"]["version"] == "fake-1"
        assert unready.headers["retry-after"] == "5"
        backend.ping_error = None
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/healthz")).json() == {"status": "alive"}


async def test_metrics() -> None:
    async with client_of(app_of(FakeBackend(), FakePredictor())) as client:
        await client.post(CHAT, json=chat())
        await client.post(CHAT, json=chat())
        await client.post(CHAT, json=chat(stream=True))
        await client.post(CHAT, json=chat(model="gpt-4o"))
        await client.get("/nowhere/42")
        scraped = (await client.get("/metrics")).text
    for line in (
        'm3_requests_total{code="ok",endpoint="/v1/chat/completions",status="200"} 3.0',
        f'm3_requests_total{{code="model_not_found",endpoint="{CHAT}",status="404"}} 1.0',
        'm3_requests_total{code="not_found",endpoint="none",status="404"} 1.0',
        f'm3_decisions_total{{code="ok",endpoint="{CHAT}",reason="predicted",scale="36"}} 3.0',
        "m3_image_tokens_saved_total 1620.0",  # 3 × (576 − 36)
        'm3_tokens_total{kind="image"} 108.0',
        'm3_tokens_total{kind="prompt"} 168.0',
        'm3_tokens_total{kind="completion"} 12.0',
        'm3_image_features_total{cache="memory"} 2.0',
        'm3_image_features_total{cache="miss"} 1.0',
        "m3_routing_seconds_count 3.0",
        "m3_time_to_first_token_seconds_count 3.0",
        "m3_time_per_output_token_seconds_sum 0.006",  # 3 × 6 ms ÷ (4 − 1)
        'm3_routing_stage_seconds_count{stage="wait"} 4.0',
        'm3_routing_stage_seconds_count{stage="parse"} 4.0',
        'm3_routing_stage_seconds_count{stage="images"} 3.0',
        'm3_routing_stage_seconds_count{stage="features"} 3.0',
        'm3_routing_stage_seconds_count{stage="predict"} 3.0',
        'm3_routing_stage_seconds_count{stage="decide"} 3.0',
        'm3_routing_stage_seconds_bucket{le="5e-05",stage="decide"}',
        'm3_phase_seconds_count{phase="queue"} 3.0',
        'm3_phase_seconds_sum{phase="encode"} 0.03',
        'm3_phase_seconds_sum{phase="decode"} 0.018',
        'm3_predictor_info{version="fake-1"} 1.0',
        "m3_limits_redis_breaker_open 0.0",
        "m3_build_info{",
        'm3_request_seconds_count{endpoint="/v1/chat/completions"} 4.0',
        "m3_requests_in_flight 1.0",  # the scrape itself
    ):
        assert line in scraped
    assert 'm3_routing_seconds_bucket{le="0.0005"}' in scraped


async def test_a_decision_counts_under_what_became_of_its_request() -> None:
    backend = FakeBackend(error_after=(1, BackendError("gone")))
    async with client_of(app_of(backend)) as client:
        await client.post(CHAT, json=chat())
        scraped = (await client.get("/metrics")).text
    labels = f'code="backend_error",endpoint="{CHAT}",reason="no_predictor",scale="576"'
    assert f"m3_decisions_total{{{labels}}} 1.0" in scraped
    assert "m3_image_tokens_saved_total 0.0" in scraped
    assert 'm3_phase_seconds_count{phase="encode"} 1.0' in scraped
    assert "m3_time_per_output_token_seconds_count 0.0" in scraped


async def test_labels_hold_nothing_that_a_caller_can_make_up() -> None:
    """Else a caller could fill the memory of whatever scrapes."""
    async with client_of(app_of(FakeBackend(), FakePredictor())) as client:
        for n in range(3):
            await client.post(CHAT, json=chat(model=f"made-up-{n}"))
            await client.post(
                CHAT, json=chat(user=f"made-up-{n}", m3={"cache_salt": f"made-up-{n}"})
            )
            await client.get(f"/v1/models/made-up-{n}")
            await client.get(f"/made-up-{n}", headers={"x-request-id": f"made-up-{n}"})
        assert "made-up" not in (await client.get("/metrics")).text


async def test_a_new_predictor_shows_at_the_next_scrape() -> None:
    predictor = FakePredictor()
    async with client_of(app_of(FakeBackend(), predictor)) as client:
        predictor.version = "fake-2"
        assert 'm3_predictor_info{version="fake-2"} 1.0' in (await client.get("/metrics")).text
    async with client_of(app_of(FakeBackend())) as client:
        assert 'm3_predictor_info{version="none"} 1.0' in (await client.get("/metrics")).text


def test_every_series_names_the_process_it_comes_from() -> None:
    telemetry = Telemetry({"ingress": "one"})
    telemetry.registry.register(Gauge("m3_of_others", "Added by somebody else.", registry=None))
    telemetry.begin()
    telemetry.end(Trace("id", endpoint="/metrics"))
    series = [line for line in telemetry.exposition().decode().splitlines() if line[0] != "#"]
    assert 'm3_requests_in_flight{ingress="one"} 0.0' in series
    assert 'm3_requests_total{code="ok",endpoint="/metrics",ingress="one",status="200"} 1.0' in (
        series
    )
    assert [line for line in series if 'ingress="one"' not in line] == ["m3_of_others 0.0"]


async def test_one_log_line_per_request_without_content(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "m3_router.requests")
    response = await post(chat(user="somebody"), FakeBackend(words=("secret",)), FakePredictor())
    await post(chat(QUESTION))
    await post(chat(stream=True), FakeBackend(error_after=(1, BackendError("gone"))))
    answered, refused, broken = (json.loads(record.getMessage()) for record in caplog.records)
    assert answered["request_id"] == response.headers[REQUEST_ID_HEADER]
    assert answered["endpoint"] == CHAT
    assert (answered["status"], answered["code"], answered["stream"]) == (200, "ok", False)
    assert (answered["scale"], answered["reason"]) == ([36], ["predicted"])
    assert (answered["model"], answered["image_tokens_saved"]) == ("m3-auto", 540)
    assert list(answered["stages_ms"]) == [stage.value for stage in Stage]
    assert answered["cache"] == ["miss"]
    assert answered["completion_tokens"] == 1
    assert (refused["status"], refused["code"]) == (400, "no_image")
    assert (broken["status"], broken["code"]) == (502, "backend_error")
    for private in (QUESTION, "secret", "somebody", base64.b64encode(picture()).decode()[:40]):
        assert private not in caplog.text


async def test_telemetry_never_fails_a_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("no disk")

    monkeypatch.setattr("router.metrics.RequestMetrics.count", broken)
    assert (await post()).status_code == 200
    assert "could not be recorded" in caplog.text


async def test_openapi_describes_the_request_body() -> None:
    async with client_of(app_of(FakeBackend())) as client:
        document = (await client.get("/openapi.json")).json()
    body = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ChatRequest"}
    schemas = document["components"]["schemas"]
    assert schemas["ChatRequest"]["additionalProperties"] is False
    text = json.dumps(document)
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names <= schemas.keys()
