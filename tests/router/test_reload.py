"""A predictor that is replaced under way: when it is read, when it is refused, who uses which."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest

from m3_backend.messages import ImageInput
from predictor.errors import ArtifactError
from predictor.predictor import Prediction
from router import reload
from router.config import RouterConfig
from router.http import build_app
from router.reload import PredictorWatch
from router.service import RoutingService
from router.trace import Trace
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import chat, client_of, image_part, picture


class Versioned(FakePredictor):
    def __init__(self, version: str, **options: Any) -> None:
        super().__init__(**options)
        self.version = version


class Folder:
    """Holds a version, or something broken; `stamp` changes when it does."""

    def __init__(self) -> None:
        self.content: str | Exception = "one"
        self.stamp: int | None = 0
        self.reads = 0

    def put(self, content: str | Exception) -> None:
        self.content, self.stamp = content, (self.stamp or 0) + 1

    def signature(self) -> object:
        if self.stamp is None:
            raise FileNotFoundError
        return self.stamp

    def read(self) -> FakePredictor | None:
        self.reads += 1
        if self.content == "":
            return None
        if isinstance(self.content, Exception):
            raise self.content
        return Versioned(self.content)


@pytest.fixture
def folder() -> Folder:
    return Folder()


@pytest.fixture
def watch(folder: Folder) -> PredictorWatch:
    return PredictorWatch(folder.read, folder.signature)


async def looks(watch: PredictorWatch, count: int = 2) -> tuple[str, bool]:
    for _ in range(count):
        await watch.look()
    return watch.version or "none", watch.refused


async def test_there_may_be_none_yet_and_none_any_more(folder: Folder) -> None:
    folder.content = ""
    watch = PredictorWatch(folder.read, folder.signature)
    assert await looks(watch) == ("none", False)
    folder.put("one")
    assert await looks(watch) == ("one", False)
    folder.put("")
    assert await looks(watch) == ("none", False)


async def test_what_is_known_to_be_broken_is_begun_without(folder: Folder) -> None:
    folder.content = ArtifactError("broken")
    shipped = Versioned("shipped")
    watch = PredictorWatch(folder.read, folder.signature, instead=lambda: shipped)
    assert await looks(watch) == ("shipped", True)
    folder.put("two")
    assert await looks(watch) == ("two", False)


def test_nothing_starts_with_one_that_cannot_be_used(folder: Folder) -> None:
    folder.content = ArtifactError("broken")
    with pytest.raises(ArtifactError):
        PredictorWatch(folder.read, folder.signature)


async def test_what_has_not_changed_is_not_read_again(
    folder: Folder, watch: PredictorWatch
) -> None:
    assert await looks(watch, 5) == ("one", False)
    assert folder.reads == 1


async def test_a_new_one_is_taken_over_once_it_is_complete(
    folder: Folder, watch: PredictorWatch
) -> None:
    folder.put("two")
    assert await looks(watch, 1) == ("one", False)
    folder.put("two")  # still being written
    assert await looks(watch, 1) == ("one", False)
    assert folder.reads == 1
    assert await looks(watch, 1) == ("two", False)
    assert folder.reads == 2


@pytest.mark.parametrize(
    "fault", [ArtifactError("another model"), MemoryError(), ValueError("nobody foresaw this")]
)
async def test_what_cannot_be_used_changes_nothing_and_is_said_once(
    fault: Exception, folder: Folder, watch: PredictorWatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.put(fault)
    with caplog.at_level(logging.WARNING, "m3_router.predictor"):
        assert await looks(watch, 6) == ("one", True)
    assert folder.reads == 2
    [said] = caplog.messages
    assert "one stays" in said
    folder.put("two")
    assert await looks(watch) == ("two", False)


async def test_one_that_is_gone_stays_in_force_and_may_come_back(
    folder: Folder, watch: PredictorWatch
) -> None:
    before = watch.predictor
    folder.content, folder.stamp = ArtifactError("There is no predictor"), None
    assert await looks(watch) == ("one", True)
    folder.put("one")
    assert await looks(watch) == ("one", False)
    assert watch.predictor is before  # with what it remembers of images


async def test_the_service_says_which_one_is_in_force(
    folder: Folder, watch: PredictorWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over HTTP, with the background task of a real application."""
    monkeypatch.setattr(reload, "CHECK_EVERY_S", 0.0)
    service = RoutingService(FakeBackend(), watch.predictor, RouterConfig())
    app = build_app(service, background=lambda: watch.keep(service))
    async with app.router.lifespan_context(app), client_of(app) as client, asyncio.timeout(30):

        async def told(version: str, refused: bool) -> None:
            while True:
                await asyncio.sleep(0)  # nothing else here lets the background go on
                ready = await client.get("/readyz")
                assert ready.status_code == 200
                told = ready.json()["components"]["predictor"]
                if (told["version"], told["refused"]) == (version, refused):
                    break
            gauge = f"m3_predictor_refused {float(refused)}"
            while gauge not in (await client.get("/metrics")).text:
                await asyncio.sleep(0)
            answer = await client.post("/v1/chat/completions", json=chat())
            assert answer.headers["x-m3-predictor"] == version

        await told("one", False)
        folder.put("two")
        await told("two", False)
        folder.put(ArtifactError("broken"))
        await told("two", True)
        folder.put("three")
        await told("three", False)


async def test_a_request_is_decided_by_one_predictor_throughout() -> None:
    """It is replaced between two images of one request."""
    half, replaced = threading.Event(), threading.Event()

    class Slow(Versioned):
        def predict(self, image: ImageInput, question: str, salt: str = "") -> Prediction:
            prediction = super().predict(image, question, salt)
            half.set()
            assert replaced.wait(30)
            return prediction

    # The new one would choose the coarsest scale, and certifies nothing.
    old, new = Slow("old"), Versioned("new", p_success=(0.9,) * 5, thresholds=())
    service = RoutingService(FakeBackend(), old, RouterConfig())
    body = json.dumps(chat(image_part(picture()), image_part(picture("JPEG")), "What?")).encode()
    trace = Trace("id")
    planning = asyncio.ensure_future(service.plan(body, trace))
    await asyncio.to_thread(half.wait, 30)
    service.use(new)
    replaced.set()
    plan = await planning
    assert (plan.predictor, trace.predictor) == ("old", "old")
    assert (len(old.asked), len(new.asked)) == (2, 0)
    assert [image.reason for image in plan.decision.images] == ["predicted"] * 2
    assert (await service.plan(body, Trace("id"))).predictor == "new"
