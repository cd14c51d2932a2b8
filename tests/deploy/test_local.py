"""The pieces of the embedded mode that need no Ray; the whole of it is in tests/e2e."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deploy import local
from deploy.config import load
from deploy.local import (
    StartError,
    StopSignals,
    init_ray,
    private_folder,
    private_redis,
    require_free_port,
)


def test_a_taken_port_is_refused_and_a_free_one_is_not(free_port: int) -> None:
    require_free_port("127.0.0.1", free_port)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=f"127.0.0.1:{port} .*--port"):
            require_free_port("127.0.0.1", port)


def test_the_folder_is_ours_alone_and_goes() -> None:
    with private_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "left").touch()
    assert not folder.exists()


def test_a_long_temporary_path_is_avoided_because_of_sockets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private_folder() as folder:
        assert folder.parent == Path("/tmp")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_polite_signal_interrupts_and_is_given_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        assert stop.requested
        stop.ignore()
        assert not stop.insisted
        os.kill(os.getpid(), number)
        assert stop.insisted
    assert signal.getsignal(number) is before


def test_a_machine_without_redis_is_told_and_served(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local, "find_server", lambda: None)
    said: list[str] = []
    with private_redis(load("local.yaml"), tmp_path, said.append) as url:
        assert url == "none"
    assert "cached in memory only" in said[0]


def test_a_redis_that_does_not_start_says_how_to_go_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local, "find_server", lambda: "/bin/false")
    monkeypatch.setattr("deploy.redis_server.START_TIMEOUT_S", 0.1)
    with (
        pytest.raises(StartError, match=r"cache\.redis: none"),
        private_redis(load("local.yaml"), tmp_path, print),
    ):
        pass


def test_a_ray_that_is_not_there_is_one_line() -> None:
    """In a process of its own, because Ray reads the environment when it is imported.

    The port is taken, as it is on a cluster where the service ran before: Ray's proxy stays.
    """
    settings = ("--set", "ray.address=127.0.0.1:1", "--set", "cache.redis=none")
    command = Path(sys.executable).parent / "m3-router"
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        refused = subprocess.run(
            [command, "serve", *settings, "--port", str(proxy.getsockname()[1])],
            capture_output=True,
            text=True,
            check=False,
        )
    assert refused.returncode == 1
    assert "No Ray at ray.address '127.0.0.1:1'" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(("message", "tries"), [("Timed out waiting for a file", 2), ("no", 1)])
def test_a_ray_that_comes_up_too_slowly_is_started_once_more(
    monkeypatch: pytest.MonkeyPatch, message: str, tries: int
) -> None:
    import ray

    asked: list[str] = []

    def never(*, address: str) -> None:
        asked.append(address)
        raise RuntimeError(message)

    monkeypatch.setattr(ray, "init", never)
    with pytest.raises(RuntimeError, match=message):
        init_ray(address="local")
    assert asked == ["local"] * tries
