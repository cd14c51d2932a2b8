"""The pieces of the embedded mode that need no Ray; the whole of it is in tests/e2e."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from deploy import local
from deploy.config import load
from deploy.local import (
    StartError,
    StopSignals,
    private_folder,
    private_redis,
    ready_message,
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
        os.kill(os.getpid(), number)
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


def test_the_ready_message_names_an_address_that_can_be_reached() -> None:
    config = load("local.yaml", {"serve.host": "0.0.0.0", "serve.port": 8123})
    message = ready_message(config, None)
    assert message.count("http://127.0.0.1:8123") == 2


def test_the_request_to_copy_is_valid_for_a_plain_shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Quotes, dollars and spaces in names and questions come through."""
    (tmp_path / "a picture.png").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "questions.jsonl").write_text(
        json.dumps({"image": "a picture.png", "question": 'Is "it" $HOME `date` \\ é?'})
    )
    monkeypatch.setattr(local, "EXAMPLES", tmp_path)
    shell = "cat " + local.curl_request("http://nowhere")[len("curl ") :].partition("@- ")[2]
    shown = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    body = json.loads(shown[shown.index("{") :])
    text, image = body["messages"][0]["content"]
    assert text["text"] == 'Is "it" $HOME `date` \\ é?'
    assert image["image_url"]["url"].startswith("data:image/png;base64,AAECAwQF")
