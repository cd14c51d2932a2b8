"""The corpus against the service over real HTTP, with the real model and the real predictor."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.hostile.corpus import CHAT, Case, corpus, encode, request
from tests.hostile.judging import faults
from tests.router.support import app_of, serving

# Of one request, on a machine that has other things to do; a quiet one needs a tenth.
LIMIT_S = 20.0


@pytest.fixture(scope="module")
def served(m3_tiny: Any) -> Iterator[str]:
    with serving(app_of(m3_tiny, m3_tiny.predictor)) as url:
        yield url


def send(client: httpx.Client, case: Case) -> httpx.Response:
    content = case.pieces[0] if len(case.pieces) == 1 else iter(case.pieces)
    return client.request(
        case.method, case.path, content=content if case.pieces else None, headers=case.headers
    )


def test_the_corpus_is_large_and_comes_out_the_same_every_time() -> None:
    cases = corpus()
    assert len({case.name for case in cases}) == len(cases) >= 1000
    assert sum(case.name.startswith("image-") for case in cases) >= 300
    assert cases == corpus()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_answer_is_one_that_is_documented(
    served: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No 5xx, nothing of what decoders, parsers and interpreters say, and all within a bound."""
    wrong, outcomes = {}, {}
    with httpx.Client(base_url=served, timeout=LIMIT_S) as client:
        for case in corpus():
            began = time.perf_counter()
            try:
                response = send(client, case)
            except httpx.HTTPError as error:
                wrong[case.name] = [repr(error)]
                continue
            found = faults(case, response)
            if (took := time.perf_counter() - began) > LIMIT_S:
                found.append(f"{took:.0f} seconds")
            if found:
                wrong[case.name] = found
            outcomes[case.name] = response.status_code
        answer = client.post(CHAT, content=encode(request()))
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())
    assert answer.status_code == 200
    for name in ("fine-JPEG-CMYK", "fine-PNG-I16", "fine-one-pixel", "gif-deep", "webp-animated"):
        assert outcomes[f"image-{name}"] == 200
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


GOOD = encode(request())
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n"
WIRE: dict[str, bytes] = {
    "both lengths": (
        f"{HEAD}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
    ),
    "two lengths": f"{HEAD}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde".encode(),
    "negative length": f"{HEAD}Content-Length: -1\r\n\r\n".encode(),
    "no number": f"{HEAD}Content-Length: x\r\n\r\n".encode(),
    "long length": f"{HEAD}Content-Length: {'9' * 400}\r\n\r\n".encode(),
    "bad chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode(),
    "huge chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{'f' * 30}\r\n".encode(),
    "unknown coding": f"{HEAD}Transfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n".encode(),
    "obsolete folding": f"{HEAD}X: a\r\n b\r\nContent-Length: 2\r\n\r\n{{}}".encode(),
    "space before colon": f"{HEAD}Content-Length : 2\r\n\r\n{{}}".encode(),
    "bare newlines": f"POST {CHAT} HTTP/1.1\nHost: x\nContent-Length: 2\n\n{{}}".encode(),
    "nul in a header": f"{HEAD}X: a\0b\r\nContent-Length: 2\r\n\r\n{{}}".encode(),
    "no host": f"POST {CHAT} HTTP/1.1\r\nContent-Length: 2\r\n\r\n{{}}".encode(),
    "HTTP/3.7": f"POST {CHAT} HTTP/3.7\r\nHost: x\r\n\r\n".encode(),
    "HTTP/0.9": f"GET {CHAT}\r\n\r\n".encode(),
    "an upgrade": (
        f"{HEAD}Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
        "Content-Length: 2\r\n\r\n{}"
    ).encode(),
    "a whole URL": f"GET http://127.0.0.1:1{CHAT} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "CONNECT": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n",
    "PRI": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(200),
    "noise": bytes(range(256)) + b"\r\n\r\n",
    "a long header": f"{HEAD}X: {'y' * 200_000}\r\n\r\n".encode(),
    "many headers": (HEAD + "".join(f"X-{n}: y\r\n" for n in range(5000)) + "\r\n").encode(),
    "a second request inside": (
        f"{HEAD}Content-Length: 2\r\n\r\n{{}}GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    ),
}


@pytest.mark.parametrize("case", WIRE)
def test_bytes_that_are_hardly_http(served: str, case: str) -> None:
    """The HTTP server answers what is not HTTP, with a plain 400; it must not reach the service."""
    address = urlsplit(served)
    with socket.create_connection((address.hostname or "", address.port or 0), LIMIT_S) as wire:
        wire.sendall(WIRE[case])
        wire.shutdown(socket.SHUT_WR)
        said = b""
        while piece := wire.recv(65_536):
            said += piece
    for status in [line for line in said.split(b"\r\n") if line.startswith(b"HTTP/1.1")]:
        assert status.split()[1] < b"500", said
    assert b"Traceback" not in said
    with httpx.Client(base_url=served, timeout=LIMIT_S) as client:
        assert client.get("/healthz").json() == {"status": "alive"}


def test_a_stream_of_hostile_requests_leaves_good_ones_alone(served: str) -> None:
    with httpx.Client(base_url=served, timeout=LIMIT_S) as client:
        said = client.post(CHAT, content=encode(request(stream=True))).text
    assert said.endswith("data: [DONE]\n\n")
    assert json.loads(said.split("\n\n")[0].removeprefix("data: "))["object"].endswith("chunk")
