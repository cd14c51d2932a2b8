"""HTTP around RoutingService: routes, who is let in, and errors as JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast
from uuid import uuid4

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_backend.errors import InvalidRequestError, ServiceError
from router import readiness
from router.access import Access, error_headers
from router.admission import Admission
from router.config import AccessConfig
from router.connections import EventStreamResponse, read_body, until_disconnect
from router.dashboard import page
from router.drift import DriftWatch
from router.errors import (
    ClientClosedRequestError,
    Code,
    NotReadyError,
    UnknownModelError,
    error_body,
)
from router.explain import REQUEST_ID_HEADER, headers
from router.feedback import Feedback
from router.loop_lag import watched
from router.openapi import BATCH_BODY, CHAT_BODY, FEEDBACK_BODY, openapi
from router.policy import model_names
from router.responses import completion, explanation, route, routes
from router.schemas import (
    ChatCompletion,
    ErrorBody,
    FeedbackTaken,
    ModelCard,
    ModelList,
    Route,
    RouteList,
)
from router.service import RoutingService
from router.telemetry import Telemetry
from router.trace import Trace

READY_TIMEOUT_S = 5.0
METRICS = "/metrics"
# No key is asked for: probes of those who keep the service alive, and the page, which is empty.
OPEN_PATHS = {"/healthz", "/readyz"} | page.OPEN_PATHS
OPERATORS_PATHS = {METRICS, page.VIEW}  # what concerns all callers
TRACE_CONTEXT = (b"traceparent", b"tracestate")
OWNER = "m3-router"
MOST_FEEDBACK_BYTES = 512 * 1024  # it is read on the event loop


def build_app(
    service: RoutingService,
    telemetry: Telemetry | None = None,
    *,
    access: Access | None = None,
    before_scrape: Callable[[], Awaitable[None]] | None = None,
    background: Callable[[], Coroutine[None, None, None]] | None = None,
    examples: Path | None = None,
    records: page.Records | None = None,
    feedback: Feedback | None = None,
    drift: DriftWatch | None = None,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The HTTP application. Closes `service`, `access` and `feedback` when it shuts down.

    Args:
        telemetry: shared with whoever adds metrics of their own; closed with the application.
        access: who is let in; None takes what `service` is configured with, and counts limits in
            this process alone.
        before_scrape: called when somebody may see the metrics, before they are collected.
        background: runs while the application does.
        examples: folder of the playground's example pictures.
        records: shows a view of the records, elsewhere; None where none are kept.
        feedback: takes what callers say of answers; None where none is taken.
        drift: a follower of `telemetry`, which is kept going and told of; None watches for none.
        clock: Unix time in seconds, for `created`.
    """
    telemetry = telemetry or Telemetry()
    rules = service.config.access
    access = access or Access.open(rules)
    telemetry.show(
        predictor=lambda: service.predictor_version,
        predictor_refused=lambda: service.predictor_refused,
        limits_breaker=lambda: access.breaker_open,
        pressure=lambda: service.admission.look().pressure,
        tightened=lambda: service.tightened_to is not None,
    )
    if drift is not None:
        telemetry.drift.now = lambda: drift.state

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work = [asyncio.create_task(service.watch_load())]
        if background is not None:
            work.append(asyncio.create_task(background()))
        if drift is not None:
            work.append(asyncio.create_task(drift.keep()))
        async with watched(telemetry.loop_lagged):
            yield
        for task in work:
            task.cancel()
        await asyncio.wait(work)
        service.close()
        await access.close()
        if feedback is not None:
            feedback.close()
        await asyncio.to_thread(telemetry.close)

    app = FastAPI(
        title="m3-router",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(_Gate(access, rules, service.admission))],
        redirect_slashes=False,  # to wherever the Host header says, and without TLS
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.add_middleware(_Tracing, telemetry=telemetry)
    if rules.cors_origins:  # outside everything else, so that pages can read errors too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=rules.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    for kind in (ServiceError, HTTPException):
        app.add_exception_handler(kind, _on_error)

    _add_api(app, service, clock)
    _add_feedback(app, service, telemetry, feedback)
    _add_operations(app, service, access, telemetry, before_scrape, drift)
    page.add_page(app, service, examples, records, drift)
    app.openapi = lambda: openapi(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _add_api(app: FastAPI, service: RoutingService, clock: Callable[[], float]) -> None:
    """What OpenAI's clients use, and `/v1/route`."""
    born = int(clock())

    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
        openapi_extra=CHAT_BODY,
    )
    async def chat_completions(request: Request) -> Response:
        """Answers a question about images at the smallest sufficient token scale."""
        trace = _trace(request)
        body = await read_body(request, service.config.max_body_bytes)
        created = int(clock())

        async def respond() -> Response:
            answer = await service.handle(body, trace)
            if answer.plan.chat.stream:
                decision_headers = headers(explanation(answer.plan, trace))
                return EventStreamResponse(answer, created, decision_headers)
            async with aclosing(answer):
                whole = await completion(answer, created)
            return _json(whole, headers(whole.m3))

        return await until_disconnect(request.receive, respond())

    @app.post("/v1/route", response_model=Route, openapi_extra=CHAT_BODY)
    async def explain_route(request: Request) -> Response:
        """Decides on a chat request and explains the decision, without answering."""
        trace = _trace(request)
        body = await read_body(request, service.config.max_body_bytes)
        plan = await until_disconnect(request.receive, service.plan(body, trace))
        explained = route(plan, trace)
        return _json(explained, headers(explained.m3))

    @app.post("/v1/route/batch", response_model=RouteList, openapi_extra=BATCH_BODY)
    async def explain_routes(request: Request) -> Response:
        """Decides on many chat requests and explains the decisions, without answering."""
        trace = _trace(request)
        body = await read_body(request, service.config.max_body_bytes)
        plans = await until_disconnect(request.receive, service.plan_batch(body, trace))
        return _json(routes(plans, trace))

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


def _add_feedback(
    app: FastAPI, service: RoutingService, telemetry: Telemetry, feedback: Feedback | None
) -> None:
    @app.post("/v1/feedback", response_model=FeedbackTaken, openapi_extra=FEEDBACK_BODY)
    async def give_feedback(request: Request) -> Response:
        """Takes a verdict on an answer, or what would have been right."""
        if feedback is None:
            raise InvalidRequestError(
                "This service takes no feedback.", code=Code.FEEDBACK_DISABLED
            )
        body = await read_body(request, min(MOST_FEEDBACK_BYTES, service.config.max_body_bytes))
        judged = await feedback.give(body, _trace(request).caller)
        if judged.taken.status == "recorded":
            receipt = judged.receipt
            telemetry.judged(receipt.scale, receipt.group, right=judged.right)
        return _json(judged.taken)


def _add_operations(
    app: FastAPI,
    service: RoutingService,
    access: Access,
    telemetry: Telemetry,
    before_scrape: Callable[[], Awaitable[None]] | None,
    drift: DriftWatch | None,
) -> None:
    """Probes and metrics, for those who run the service."""

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers at all; for liveness probes."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz(request: Request) -> Response:
        """Whether requests would be answered now; for readiness probes."""
        components = partial(
            readiness.components,
            predictor=service.predictor_version,
            predictor_refused=service.predictor_refused,
            limits_breaker_open=access.breaker_open,
            tightened_to=service.tightened_to,
            drift=None if drift is None else drift.state,
        )
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                replicas, info = await service.ready(), await service.info()
        except Exception as error:
            unready = NotReadyError(error, retry_after_s=READY_TIMEOUT_S)
            shown = _trace(request).failed(unready)
            body = error_body(shown) | readiness.not_ready(error, components(None))
            return JSONResponse(body, shown.status, error_headers(shown))
        version = service.predictor_version
        return JSONResponse(readiness.ready(info, version, components(replicas)))

    @app.get(
        METRICS,
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Prometheus metrics of the service."""
        if before_scrape is not None:
            await before_scrape()
        return Response(telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)


class _Gate:
    """In front of every route: who asks, whether anybody is let in now, and the caller's limits.

    All of it before the body is read, so that a refusal costs next to nothing and no limit.
    """

    def __init__(self, access: Access, rules: AccessConfig, admission: Admission) -> None:
        self._access, self._admission = access, admission
        self._open = OPEN_PATHS | ({METRICS} if rules.public_metrics else set())

    async def __call__(self, request: Request) -> None:
        path = request.scope["route"].path
        if path in self._open:
            return
        trace = _trace(request)
        trace.caller = await self._access.admit(request.headers.get("authorization"))
        if path in OPERATORS_PATHS:
            trace.caller.require_operator()
        if request.method == "POST":
            self._admission.check_open()
            await trace.caller.take_requests()


class _Tracing:
    """Outermost layer: names every request, records its outcome, answers what nobody foresaw."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = Trace(uuid4().hex, parent=_trace_context(scope))
        scope.setdefault("state", {})["trace"] = trace
        # Ray Serve's proxy names every request itself and adds that name to the response.
        named_already = any(name == b"x-request-id" for name, _ in scope["headers"])
        names = (REQUEST_ID_HEADER,) if named_already else (REQUEST_ID_HEADER, "x-request-id")
        responding = False

        async def named(message: Message) -> None:
            nonlocal responding
            if message["type"] == "http.response.start":
                responding = True
                fields = dict.fromkeys(names, trace.request_id) | trace.caller.headers()
                added = [(name.encode(), value.encode()) for name, value in fields.items()]
                message = {**message, "headers": [*message["headers"], *added]}
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
    return JSONResponse(error_body(error), error.status, error_headers(error))


def _trace_context(scope: Scope) -> dict[str, str]:
    """The W3C trace context that the client sent."""
    return {
        name.decode(): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in TRACE_CONTEXT
    }


def _trace(request: Request) -> Trace:
    return cast(Trace, request.state.trace)


def _json(body: BaseModel, extra: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), media_type="application/json", headers=extra)


def _card(name: str, created: int) -> ModelCard:
    return ModelCard(id=name, created=created, owned_by=OWNER)
