"""Procedural pictures with questions about them: what m3-tiny is trained and measured on.

`draw(split, index)` is a pure function: the same arguments give the same picture and questions on
any machine with the same library versions. Splits never share a picture; `shifted` pictures differ
from everything trained on in exactly one named way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3_backend.training.worlds import charts, documents, photos, shapes, writing
from m3_backend.training.worlds.scene import SHIFTS, Question, Scene, Shift

FULL_SIDE = 336

# Pictures drawn per world, in proportion. Reading is what needs the most practice.
_WORLDS: tuple[tuple[Callable[[Scene], None], float], ...] = (
    (shapes.several, 0.20),
    (shapes.dominant, 0.08),
    (writing.handwriting, 0.12),
    (writing.printing, 0.24),
    (documents.receipt, 0.06),
    (documents.form, 0.06),
    (documents.table, 0.06),
    (charts.bars, 0.08),
    (charts.lines, 0.03),
    (charts.pie, 0.03),
    (photos.photograph, 0.04),
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture, its questions and its dense labels ([side, side] indices)."""

    name: str
    image: Image.Image
    questions: tuple[Question, ...]
    classes: NDArray[np.uint8]
    colours: NDArray[np.uint8]
    shift: Shift


def draw(split: str, index: int, side: int = FULL_SIDE, *, seed: int = 0) -> Picture:
    """Picture number `index` of a split.

    Args:
        split: "train", or any held-out name; "shifted" draws pictures unlike those trained on.
        side: pixels; 336 is what the model sees.
    """
    name = f"{split}-{seed}-{index}"
    rng = Random(f"{name}-{side}" if split == "train" else name)
    shift: Shift = rng.choice(SHIFTS) if split == "shifted" else "none"
    scene = Scene(side, rng, shift, held_out_ink=split != "train")
    worlds, weights = zip(*_WORLDS, strict=True)
    rng.choices(worlds, weights)[0](scene)
    if rng.random() < 0.5:
        scene.canvas.noise(rng.uniform(1, 9))
    classes, colours = scene.canvas.labels()
    return Picture(name, scene.canvas.image, tuple(scene.questions), classes, colours, shift)


__all__ = ["FULL_SIDE", "Picture", "Question", "draw"]
