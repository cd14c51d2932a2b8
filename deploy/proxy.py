"""What Ray Serve's HTTP proxy answers by itself, in the shape that our clients parse.

Ray calls `middlewares` in every proxy whose environment names it (`VARIABLE`). A Ray of our own
has it from deploy/local.py; on a cluster the nodes' environment decides, and without it the proxy's
answers are plain text.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_backend.errors import BackendError, DeadlineExceededError, OverloadedError, ServiceError
from router.access import error_headers
from router.errors import Code, error_body
from router.explain import REQUEST_ID_HEADER

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
PATH = "deploy.proxy.middlewares"
OURS = REQUEST_ID_HEADER.encode()  # on every answer of the service's own
RETRY_AFTER_S = 1.0


def _not_started() -> ServiceError:
    return ServiceError(
        "The service is starting, or is not deployed here; try again.",
        status=503,
        code=Code.NOT_READY,
        retry_after_s=RETRY_AFTER_S,
    )


def _gone() -> ServiceError:
    return BackendError(
        "The replica that had this request is gone; send it again.",
        status=503,
        code="backend_unavailable",
        retry_after_s=RETRY_AFTER_S,
    )


# By the proxy's own status. It knows our paths only as a whole: all of them, or none yet.
MEANT: dict[int, Callable[[], ServiceError]] = {
    404: _not_started,
    408: lambda: DeadlineExceededError(
        "The request was given up on before it was complete; send it faster, or ask for less.",
        status=408,
    ),
    429: lambda: OverloadedError(
        "The service has more requests than it can hold; try again shortly.",
        retry_after_s=RETRY_AFTER_S,
    ),
    500: _gone,
    503: _gone,
}


def middlewares() -> list[Middleware]:
    """What Ray puts around its proxy."""
    return [Middleware(ProxyErrors)]


class ProxyErrors:
    """Leaves the service's answers alone and gives the proxy's own errors a body of JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Ray reads some of them as UTF-8, and fails with a 500 where one is anything else.
        scope = {**scope, "headers": [(name, _utf8(value)) for name, value in scope["headers"]]}
        begun = replaced = False

        async def shaped(message: Message) -> None:
            nonlocal begun, replaced
            if message["type"] == "http.response.start":
                begun = True
                replaced = message["status"] in MEANT and not _is_ours(message)
                if replaced:
                    await _answer(send, MEANT[message["status"]]())
            if not replaced:
                await send(message)

        await self._app(scope, receive, shaped)
        if not begun:  # the replica died: Ray says nothing
            await _answer(send, _gone())


def _utf8(value: bytes) -> bytes:
    return value.decode(errors="replace").encode()


def _is_ours(start: Message) -> bool:
    return any(bytes(name).lower() == OURS for name, _ in start["headers"])


async def _answer(send: Send, error: ServiceError) -> None:
    fields = {"content-type": "application/json"} | error_headers(error)
    headers = [(name.encode(), value.encode()) for name, value in fields.items()]
    body = json.dumps(error_body(error)).encode()
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
