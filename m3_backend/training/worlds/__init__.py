"""Procedural pictures with questions about them: what m3-tiny is trained and measured on.

`draw(split, index)` is a pure function: the same arguments give the same picture and questions on
any machine with the same library versions. Splits never share a picture; `shifted` pictures differ
from everything trained on in exactly one named way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from PIL import Image

from m3_backend.training.worlds import charts, documents, photos, shapes, writing
from m3_backend.training.worlds.canvas import Labels
from m3_backend.training.worlds.scene import SHIFTS, Question, Scene, Shift

FULL_SIDE = 336
_ROUNDS_OF_TRAINING = 4

WORLDS: dict[str, Callable[[Scene], None]] = {
    "shapes": shapes.several,
    "dominant": shapes.dominant,
    "handwriting": writing.handwriting,
    "printing": writing.printing,
    "receipt": documents.receipt,
    "form": documents.form,
    "table": documents.table,
    "bars": charts.bars,
    "lines": charts.lines,
    "pie": charts.pie,
    "photo": photos.photograph,
}
# Share of pictures per world. Reading is what needs the most practice.
MIX = dict(
    zip(WORLDS, (0.13, 0.06, 0.12, 0.28, 0.07, 0.07, 0.06, 0.10, 0.03, 0.03, 0.05), strict=True)
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture, its questions and its dense labels."""

    name: str
    image: Image.Image
    questions: tuple[Question, ...]
    labels: Labels
    shift: Shift


def draw(
    split: str,
    index: int,
    side: int = FULL_SIDE,
    *,
    seed: int = 0,
    mix: Mapping[str, float] = MIX,
) -> Picture:
    """Picture number `index` of a split.

    Args:
        split: "train", or any held-out name; "shifted" draws pictures unlike those trained on.
        side: pixels; 336 is what the model sees.
        mix: share of pictures from each of WORLDS.
    """
    name = f"{split}-{seed}-{index}"
    rng = Random(f"{name}-{side}" if split == "train" else name)
    shift: Shift = rng.choice(SHIFTS) if split == "shifted" else "none"
    scene = Scene(
        side,
        rng,
        shift,
        held_out_ink=split != "train",
        rounds=_ROUNDS_OF_TRAINING if split == "train" else 1,
        hurried=split == "train",
    )
    world = rng.choices(list(mix), list(mix.values()))[0]
    WORLDS[world](scene)
    if rng.random() < 0.5:
        scene.canvas.noise(rng.uniform(1, 9))
    questions = tuple(dict.fromkeys(scene.questions))
    return Picture(name, scene.canvas.image, questions, scene.canvas.labels(), shift)


__all__ = ["FULL_SIDE", "MIX", "WORLDS", "Picture", "Question", "draw"]
