"""A real Prometheus, Debian's, that scrapes a service for as long as somebody looks."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml

from tests.conftest import unused_port

READY_WITHIN_S = 60.0
BINARY = shutil.which("prometheus")


@dataclass(frozen=True)
class Prometheus:
    """A running one, by its URL."""

    url: str

    def query(self, expression: str) -> list[float]:
        """The values that an expression has now, what is no number left out."""
        return _numbers(pair["value"][1] for pair in self._ask("query", query=expression)["result"])

    def query_range(self, expression: str, since: float, step_s: float) -> list[float]:
        """All values that an expression had from then until now."""
        asked = {"query": expression, "start": since, "end": time.time(), "step": step_s}
        series = self._ask("query_range", **asked)["result"]
        return _numbers(value for one in series for _, value in one["values"])

    def firing(self) -> set[str]:
        """Names of the alerts that fire now."""
        alerts = self._ask("alerts")["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def _ask(self, what: str, **given: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{what}", params=given, timeout=30)
        answer.raise_for_status()
        return answer.json()["data"]


def _numbers(texts: Any) -> list[float]:
    return [value for value in map(float, texts) if not isnan(value)]


@contextmanager
def prometheus(
    folder: Path, target: str, *, every: str, rules: dict[str, Any] | None = None
) -> Iterator[Prometheus]:
    """Starts one with its data in a folder.

    Args:
        target: URL of the service.
        every: between two scrapes and between two looks at the rules, as Prometheus writes it.
    """
    assert BINARY is not None
    config: dict[str, Any] = {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "scrape_configs": [
            {"job_name": "m3-router", "static_configs": [{"targets": [urlsplit(target).netloc]}]}
        ],
    }
    if rules is not None:
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
        config["rule_files"] = ["rules.yaml"]
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{unused_port()}"
    options = {
        "config.file": file,
        "storage.tsdb.path": folder / "data",
        "web.listen-address": urlsplit(url).netloc,
        "log.level": "error",
    }
    process = subprocess.Popen(
        [BINARY, *(f"--{name}={value}" for name, value in options.items())],
        stdout=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        _wait_until_ready(url, process)
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(30)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError("Prometheus did not start")
