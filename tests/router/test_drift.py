"""Traffic that moves away from what the predictor was certified on: who is told, and when."""

from __future__ import annotations

import json
import logging

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from m3_backend.messages import ImageInput
from predictor.drift import Reference, reference_names
from predictor.features import FeatureVector
from predictor.predictor import Prediction
from router.config import DriftConfig, RouterConfig
from router.drift import CHAT, FEWEST_IMAGES, DriftWatch
from router.http import build_app
from router.service import RoutingService
from router.telemetry import Telemetry
from router.trace import Trace
from tests.fakes import MODEL, FakeBackend, FakePredictor
from tests.router.support import chat, client_of, image_part, picture

NAMES = ("luma.mean", "query.words")
RNG = np.random.default_rng(0)


class Watched(FakePredictor):
    """Sees what it is told to see."""

    reference = Reference.of(
        reference_names(NAMES, MODEL.ladder.scales),
        np.hstack(
            (
                RNG.random((2_000, 2), dtype=np.float32),
                np.tile(np.float32([0.3, 0.6, 0.9, 0.92, 0.93]), (2_000, 1)),
            )
        ),
    )

    def __init__(self, version: str = "one") -> None:
        super().__init__()
        self.version = version
        self.sees: NDArray[np.float32] = np.zeros(2, np.float32)

    def predict(self, image: ImageInput, question: str, salt: str = "") -> Prediction:
        found = super().predict(image, question, salt)
        return Prediction(found.p_success, FeatureVector(NAMES, "v", self.sees))


class World:
    def __init__(self, **config: float) -> None:
        self.predictor = Watched()
        self.service = RoutingService(FakeBackend(), self.predictor, RouterConfig())
        self.watch = DriftWatch(DriftConfig(**config), lambda: self.service.in_force)
        self.number = 0

    async def ask(self, count: int, shift: float = 0.0, endpoint: str = CHAT) -> None:
        """Requests about new pictures, whose features lie higher by a shift."""
        for _ in range(count):
            self.number += 1
            self.predictor.sees = RNG.random(2, dtype=np.float32)
            self.predictor.sees[1] += shift
            trace = Trace("r", endpoint=endpoint)
            body = chat(image_part(picture(size=(8, 8 + self.number))), "What?")
            await self.service.plan(json.dumps(body).encode(), trace)
            self.watch.follow(trace)
        self.watch.look()


async def test_a_shift_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    world = World(window=300)
    await world.ask(FEWEST_IMAGES - 1, shift=2.0)
    assert world.watch.state.shifts == {}  # too few to say
    await world.ask(101)
    assert not world.watch.state.warning or world.watch.state.shifts
    with caplog.at_level(logging.WARNING, "m3_router.drift"):
        caplog.clear()
        await world.ask(300)
        assert not world.watch.state.warning
        assert world.watch.state.images == world.watch.state.requests == 300
        await world.ask(150, shift=2.0)
        assert world.watch.state.warning
        assert world.watch.state.shifts["question"].name == "query.words"
        assert world.watch.state.shifts["picture"].psi < 0.25
        await world.ask(1, shift=2.0)
        await world.ask(300)
        assert not world.watch.state.warning
    told = [record.getMessage() for record in caplog.records]
    assert sum("has moved" in line and "query.words" in line for line in told) == 1
    assert "is like what" in told[-1]


async def test_another_predictor_is_compared_with_its_own_traffic_only() -> None:
    world = World(window=300)
    await world.ask(300, shift=2.0)
    assert world.watch.state.warning
    world.predictor = Watched("two")
    world.service.use(world.predictor)
    world.watch.look()
    assert (world.watch.state.warning, world.watch.state.requests) == (False, 0)


async def test_what_is_only_tried_out_is_no_traffic() -> None:
    world = World(window=300)
    await world.ask(3, endpoint="/v1/route")
    assert world.watch.state.requests == 0


async def test_readiness_and_metrics_tell_of_it_and_nothing_else_changes() -> None:
    world = World(window=300)
    telemetry = Telemetry(followers=[world.watch])
    app = build_app(world.service, telemetry, drift=world.watch)
    async with client_of(app) as client:
        before = (await client.get("/readyz")).json()["components"]["drift"]
        assert before == {"status": "unknown", "moved": {}}
        await world.ask(300, shift=2.0)
        ready = await client.get("/readyz")
        assert ready.status_code == 200
        drift = ready.json()["components"]["drift"]
        assert drift["status"] == "warning"
        assert drift["moved"]["question"]["name"] == "query.words"
        assert await gauge(client, "m3_drift_warning") == 1.0
        assert await gauge(client, 'm3_drift_psi{kind="question"}') > 0.25
        assert await gauge(client, "m3_drift_images") == 300.0
        assert (await client.post("/v1/route", json=chat())).json()["m3"]["max_regret"] == 0.05


async def gauge(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    [value] = [line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")]
    return float(value)
