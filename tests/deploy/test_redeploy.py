"""A new configuration takes the place of the old one while requests come in: none is lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
from ray import serve

from deploy.app import APP_NAME, LOGGING, application
from deploy.config import Config, load
from tests.conftest import unused_port
from tests.e2e.pictures import chat, picture

CALLERS = 3


def config_of(port: int, **changes: Any) -> Config:
    given = {"serve.port": port, "cache.redis": "none", "serve.drain_s": 60}
    return load("local.yaml", given | changes)


class Callers:
    """Clients that ask one question after the other until they are told to stop."""

    def __init__(self, url: str) -> None:
        self.answers: list[httpx.Response | Exception] = []
        self._url = url
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CALLERS)]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(120)

    def _ask(self, number: int) -> None:
        body = chat(picture(number))
        with httpx.Client(timeout=120) as client:
            while not self._enough.is_set():
                try:
                    answer: Any = client.post(f"{self._url}/v1/chat/completions", json=body)
                except httpx.HTTPError as error:
                    answer = error
                self.answers.append(answer)

    def asked(self, more: int) -> None:
        """Returns when so many more have been answered."""
        goal = len(self.answers) + more
        while len(self.answers) < goal and any(t.is_alive() for t in self._threads):
            self._enough.wait(0.02)


def test_a_new_configuration_loses_no_request(ray_cluster: Path) -> None:
    port = unused_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=LOGGING)
    try:
        serve.run(application(config_of(port)), name=APP_NAME)
        with Callers(f"http://127.0.0.1:{port}") as callers:
            callers.asked(10)
            changes = {"model.max_batch": 8, "router.max_regret": 0.2}
            serve.run(application(config_of(port, **changes)), name=APP_NAME)
            callers.asked(10)
    finally:
        serve.shutdown()
    lost = [a for a in callers.answers if isinstance(a, Exception) or a.status_code != 200]
    assert lost == [], [getattr(a, "text", a) for a in lost]
    bounds = [answer.headers["x-m3-max-regret"] for answer in callers.answers]
    assert (bounds[0], bounds[-1]) == ("0.05", "0.2")
