"""The service of this checkout in a process of its own, for as long as a benchmark needs it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.results import ROOT

READY_WITHIN_S = 240.0
SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
CORES = sorted(os.sched_getaffinity(0))
LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Running:
    """A service that answers at `url`."""

    url: str
    process: subprocess.Popen[bytes]

    def metric(self, name: str, label: str) -> dict[str, float]:
        """A metric's values by one of its labels, added up over the others."""
        return metric(httpx.get(f"{self.url}/metrics", timeout=10).text, name, label)


def metric(exposition: str, name: str, label: str) -> dict[str, float]:
    """The same, of a text in Prometheus' format."""
    found: dict[str, float] = {}
    for line in exposition.splitlines():
        sample = SAMPLE.fullmatch(line)
        if sample and sample["name"] == name:
            key = dict(LABEL.findall(sample["labels"] or "")).get(label, "")
            found[key] = found.get(key, 0.0) + float(sample["value"])
    return found


@contextmanager
def service(settings: Mapping[str, Any]) -> Iterator[Running]:
    """`m3-router serve` with changed keys; its records and its registry are in a folder that goes.

    Raises:
        RuntimeError: it did not become ready.
    """
    port = unused_port()
    changes = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    with tempfile.TemporaryDirectory() as state:
        server = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli", "serve", "--port", str(port), *changes],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": state},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + READY_WITHIN_S
            while not is_ready(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the service did not start")
                time.sleep(0.5)
            yield Running(url, server)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=60)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=3).status_code == 200
    except httpx.HTTPError:
        return False


def take_all_cores() -> None:
    """Takes back what `separate_cores` did to this process, before it starts another service."""
    os.sched_setaffinity(0, CORES)


def separate_cores(server: int) -> None:
    """The model's replica on the first core, all other processes of the service on the others.

    Raises:
        RuntimeError: there is only one core.
    """
    if len(CORES) < 2:
        raise RuntimeError("two cores are needed, one of them for the model alone")
    for process in [os.getpid(), server, *descendants(server)]:
        command = (Path("/proc") / str(process) / "cmdline").read_bytes()
        its_own = CORES[:1] if b"M3Replica" in command else CORES[1:]
        for thread in (Path("/proc") / str(process) / "task").iterdir():
            os.sched_setaffinity(int(thread.name), its_own)


def descendants(process: int) -> list[int]:
    """Ids of all processes below one, while none of them starts or ends."""
    found: list[int] = []
    for task in (Path("/proc") / str(process) / "task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found
