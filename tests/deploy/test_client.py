"""The command line's own client against a server that asks for a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.client import KEY_VARIABLE, chat_body, connect, post
from m3_backend.errors import ServiceError
from router.auth import digest_of_key, new_key
from tests.fakes import FakeBackend
from tests.router.support import app_of, picture, serving


async def test_the_key_in_the_environment_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, image, keys = new_key(), tmp_path / "a.png", tmp_path / "keys.yaml"
    image.write_bytes(picture())
    keys.write_text(f"- {{name: me, sha256: '{digest_of_key(key).hex()}'}}")
    body = chat_body(image, "What is it?")
    with serving(app_of(FakeBackend(), access={"keys": str(keys)})) as url:
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        async with connect(url) as client:
            with pytest.raises(ServiceError) as caught:
                await post(client, "/v1/route", body)
        assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
        monkeypatch.setenv(KEY_VARIABLE, key)
        async with connect(url) as client:
            assert (await post(client, "/v1/route", body))["object"] == "m3.route"
