"""No accepted request is lost: when the service is asked to stop, and when it is deployed anew."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.conftest import unused_port
from tests.e2e.pictures import chat, picture
from tests.e2e.service import Service, sandbox, start, until

CROWD = 8


def ask(url: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)


def heavy(seed: int, **options: Any) -> dict[str, Any]:
    """A request that keeps a replica busy for a while: pictures that nobody has seen."""
    images = [picture(1000 * seed + i, side=700) for i in range(4)]
    return chat(*images, model="m3-144", **options)


def at_replicas(service: Service) -> float:
    """Requests that were let in for certain: a replica has them."""
    names = ("m3_replica_running_requests", "m3_replica_waiting_requests")
    return sum(sum(service.metric(name).values()) for name in names)


def text_of(answer: httpx.Response, *, stream: bool) -> str:
    if not stream:
        return str(answer.json()["choices"][0]["message"]["content"])
    *events, done = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)


def terminate(service: Service) -> None:
    service.process.send_signal(signal.SIGTERM)


def press_ctrl_c(service: Service) -> None:
    """As a terminal does: all processes of its group get it, Ray's among them."""
    os.killpg(service.process.pid, signal.SIGINT)


@pytest.mark.parametrize("ask_to_stop", [terminate, press_ctrl_c])
def test_what_was_accepted_is_answered_when_the_service_is_asked_to_stop(
    ask_to_stop: Callable[[Service], None],
) -> None:
    """And whoever comes later is told to try again, for as long as there is somebody to tell it."""
    with sandbox() as box, ThreadPoolExecutor(CROWD) as pool:
        service = start("--set", "router.load.max_wait_s=60", port=unused_port(), box=box)
        bodies = [heavy(seed, stream=seed % 2 == 1) for seed in range(CROWD)]
        asked: list[Future[httpx.Response]] = [
            pool.submit(ask, service.url, body) for body in bodies
        ]
        done = [future.done for future in asked]
        assert until(lambda: at_replicas(service) + sum(d() for d in done) >= CROWD)
        assert not all(answer.done() for answer in asked)
        ask_to_stop(service)
        refused = refusals(lambda: ask(service.url, chat(picture(1))), service)
        for index, answer in enumerate(asked):
            assert answer.result().status_code == 200, answer.result().text
            text_of(answer.result(), stream=index % 2 == 1)
        assert service.process.wait(60) == 0
        assert until(lambda: not box.processes()), box.processes()
        assert box.remains() == []
        assert (503, "shutting_down") in refused


def refusals(post: Callable[[], httpx.Response], service: Service) -> set[tuple[int, str]]:
    """What late requests are told until nobody is there any more; none of them is let in."""
    told = set()
    while service.process.poll() is None:
        try:
            answer = post()
        except httpx.TransportError:
            break
        if answer.status_code != 200:  # until the signal has been seen, all is as before
            told.add((answer.status_code, answer.json()["error"]["code"]))
        if told:
            break
    return told
