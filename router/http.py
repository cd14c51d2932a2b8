"""HTTP around RoutingService: routes, body limit, disconnects, and errors as JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar, cast
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_backend.errors import InvalidRequestError, ServiceError
from router.errors import ClientClosedRequestError, Code, UnknownModelError, error_body
from router.explain import REQUEST_ID_HEADER, headers
from router.policy import model_names
from router.responses import completion, explanation, route, server_sent_events
from router.schemas import ChatCompletion, ChatRequest, ModelCard, ModelList, Route
from router.service import Answer, RoutingService
from router.telemetry import Telemetry, Trace

T = TypeVar("T")
READY_TIMEOUT_S = 5.0
OWNER = "m3-router"
CHAT_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
    }
}


def build_app(
    service: RoutingService,
    telemetry: Telemetry | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The HTTP application. Closes `service` when it shuts down.

    Args:
        telemetry: shared with whoever adds metrics of their own.
        clock: Unix time in seconds, for `created`.
    """
    telemetry = telemetry or Telemetry()
    born = int(clock())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="m3-router", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(_Tracing, telemetry=telemetry)
    for kind in (ServiceError, HTTPException):
        app.add_exception_handler(kind, _on_error)

    @app.post("/v1/chat/completions", response_model=ChatCompletion, openapi_extra=CHAT_BODY)
    async def chat_completions(request: Request) -> Response:
        """Answers a question about images at the smallest sufficient token scale."""
        trace = _trace(request)
        body = await read_body(request, service.config.max_body_bytes)
        created = int(clock())

        async def respond() -> Response:
            answer = await service.handle(body, trace)
            decision_headers = headers(explanation(answer.plan, trace))
            if answer.plan.chat.stream:
                return EventStreamResponse(answer, created, decision_headers)
            async with aclosing(answer):
                return _json(await completion(answer, created), decision_headers)

        return await until_disconnect(request.receive, respond())

    @app.post("/v1/route", response_model=Route, openapi_extra=CHAT_BODY)
    async def explain_route(request: Request) -> Response:
        """Decides on a chat request and explains the decision, without answering."""
        trace = _trace(request)
        body = await read_body(request, service.config.max_body_bytes)
        plan = await service.plan(body, trace)
        explained = route(plan, trace)
        return _json(explained, headers(explained.m3))

    @app.get("/v1/models", response_model=ModelList)
    async def models() -> Response:
        """What callers may put into `model`."""
        names = model_names((await service.info()).ladder)
        return _json(ModelList(data=[_card(name, born) for name in names]))

    @app.get("/v1/models/{model}", response_model=ModelCard)
    async def model_card(model: str) -> Response:
        names = model_names((await service.info()).ladder)
        if model not in names:
            raise UnknownModelError(model, names)
        return _json(_card(model, born))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers at all; for liveness probes."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """Whether requests would be answered now; for readiness probes."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                info = await service.ready()
        except Exception as error:
            raise ServiceError(
                "No replica of the model answers; try again.",
                status=503,
                code=Code.NOT_READY,
                retry_after_s=READY_TIMEOUT_S,
            ) from error
        return {
            "status": "ready",
            "model": info.name,
            "scales": list(info.ladder.scales),
            "predictor": service.predictor_version,
        }

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics of this process."""
        return Response(telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)

    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body, given up on as soon as it is known to be longer than `limit` bytes.

    Raises:
        InvalidRequestError: `request_too_large` (413).
        ClientClosedRequestError: the client left before it had sent everything.
    """
    too_large = InvalidRequestError(
        f"The request body has more than {limit:,} bytes; send smaller images.",
        status=413,
        code=Code.REQUEST_TOO_LARGE,
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        raise ClientClosedRequestError("The client left while sending.") from None
    return bytes(body)


async def until_disconnect(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away.

    Servers tell of a disconnect only to those who listen, and a client that waits for a whole
    answer can leave at any time. The request's body must have been read.

    Raises:
        ClientClosedRequestError: the client left.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientClosedRequestError("The client left before the answer was complete.")
        return task.result()
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStreamResponse(Response):
    """Server-sent events of an answer that has started. If the client leaves, the answer ends."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, created: int, decision_headers: dict[str, str]) -> None:
        super().__init__(headers={"cache-control": "no-cache", **decision_headers})
        del self.headers["content-length"]
        self._answer = answer
        self._created = created

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._answer):
            try:
                await until_disconnect(receive, self._stream(send))
            except (ClientClosedRequestError, OSError):  # OSError: `send` found the connection gone
                self._answer.trace.failed(ClientClosedRequestError("The client left the stream."))

    async def _stream(self, send: Send) -> None:
        start: Message = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await send(start)
        async with aclosing(server_sent_events(self._answer, self._created)) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Tracing:
    """Outermost layer: names every request, records its outcome, answers what nobody foresaw."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = Trace(uuid4().hex)
        scope.setdefault("state", {})["trace"] = trace
        responding = False

        async def named(message: Message) -> None:
            nonlocal responding
            if message["type"] == "http.response.start":
                responding = True
                header = (REQUEST_ID_HEADER.encode(), trace.request_id.encode())
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        self._telemetry.begin()
        try:
            await self._app(scope, receive, named)
        except asyncio.CancelledError:
            trace.failed(ClientClosedRequestError("The request was cancelled."))
            raise
        except Exception as error:
            shown = trace.failed(error)
            if not responding:
                await _error_response(shown)(scope, receive, named)
        finally:
            if "route" in scope:
                trace.endpoint = scope["route"].path
            self._telemetry.end(trace)


async def _on_error(request: Request, error: Exception) -> Response:
    return _error_response(_trace(request).failed(error))


def _error_response(error: ServiceError) -> Response:
    extra = {}
    if error.retry_after_s is not None:
        extra["retry-after"] = str(max(1, round(error.retry_after_s)))
    return JSONResponse(error_body(error), error.status, extra)


def _trace(request: Request) -> Trace:
    return cast(Trace, request.state.trace)


def _json(body: BaseModel, extra: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), media_type="application/json", headers=extra)


def _card(name: str, created: int) -> ModelCard:
    return ModelCard(id=name, created=created, owned_by=OWNER)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document plus the request body, which the service parses by itself."""
    document = get_openapi(title=app.title, version="1", routes=app.routes)
    _, schemas = models_json_schema(
        [(ChatRequest, "validation")], ref_template="#/components/schemas/{model}"
    )
    document["components"]["schemas"] |= schemas["$defs"]
    return document
