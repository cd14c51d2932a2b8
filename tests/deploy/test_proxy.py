"""The proxy's own answers, reshaped; over real HTTP in tests/e2e/test_proxy.py."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from deploy import proxy
from deploy.proxy import ProxyErrors
from tests.fakes import FakeBackend
from tests.router.support import app_of, chat


def plain(status: int, *headers: tuple[bytes, bytes]) -> Any:
    """An app that answers as Ray's proxy does, with a body in two pieces."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kind = (b"content-type", b"text/plain")
        start = {"type": "http.response.start", "status": status, "headers": [kind, *headers]}
        await send(start)
        await send({"type": "http.response.body", "body": b"Request 1 ", "more_body": True})
        await send({"type": "http.response.body", "body": b"failed."})

    return app


async def get(app: Any, path: str = "/v1/models") -> httpx.Response:
    transport = httpx.ASGITransport(ProxyErrors(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        return await client.get(path)


@pytest.mark.parametrize(
    ("given", "status", "code", "kind", "retry_after"),
    [
        (404, 503, "not_ready", "server_error", "1"),
        (408, 408, "deadline_exceeded", "invalid_request_error", None),
        (429, 429, "overloaded", "rate_limit_error", "1"),
        (500, 503, "backend_unavailable", "server_error", "1"),
        (503, 503, "backend_unavailable", "server_error", "1"),
    ],
)
async def test_every_error_of_the_proxy_has_our_shape(
    given: int, status: int, code: str, kind: str, retry_after: str | None
) -> None:
    answer = await get(plain(given, (b"retry-after", b"17")))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (status, code, kind)
    assert error.keys() == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get("retry-after") == retry_after
    assert "Request 1" not in answer.text


async def test_a_replica_that_dies_without_a_word_is_an_error_like_others() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        pass

    answer = await get(app)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "backend_unavailable")


async def test_other_answers_of_the_proxy_pass() -> None:
    for status in (200, 301, 400):
        answer = await get(plain(status))
        assert (answer.status_code, answer.text) == (status, "Request 1 failed.")


async def test_the_services_own_errors_pass_as_they_are() -> None:
    app = app_of(FakeBackend())
    unknown = await get(app, "/nowhere")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    transport = httpx.ASGITransport(ProxyErrors(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        streamed = await client.post("/v1/chat/completions", json=chat(stream=True))
    assert streamed.text.endswith("data: [DONE]\n\n")


def test_ray_finds_it_by_its_name() -> None:
    from ray.serve._private.constants import RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH as read
    from ray.serve._private.http_util import validate_http_proxy_callback_return as validate
    from ray.serve._private.utils import call_function_from_import_path as call

    assert read is None or read == proxy.PATH
    [middleware] = validate(call(proxy.PATH))
    assert middleware.cls is ProxyErrors
    assert proxy.VARIABLE == "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


async def test_what_ray_reads_of_a_request_is_always_utf_8() -> None:
    """`x-request-id: \xff` was a 500."""
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])
        await plain(200)(scope, receive, send)

    given = [(b"x-request-id", b"\xff\xfe"), (b"x-session-id", "é".encode()), (b"x", b"y")]
    transport = httpx.ASGITransport(ProxyErrors(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
        assert (await client.get("/", headers=given)).status_code == 200
    assert {name: value.decode() for name, value in seen if name.startswith(b"x")} == {
        b"x-request-id": "\ufffd\ufffd",
        b"x-session-id": "é",
        b"x": "y",
    }
