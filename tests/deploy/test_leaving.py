"""A client that leaves over HTTP stops the real engine within one step."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from deploy.engines import EngineBackend
from m3_backend.checkpoint import open_checkpoint
from m3_backend.engine import EngineSettings, TorchEngine
from m3_backend.feature_cache import FeatureCache
from tests.e2e.service import until
from tests.m3_backend.support import LLAVA15, write_llava_hf, write_tokenizer
from tests.router.support import app_of, chat, serving
from tests.router.test_disconnect import send


@pytest.mark.parametrize("stream", [False, True])
def test_at_most_one_more_step_runs_after_the_client_has_left(
    tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine stands still while the client leaves, so that steps can be counted."""
    write_llava_hf(LLAVA15, tmp_path)
    write_tokenizer(tmp_path)
    checkpoint = open_checkpoint(tmp_path, device="cpu")
    engine = TorchEngine(checkpoint, FeatureCache(1 << 24), EngineSettings(max_batch=2))
    steps, allowed = [], threading.Semaphore(3)
    decode = engine._runner.decode

    def gated(*arguments: Any) -> Tensor:
        assert allowed.acquire(timeout=60)
        steps.append(1)
        return decode(*arguments)

    monkeypatch.setattr(engine._runner, "decode", gated)
    try:
        with serving(app_of(EngineBackend(engine))) as url:
            body = chat(stream=stream, max_tokens=1000, model="m3-9")
            connection = send(url, json.dumps(body).encode())
            assert until(lambda: len(steps) == 3)
            [job] = engine._jobs
            connection.close()
            assert until(lambda: job.cancelled)
            allowed.release(50)
            assert until(lambda: not engine.stats().running)
        assert len(steps) <= 4
    finally:
        allowed.release(1000)
        engine.close()
