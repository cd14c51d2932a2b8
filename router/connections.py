"""What clients send and how long they stay: bodies with a limit, disconnects, event streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import aclosing
from typing import TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from m3_backend.errors import InvalidRequestError
from router.answering import Answer
from router.errors import ClientClosedRequestError, Code
from router.responses import server_sent_events

T = TypeVar("T")


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body, given up on as soon as it is known to be longer than `limit` bytes.

    Raises:
        InvalidRequestError: `request_too_large` (413).
        ClientClosedRequestError: the client left before it had sent everything.
    """
    too_large = InvalidRequestError(
        f"The request body has more than {limit:,} bytes; shorten it or send smaller images.",
        status=413,
        code=Code.REQUEST_TOO_LARGE,
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
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
