"""Real parts that the tests of several rooms share."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
import torch
from redis.backoff import ConstantBackoff
from redis.retry import Retry


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The models are tiny: a second thread costs more than it brings, and the machine is shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class RedisServer:
    """A redis-server process of the test's own."""

    url: str
    process: subprocess.Popen[bytes]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])

    def kill(self) -> None:
        """Ends it the hard way, as a crash would."""
        self.process.kill()
        self.process.wait()


def unused_port() -> int:
    """A TCP port on the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def start_redis(folder: Path, port: int | None = None) -> RedisServer:
    """Starts redis-server without persistence and returns once it answers."""
    port = port or unused_port()
    process = subprocess.Popen(
        [
            "redis-server",
            "--bind",
            "127.0.0.1",
            "--port",
            str(port),
            "--save",
            "",
            "--dir",
            str(folder),
        ],
        stdout=subprocess.DEVNULL,
    )
    server = RedisServer(f"redis://127.0.0.1:{port}/0", process)
    redis.Redis.from_url(
        server.url, retry=Retry(ConstantBackoff(0.05), 100), retry_on_error=[redis.ConnectionError]
    ).ping()
    return server


@pytest.fixture(scope="session")
def m3_tiny() -> Iterator[Any]:
    """The model that ships, as a BackendPort, with its predictor in `predictor`."""
    from deploy.config import load
    from deploy.engines import EngineBackend, open_engine
    from deploy.predictors import open_predictor

    config = load("local.yaml", {"cache.redis": "none"})
    engine = open_engine(config, replica="tests")
    backend: Any = EngineBackend(engine)
    backend.predictor = open_predictor(config, engine.info)
    yield backend
    engine.close()


@pytest.fixture
def free_port() -> int:
    return unused_port()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = start_redis(tmp_path)
    yield server
    server.kill()
