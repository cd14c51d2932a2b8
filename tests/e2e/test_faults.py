"""Parts that fail under real requests: replicas that are killed, a predictor that is replaced.

One service with two replicas for the whole module; every test leaves it whole again.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.config import load
from deploy.predictors import find_artifact
from predictor import artifact as artifacts
from tests.conftest import unused_port
from tests.e2e.pictures import chat, picture
from tests.e2e.service import START_LIMIT_S, Service, sandbox, start, until

REPLICAS = 2
MOST_KILLS = 5
RUNNING = "m3_replica_running_requests"
# About a thousand tokens: what a replica has to do for some time.
LONG_QUESTION = "What is this? " * 100


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the predictor that ships, to be replaced."""
    shipped = find_artifact(load("local.yaml"))
    assert shipped is not None
    return shutil.copytree(shipped, tmp_path_factory.mktemp("predictor") / "served")


@pytest.fixture(scope="module")
def service(predictor: Path) -> Iterator[Service]:
    settings = (f"predictor={predictor}", f"serve.replica.replicas={REPLICAS}")
    with sandbox() as box:
        arguments = [part for setting in settings for part in ("--set", setting)]
        yield start(*arguments, port=unused_port(), box=box)


def ask(service: Service, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=START_LIMIT_S)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def replicas(service: Service) -> list[int]:
    """Process ids of the model replicas."""
    lines = service.box.processes().items()
    return [process for process, line in lines if line.startswith("ray::ServeReplica:m3-router:M3")]


def whole_again(service: Service) -> bool:
    """Whether as many replicas as there should be take requests."""
    return len(service.metric(RUNNING)) == REPLICAS == len(replicas(service))


def busy(service: Service) -> bool:
    """Whether every replica has an answer under way."""
    running = service.metric(RUNNING).values()
    return len(running) == REPLICAS and min(running) >= 1


def test_answers_of_a_killed_replica_come_from_the_other_one(service: Service) -> None:
    """Replicas are killed until one had requests. Some are under way all the time; those that are
    asked for just before it are compared.
    """
    pictures = [picture(seed) for seed in range(8)]
    greedy = [chat(image, model=f"m3-{s}") for image in pictures for s in (9, 144)]
    expected = [text_of(ask(service, body)) for body in greedy]
    done = threading.Event()

    def keep_asking(image: bytes) -> None:
        while not done.is_set():
            text_of(ask(service, chat(image, model="m3-576", question=LONG_QUESTION)))

    with ThreadPoolExecutor(len(pictures) + len(greedy)) as clients:
        others = [clients.submit(keep_asking, image) for image in pictures]
        try:
            for _ in range(MOST_KILLS):
                assert until(lambda: whole_again(service))
                victim = replicas(service)[0]
                assert until(lambda: busy(service))
                answers = [clients.submit(ask, service, body) for body in greedy]
                os.kill(victim, signal.SIGKILL)
                assert [text_of(answer.result()) for answer in answers] == expected
                if retried := service.metric("m3_retries_total")["{}"]:
                    break
        finally:
            done.set()
        for other in others:
            other.result()
    assert retried
    assert until(lambda: whole_again(service))


def test_a_predictor_is_replaced_without_losing_a_request(
    service: Service, predictor: Path
) -> None:
    def state() -> tuple[str, bool]:
        ready = httpx.get(f"{service.url}/readyz")
        assert ready.status_code == 200
        return ready.json()["predictor"], ready.json()["components"]["predictor"]["refused"]

    def eventually(expected: tuple[str, bool], while_asking: Callable[[], None]) -> bool:
        def reached() -> bool:
            while_asking()
            return state() == expected

        return until(reached)

    old, first = artifacts.load(predictor)
    seen: set[str] = set()

    def asking() -> None:
        answer = ask(service, chat(picture(0)))
        assert text_of(answer)
        seen.add(answer.headers["x-m3-predictor"])

    second = artifacts.save(replace(old, metrics={"auc": 0.5}), predictor, "2026-01-01")
    assert eventually((second, False), asking)
    (predictor / "model.txt").write_text("broken")
    assert eventually((second, True), asking)
    assert service.metric("m3_predictor_refused") == {"{}": 1.0}
    assert artifacts.save(old, predictor, "2026-01-02") == first
    assert eventually((first, False), asking)
    assert seen <= {first, second}
