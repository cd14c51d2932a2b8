"""Admission over the real engine: what waits there is seen, loosens bounds, refuses, and goes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from torch import Tensor

from deploy.engines import EngineBackend
from m3_backend.checkpoint import open_checkpoint
from m3_backend.engine import EngineSettings, TorchEngine
from m3_backend.feature_cache import FeatureCache
from m3_backend.messages import ImageInput
from router.config import LoadConfig, RouterConfig
from router.http import build_app
from router.service import RoutingService
from tests.fakes import FakePredictor
from tests.m3_backend.support import LLAVA15, write_llava_hf, write_tokenizer
from tests.router.support import QUESTION, chat, client_of, image_part, picture

ENCODE_MS = 500.0


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchEngine]:
    """One that encodes when it is told to, and believes that it takes half a second."""
    write_llava_hf(LLAVA15, tmp_path)
    write_tokenizer(tmp_path)
    engine = TorchEngine(
        open_checkpoint(tmp_path, device="cpu"), FeatureCache(1 << 24), EngineSettings()
    )
    costs = replace(engine.info.costs, encode_ms=ENCODE_MS)
    engine._info = replace(engine.info, costs=costs)
    release, pixels = threading.Event(), engine._runner.pixels

    def waits(image: ImageInput) -> Tensor:
        assert release.wait(60)
        return pixels(image)

    monkeypatch.setattr(engine._runner, "pixels", waits)
    engine.release = release  # type: ignore[attr-defined]
    yield engine
    release.set()
    engine.close()


def body(seed: int, **m3: Any) -> dict[str, Any]:
    return chat(image_part(picture(size=(40 + seed, 30))), QUESTION, max_tokens=4, m3=m3)


async def test_a_burst_is_answered_more_coarsely_then_refused_and_then_all_is_as_before(
    engine: TorchEngine,
) -> None:
    load = LoadConfig(max_wait_s=2.0, loosen_at=0.4, max_regret_ceiling=0.2)
    service = RoutingService(
        EngineBackend(engine), FakePredictor(), RouterConfig(load=load, request_timeout_s=60)
    )
    async with client_of(build_app(service)) as client:

        async def post(seed: int, **m3: Any) -> httpx.Response:
            return await client.post("/v1/chat/completions", json=body(seed, **m3))

        asked = []
        for seed in range(5):
            asked.append(asyncio.create_task(post(seed)))
            async with asyncio.timeout(30):
                while engine.stats().line.count <= seed and not asked[-1].done():
                    await asyncio.sleep(0.001)
            await service.ask_load()
        refused = await asked.pop()
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 2
        assert engine.stats().line.count == service.admission.own.count == 4
        engine.release.set()  # type: ignore[attr-defined]
        answers = await asyncio.gather(*asked)
        await service.ask_load()
        assert service.admission.latest.wait_s == 0.0
        assert engine.stats().line.count == 0
        again = await post(9)
    assert [answer.status_code for answer in (*answers, again)] == [200] * 5
    bounds = [answer.headers["x-m3-max-regret"] for answer in answers]
    assert bounds == ["0.05", "0.05", "0.2", "0.2"]  # the line holds 0, 0.5, 1 and 1.5 s of work
    assert [answer.headers["x-m3-scale"] for answer in answers] == ["36", "36", "9", "9"]
