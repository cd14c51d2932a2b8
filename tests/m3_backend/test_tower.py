"""The vision tower for many threads: who shares a pass, and that it makes no difference to them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from m3_backend.checkpoint import Checkpoint
from m3_backend.errors import InvalidImageError
from m3_backend.feature_cache import Encoded
from m3_backend.messages import ImageInput, digest_of
from m3_backend.runner import ModelRunner
from m3_backend.tower import VisionTower
from tests.m3_backend.support import picture

BROKEN = ImageInput(b"GIF89a", digest_of(b"GIF89a"), 10, 10)


class Held:
    """A tower whose first pass waits until the others stand in line."""

    def __init__(self, checkpoint: Checkpoint, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runner = ModelRunner(checkpoint, tokens=1)
        self.passes: list[int] = []
        self.most_tiles = 1000
        self._features = self.runner.features
        self._begun, self._release = threading.Event(), threading.Event()
        monkeypatch.setattr(self.runner, "features", self._watched)
        self.tower = VisionTower(self.runner, most)
        self._threads = ThreadPoolExecutor(8)

    def _watched(self, pixels: Tensor) -> Tensor:
        self.passes.append(len(pixels))
        if not self._begun.is_set():
            self._begun.set()
            assert self._release.wait(30)
        if len(pixels) > self.most_tiles:
            raise RuntimeError("no memory")
        return self._features(pixels)

    def encode(self, images: list[ImageInput]) -> list[Future[Encoded]]:
        """The first alone, the others in their order behind it."""
        first = self._threads.submit(self.tower.encode, images[0])
        assert self._begun.wait(30)
        others = []
        for image in images[1:]:
            others.append(self._threads.submit(self.tower.encode, image))
            while len(self.tower._line) < sum(not other.done() for other in others):
                time.sleep(0.001)
        self._release.set()
        return [first, *others]

    def close(self) -> None:
        self._release.set()
        self._threads.shutdown()
        self.tower.close()


@pytest.fixture
def held(llava15: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(llava15, 3, monkeypatch)
    yield held
    held.close()


def test_pictures_that_wait_together_are_encoded_together_as_if_alone(held: Held) -> None:
    images = [picture(seed) for seed in range(7)]
    encoded = [future.result(30) for future in held.encode(images)]
    assert held.passes == [1, 3, 3]
    for image, one in zip(images, encoded, strict=True):
        alone = held.runner.encode(image)
        assert one.features.shape == alone.shape and one.ms > 0
        torch.testing.assert_close(one.features, alone)
        assert one.features.untyped_storage().nbytes() == alone.nbytes  # and not that of all


def test_tiled_pictures_share_a_pass(
    llava_next: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(llava_next, 4, monkeypatch)
    images = [picture(0), picture(1, (120, 30)), picture(2, (30, 120)), picture(3, (500, 500))]
    encoded = [future.result(30) for future in held.encode(images)]
    held.close()
    assert len(held.passes) == 2
    assert len({len(one.features) for one in encoded}) > 1
    for image, one in zip(images, encoded, strict=True):
        torch.testing.assert_close(one.features, held.runner.encode(image))


def test_a_picture_that_cannot_be_read_keeps_nobody_waiting(held: Held) -> None:
    first, broken, other = held.encode([picture(0), BROKEN, picture(1)])
    with pytest.raises(InvalidImageError):
        broken.result(30)
    assert len(first.result(30).features) == len(other.result(30).features) == 1
    assert held.passes == [1, 1]


def test_a_pass_that_fails_is_tried_picture_by_picture(held: Held) -> None:
    held.most_tiles = 2
    images = [picture(seed) for seed in range(4)]
    encoded = [future.result(30) for future in held.encode(images)]
    assert held.passes == [1, 3, 1, 1, 1]
    for image, one in zip(images, encoded, strict=True):
        torch.testing.assert_close(one.features, held.runner.encode(image))


def test_a_tower_that_is_lost_tells_everyone_and_is_tried_again(held: Held) -> None:
    held.most_tiles = 0
    for future in held.encode([picture(seed) for seed in range(6)]):
        with pytest.raises(RuntimeError, match="no memory"):
            future.result(30)
    held.most_tiles = 1
    assert len(held.tower.encode(picture(9)).features) == 1


def test_several_passes_at_once_share_one_line(
    llava15: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = ModelRunner(llava15, tokens=1)
    features, both = runner.features, threading.Barrier(2, timeout=30)
    passes: list[int] = []

    def watched(pixels: Tensor) -> Tensor:
        passes.append(len(pixels))
        both.wait()  # nobody gets through alone
        return features(pixels)

    monkeypatch.setattr(runner, "features", watched)
    tower = VisionTower(runner, most=1, passes=2)
    images = [picture(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        encoded = list(threads.map(tower.encode, images))
    tower.close()
    assert passes == [1] * 8
    for image, one in zip(images, encoded, strict=True):
        torch.testing.assert_close(one.features, features(runner.pixels(image)))
