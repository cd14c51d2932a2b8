"""Pictures, request bodies and servers for the tests of the front door."""

from __future__ import annotations

import base64
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from PIL import Image

from router.config import RouterConfig
from router.http import build_app
from router.ports import BackendPort, PredictorPort
from router.service import RoutingService
from tests.conftest import unused_port

QUESTION = "What colour is the square?"


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    """An encoded picture whose pixels do not compress to nothing."""
    file = BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises `width` × `height` pixels and holds none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes | str | None = None, detail: str | None = None) -> dict[str, Any]:
    url = data if isinstance(data, str) else data_url(data or picture())
    return {
        "type": "image_url",
        "image_url": {"url": url} | ({} if detail is None else {"detail": detail}),
    }


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return {"role": "user", "content": content}


def chat(*parts: str | dict[str, Any], **options: Any) -> dict[str, Any]:
    """A request body: one user message of `parts`, by default a picture and a question."""
    message = user(*(parts or (image_part(), QUESTION)))
    return {"model": "m3-auto", "messages": [message]} | options


def app_of(backend: BackendPort, predictor: PredictorPort | None = None, **config: Any) -> FastAPI:
    return build_app(RoutingService(backend, predictor, RouterConfig(**config)))


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """Talks to the app in this event loop, without a socket."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router")


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """A real server in a thread; gives its base URL."""
    port = unused_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    started = threading.Event()

    async def startup(sockets: Any = None) -> None:
        await uvicorn.Server.startup(server, sockets)
        started.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
