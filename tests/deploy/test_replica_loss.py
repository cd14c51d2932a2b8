"""Replicas killed in the middle of a request, on a real Ray Serve and over real HTTP.

A stand-in for the model answers on two replicas; the question says how often one dies (kill -9 of
its process) before it is answered, after how many words, and whether they must have been read, or
the replica at least heard of: one that dies before the router hears anything of it may be replaced
by Serve itself, which does not count.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai import APIError, InternalServerError, OpenAI
from ray import cloudpickle, serve
from ray.serve.handle import DeploymentHandle

from deploy.app import HEALTH_PERIOD_S
from deploy.backend import HandleBackend
from deploy.transport import Message, packed
from m3_backend.messages import Delta, Event, Finished, GenerationRequest, Started
from router.config import RouterConfig
from router.http import build_app
from router.service import RoutingService
from tests.conftest import unused_port
from tests.fakes import MODEL
from tests.router.support import image_part, user

WORDS = ("one ", "two ", "three")
REPLICAS = 2


def read_mark(deaths: Path) -> Path:
    """Is there once the client has read the words after which a replica may die."""
    return deaths.with_name("read")


def heard_mark(deaths: Path, replica: str) -> Path:
    """Is there once the router has heard that this replica has started."""
    return deaths.with_name(f"heard-{replica}")


class Model:
    async def info(self) -> Any:
        return MODEL

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Message]:
        async for message in packed(self._answer(request), whole=request.whole):
            yield message

    async def _answer(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        [question] = [part for part in request.turns[-1].content if isinstance(part, str)]
        asked = re.fullmatch(
            r"Die (\d+) times after (\d+)( read| heard)? words, see (.+)", question
        )
        assert asked is not None
        times, words, deaths = int(asked[1]), int(asked[2]), Path(asked[4])
        marks = {" read": read_mark(deaths), " heard": heard_mark(deaths, str(os.getpid()))}
        mark = marks.get(asked[3])
        yield Started((576,), 600, ("miss",), 0.0, 0.0, 0.0, replica=str(os.getpid()))
        for index, word in enumerate((*WORDS, "")):
            died = len(deaths.read_bytes()) if deaths.exists() else 0
            if index == words and died < times:
                while mark is not None and not mark.exists():
                    await asyncio.sleep(0.01)
                with deaths.open("ab") as file:
                    file.write(b".")
                os.kill(os.getpid(), signal.SIGKILL)
            if word:
                yield Delta(word, (index,))
        yield Finished("stop", len(WORDS), 1.0, 1.0)


class Hearing(HandleBackend):
    """Leaves a mark for every replica that it hears of."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        [question] = [part for part in request.turns[-1].content if isinstance(part, str)]
        deaths = Path(question.rpartition("see ")[2])
        async with aclosing(super().generate(request)) as events:
            async for event in events:
                if isinstance(event, Started):
                    heard_mark(deaths, event.replica).touch()
                yield event


class Front:
    """What deploy.ingress.Ingress is, without a configuration."""

    def __init__(self, model: DeploymentHandle[Any]) -> None:
        self._model = model

    async def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(RoutingService(Hearing(self._model), None, RouterConfig()))


@pytest.fixture(scope="module")
def url(ray_cluster: Path) -> str:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    model = serve.deployment(num_replicas=REPLICAS, health_check_period_s=HEALTH_PERIOD_S)(Model)
    port = unused_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(serve.deployment(serve.ingress()(Front)).bind(model.bind()), name="test")
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=100) as client:
        yield client


@pytest.fixture
def deaths(tmp_path: Path) -> Path:
    """Holds a byte for every replica that died."""
    return tmp_path / "deaths"


def request(
    deaths: Path, times: int, words: int, *, read: bool = False, heard: bool = False
) -> dict[str, Any]:
    which = " read" if read else " heard" if heard else ""
    question = f"Die {times} times after {words}{which} words, see {deaths}"
    return {"model": "m3-auto", "messages": [user(image_part(), question)]}


# Two deaths take both replicas: then the answer has to wait for one that Serve starts anew.
@pytest.mark.parametrize(("times", "words"), [(1, 0), (1, 2), (2, 3)])
def test_a_whole_answer_comes_from_another_replica(
    times: int, words: int, client: OpenAI, deaths: Path
) -> None:
    answer = client.chat.completions.create(**request(deaths, times, words))
    assert answer.choices[0].message.content == "".join(WORDS)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(WORDS)
    assert deaths.stat().st_size == times


def test_a_stream_without_a_word_comes_from_another_replica(client: OpenAI, deaths: Path) -> None:
    chunks = list(client.chat.completions.create(**request(deaths, 1, 0), stream=True))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == "".join(WORDS)
    assert deaths.stat().st_size == 1


def test_a_stream_that_has_begun_ends_with_an_error(client: OpenAI, deaths: Path) -> None:
    text = ""
    with pytest.raises(APIError) as caught:
        asked = request(deaths, 1, 2, read=True)
        for chunk in client.chat.completions.create(**asked, stream=True):
            text += chunk.choices[0].delta.content or ""
            if text == "one two ":
                read_mark(deaths).touch()
    assert text == "one two "
    assert (caught.value.code, caught.value.type) == ("replica_lost", "server_error")


def test_an_error_is_the_last_event_of_its_stream(url: str, deaths: Path) -> None:
    asked = request(deaths, 1, 1, read=True) | {"stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=asked, timeout=100) as answer:
        assert answer.status_code == 200
        events = []
        for line in filter(None, answer.iter_lines()):
            events.append(json.loads(line.removeprefix("data: ")))
            read_mark(deaths).touch()  # the headers wait for the first word
    assert events[-1]["error"]["code"] == "replica_lost"
    assert all("error" not in event for event in events[:-1])


def test_a_request_that_kills_its_replicas_is_given_up(client: OpenAI, deaths: Path) -> None:
    with pytest.raises(InternalServerError) as caught:
        client.chat.completions.create(**request(deaths, 100, 1, heard=True))
    assert (caught.value.status_code, caught.value.code) == (502, "replica_lost")
    assert deaths.stat().st_size == RouterConfig().max_attempts
