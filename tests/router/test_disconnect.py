"""A client that leaves ends its request on the replica, over a real server."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.fakes import FakeBackend
from tests.router.support import app_of, chat, serving


class Logged(logging.Handler):
    """Keeps the first request's log line for the test's thread."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived = threading.Event()
        self.line = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.line = record.getMessage()
        self.arrived.set()


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    return socket.create_connection((address.hostname, address.port), timeout=30)


def send(url: str, body: bytes, declared: int | None = None) -> socket.socket:
    connection = connect(url)
    length = len(body) if declared is None else declared
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: router\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.fixture
def logged() -> Iterator[Logged]:
    handler = Logged()
    logger = logging.getLogger("m3_router.requests")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.setLevel(before)
    logger.removeHandler(handler)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_in_the_middle_of_an_answer(stream: bool, logged: Logged) -> None:
    backend = FakeBackend(hold_after=2)
    with serving(app_of(backend)) as url:
        connection = send(url, json.dumps(chat(stream=stream)).encode())
        assert backend.holding.wait(30)
        assert not backend.closed.is_set()
        connection.close()
        assert backend.closed.wait(30)
        assert logged.arrived.wait(30)
    line = json.loads(logged.line)
    assert (line["status"], line["code"]) == (499, "client_closed_request")


def test_leaving_before_everything_is_sent(logged: Logged) -> None:
    backend = FakeBackend()
    with serving(app_of(backend)) as url:
        send(url, b"{", declared=1000).close()
        assert logged.arrived.wait(30)
    assert json.loads(logged.line)["code"] == "client_closed_request"
    assert backend.requests == []
