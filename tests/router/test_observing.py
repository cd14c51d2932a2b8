"""A predictor that only watches: recorded, never used, and never anybody's problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from predictor.routing_records import decode
from router.config import RouterConfig
from router.http import build_app
from router.observing import Observer
from router.recording import Recording
from router.service import RoutingService
from router.telemetry import Telemetry
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import QUESTION, chat, client_of, image_part
from tests.router.test_recording import Looking, Stream


class Watching:
    """Believes the same of everything, at prices of its own."""

    version = "watching-1"

    def __init__(self, p_success: Sequence[float] = (0.9, 0.9, 0.9, 0.9, 0.9)) -> None:
        self._p_success = tuple(p_success)
        self.asked: list[tuple[int, str]] = []
        self.broken = False

    def expect(self, image: NDArray[np.float32], question: str) -> tuple[float, ...]:
        if self.broken:
            raise RuntimeError("broken")
        self.asked.append((len(image), question))
        return self._p_success

    def threshold(self, max_regret: float) -> float | None:
        return 0.5


class World:
    """An app whose recorder asks an observer."""

    def __init__(self, watching: Watching | None, predictor: Any = None) -> None:
        self.observer = Observer()
        self.observer.use(watching)
        self.stream = Stream()
        self.recording = Recording(
            self.stream.append, ingress="here", buffer=99, observer=self.observer
        )
        self.telemetry = Telemetry(followers=[self.recording])
        self.telemetry.observed.now = lambda: self.observer.observations
        service = RoutingService(FakeBackend(), predictor or Looking(), RouterConfig())
        self.client = client_of(build_app(service, self.telemetry))

    async def asked(self, body: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The response and its record."""
        answer = await self.client.post("/v1/chat/completions", json=body)
        assert self.recording.flush(30.0)
        table, broken = decode(self.stream.taken)
        assert broken == []
        return answer, table.to_pylist()[-1]

    def metrics(self) -> str:
        return self.telemetry.exposition().decode()


@pytest.fixture
def watching() -> Watching:
    return Watching()


async def test_what_it_would_have_decided_is_recorded_and_not_used(watching: Watching) -> None:
    world, alone = World(watching), World(None)
    answer, row = await world.asked(chat())
    without, plain = await alone.asked(chat())
    assert answer.headers["x-m3-scale"] == without.headers["x-m3-scale"] == "36"
    assert not any("watching" in value for value in answer.headers.values())
    assert (row["predictor"], row["observed_predictor"]) == ("fake-1", "watching-1")
    [observed] = row["observed"]
    assert (observed["scale"], observed["reason"], observed["tokens"]) == (1, "predicted", 1)
    assert observed["p_success"] == pytest.approx([0.9] * 5)
    assert observed["p_sufficient"] == 1.0
    assert (plain["observed_predictor"], plain["observed"]) == (None, None)
    assert watching.asked == [(3, QUESTION)]
    assert 'm3_observer_info{version="watching-1"} 1.0' in world.metrics()
    assert 'm3_observed_images_total{observed="1",scale="36"} 1.0' in world.metrics()
    world.recording.close()
    alone.recording.close()


async def test_it_is_bound_by_the_callers_own_limits(watching: Watching) -> None:
    world = World(watching)
    body = chat(image_part(), image_part(detail="high"), QUESTION, m3={"min_scale": 9})
    _, row = await world.asked(body)
    assert [each["scale"] for each in row["observed"]] == [9, 144]
    assert [each["reason"] for each in row["observed"]] == ["floor", "detail_high"]
    _, row = await world.asked(chat(model="m3-144"))
    assert [each["reason"] for each in row["observed"]] == ["forced"]
    world.recording.close()


async def test_where_it_fails_only_its_own_decision_is_missing(watching: Watching) -> None:
    world = World(watching)
    watching.broken = True
    for number in (1, 2):
        answer, row = await world.asked(chat())
        assert answer.status_code == 200
        assert (row["code"], row["observed"]) == ("ok", None)
        assert f"m3_observer_failures_total {number}.0" in world.metrics()
    watching.broken = False
    _, row = await world.asked(chat())
    assert row["observed_predictor"] == "watching-1"
    world.recording.close()


async def test_another_one_may_take_its_place_or_none(watching: Watching) -> None:
    world = World(watching)
    other = Watching((0.1, 0.1, 0.1, 0.1, 0.9))
    other.version = "watching-2"
    world.observer.use(other)
    _, row = await world.asked(chat())
    assert (row["observed_predictor"], row["observed"][0]["scale"]) == ("watching-2", 576)
    world.observer.use(None, refused=True)
    _, row = await world.asked(chat())
    assert row["observed"] is None
    assert "m3_observer_refused 1.0" in world.metrics()
    assert 'm3_observer_info{version="none"} 1.0' in world.metrics()
    world.recording.close()


async def test_without_features_there_is_nothing_to_watch(watching: Watching) -> None:
    """The serving predictor has measured none."""
    world = World(watching, FakePredictor())
    _, row = await world.asked(chat())
    assert row["observed"] is None
    assert watching.asked == []
    world.recording.close()
