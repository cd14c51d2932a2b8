"""One question to the service, over HTTP or, without a server, to the same app in this process."""

from __future__ import annotations

import asyncio
import base64
import mimetypes
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from deploy.config import Config
from m3_backend.errors import ServiceError

PROBE_TIMEOUT_S = 3.0  # a busy service takes two to say that it is ready
REQUEST_TIMEOUT_S = 300.0
KEY_VARIABLE = "M3_ROUTER_API_KEY"


def chat_body(
    image: Path,
    question: str,
    *,
    scale: int | None = None,
    max_regret: float | None = None,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """The OpenAI chat request about one image file; None leaves an option to the service."""
    kind = mimetypes.guess_type(image.name)[0] or "application/octet-stream"
    data = base64.b64encode(image.read_bytes()).decode()
    body: dict[str, Any] = {
        "model": "m3-auto",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}},
                    {"type": "text", "text": question},
                ],
            }
        ],
    }
    options = {"scale": scale, "max_regret": max_regret}
    if given := {key: value for key, value in options.items() if value is not None}:
        body["m3"] = given
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    return body


async def ready(url: str) -> bool:
    """Whether an m3-router answers there and is ready."""
    try:
        async with httpx.AsyncClient(base_url=url, timeout=PROBE_TIMEOUT_S) as client:
            answer = await client.get("/readyz")
            return answer.status_code == 200 and "scales" in answer.json()
    except (httpx.HTTPError, ValueError):
        return False


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running service, with the API key that the environment holds, if any."""
    key = os.environ.get(KEY_VARIABLE)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=REQUEST_TIMEOUT_S
    ) as client:
        yield client


@asynccontextmanager
async def in_process(config: Config) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service's own app in this process: same router, no Ray, no socket.

    Raises:
        CheckpointError, ArtifactError: the model or its predictor cannot be opened.
    """
    from deploy.engines import EngineBackend, open_engine  # noqa: PLC0415 - loads torch
    from deploy.predictors import open_predictor  # noqa: PLC0415
    from router.config import AccessConfig  # noqa: PLC0415
    from router.http import build_app  # noqa: PLC0415
    from router.service import RoutingService  # noqa: PLC0415

    engine = await asyncio.to_thread(open_engine, config, replica="in-process")
    try:
        backend = EngineBackend(engine)
        predictor = open_predictor(config, await backend.info())
        # Whoever runs this process may use it: its keys are for those who come over the network.
        settings = config.router.model_copy(update={"access": AccessConfig()})
        service = RoutingService(backend, predictor, settings)
        transport = httpx.ASGITransport(build_app(service))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://in-process", timeout=REQUEST_TIMEOUT_S
        ) as client:
            yield client
        service.close()
    finally:
        engine.close()


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The JSON answer. Raises ServiceError with the service's own status, code and message."""
    try:
        answer = await client.post(path, json=body)
    except httpx.HTTPError as error:
        raise ServiceError(
            f"No answer from {client.base_url} ({type(error).__name__}); is it running?",
            code="no_answer",
            status=503,
        ) from None
    try:
        content: dict[str, Any] = answer.json()
    except ValueError:
        content = {}
    if answer.is_success and content:
        return content
    told = content.get("error") or {}
    raise ServiceError(
        told.get(
            "message", f"{client.base_url} answered {answer.status_code} without an m3-router."
        ),
        code=told.get("code", "not_m3_router"),
        status=answer.status_code,
        param=told.get("param"),
    )
