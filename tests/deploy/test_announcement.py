"""The request that is printed can be pasted, whatever the example is called and asks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from deploy import announcement
from deploy.announcement import ready_message
from deploy.config import load


def test_the_ready_message_names_an_address_that_can_be_reached() -> None:
    config = load("local.yaml", {"serve.host": "0.0.0.0", "serve.port": 8123})
    message = ready_message(config, None)
    assert message.count("http://127.0.0.1:8123") == 3
    assert "http://127.0.0.1:8123/dashboard" in message


def test_a_door_that_is_open_to_the_network_is_told() -> None:
    network = {"serve.host": "0.0.0.0"}
    assert "no API keys" in ready_message(load("local.yaml", network), None)
    guarded = network | {"router.access.keys": "keys.yaml"}
    message = ready_message(load("local.yaml", guarded), None)
    assert "no API keys" not in message
    assert 'Authorization: Bearer $M3_ROUTER_API_KEY"' in message
    assert "no API keys" not in ready_message(load("local.yaml"), None)


def test_the_request_to_copy_is_valid_for_a_plain_shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Quotes, dollars and spaces in names and questions come through."""
    (tmp_path / "a picture.png").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "questions.jsonl").write_text(
        json.dumps({"image": "a picture.png", "question": 'Is "it" $HOME `date` \\ é?'})
    )
    monkeypatch.setattr(announcement, "EXAMPLES", tmp_path)
    shell = "cat " + announcement.curl_request("http://nowhere")[len("curl ") :].partition("@- ")[2]
    shown = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
    body = json.loads(shown[shown.index("{") :])
    text, image = body["messages"][0]["content"]
    assert text["text"] == 'Is "it" $HOME `date` \\ é?'
    assert image["image_url"]["url"].startswith("data:image/png;base64,AAECAwQF")
