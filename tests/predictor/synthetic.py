"""Pictures drawn for tests, with outcomes of an imagined model that depend on what is in them.

Text is read if its glyphs are large enough against the cells of a scale, discs are counted if the
discs are, the background is known at any scale. Chance enters through a seeded generator only.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from m3_backend.scales import ScaleLadder
from predictor.features import image_vector
from predictor.image_table import ImageTable
from predictor.records import Outcome, OutcomeSource, OutcomeTable, assign_split

LADDER = ScaleLadder()
SOURCE = OutcomeSource("imagined", "1" * 64, "2" * 64, LADDER)

READ = ("What does the text say?", "Read the word.", "Which word is written here?")
COUNT = ("How many circles are there?", "Count the circles.")
GROUND = ("What is the colour of the background?", "Which colour is behind everything?")

_INKS = ("black", "darkred", "navy", "darkgreen")
_GROUNDS = ("white", "khaki", "lightblue", "pink")


@dataclass(frozen=True)
class Scene:
    """What was drawn: sizes in model pixels."""

    glyph: int
    disc: int
    discs: int


def draw(seed: int, side: int = 336) -> tuple[Image.Image, Scene]:
    """A word and some discs on a plain ground."""
    rng = np.random.default_rng(seed)
    scene = Scene(
        glyph=int(rng.integers(8, 90)), disc=int(rng.integers(4, 40)), discs=int(rng.integers(1, 9))
    )
    scale = side / 336
    image = Image.new("RGB", (side, side), str(rng.choice(_GROUNDS)))
    pen = ImageDraw.Draw(image)
    word = "".join(rng.choice(list("abcdehkmnostuvxz"), size=min(5, 300 // scene.glyph)))
    place = float(rng.integers(5, 30)) * scale, float(rng.integers(5, 60)) * scale
    font = ImageFont.load_default(scene.glyph * scale * 1.4)
    pen.text(place, word, fill=str(rng.choice(_INKS)), font=font)
    for _ in range(scene.discs):
        x, y = rng.integers(20, 316), rng.integers(190, 316)
        reach = scene.disc / 2
        box = [(x - reach) * scale, (y - reach) * scale, (x + reach) * scale, (y + reach) * scale]
        pen.ellipse(box, fill=str(rng.choice(_INKS)))
    return image, scene


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chances(scene: Scene, group: str) -> NDArray[np.float64]:
    """Probability of success at each scale of the ladder."""
    cells = np.array([LADDER.side(scale) for scale in LADDER.scales]) / 336
    if group == "ground":
        return np.full(len(cells), 0.97)
    size, needed = (scene.glyph, 0.8) if group == "read" else (scene.disc, 0.6)
    return 0.02 + 0.94 / (1 + np.exp(-6 * (np.log(size * cells) - np.log(needed))))


@cache
def pictures(count: int) -> tuple[tuple[str, Scene, NDArray[np.float32]], ...]:
    """(name, scene, image features) of `count` drawn pictures."""
    drawn = []
    for number in range(count):
        image, scene = draw(number)
        drawn.append((f"{number:05}.png", scene, image_vector(encoded(image))))
    return tuple(drawn)


def image_table(count: int) -> ImageTable:
    names, _, vectors = zip(*pictures(count), strict=True)
    return ImageTable(names, np.stack(vectors))


def outcome_table(count: int, seed: int = 0) -> OutcomeTable:
    """Three questions about each of `count` pictures, with outcomes drawn from `chances`."""
    rng = np.random.default_rng(seed)
    samples = []
    for name, scene, _ in pictures(count):
        for group, phrasings in (("read", READ), ("count", COUNT), ("ground", GROUND)):
            question = str(rng.choice(phrasings))
            samples.append((name, group, question, rng.random(5) < chances(scene, group)))
    names, groups, questions, success = zip(*samples, strict=True)
    correct = np.array(success, dtype=np.float64)
    agrees = np.where(correct == correct[:, -1:], 1.0, 0.0)
    return OutcomeTable(
        source=SOURCE,
        sample=_strings([f"{at:06}" for at in range(len(samples))]),
        image=_strings(names),
        group=_strings(groups),
        split=_strings([assign_split(name) for name in names]),
        question=_strings(questions),
        correct=correct,
        agrees=agrees,
        reference_logprob=np.full(agrees.shape, np.nan),
        image_tokens=np.tile(LADDER.scales, (len(samples), 1)),
        ms=np.tile([5.0, 5.2, 6.0, 9.0, 20.0], (len(samples), 1)),
    )


def outcome_rows(table: OutcomeTable) -> list[Outcome]:
    """The table as rows, as `label` would write them."""
    return [
        Outcome(
            sample=table.sample[row],
            image=table.image[row],
            group=table.group[row],
            split=table.split[row],
            question=table.question[row],
            scale=scale,
            answer="",
            correct=float(table.correct[row, column]),
            agrees=float(table.agrees[row, column]),
            reference_logprob=None,
            image_tokens=int(table.image_tokens[row, column]),
            ms=float(table.ms[row, column]),
        )
        for row in range(len(table))
        for column, scale in enumerate(table.source.ladder.scales)
    ]


def _strings(values: Sequence[str]) -> NDArray[np.object_]:
    return np.array(values, dtype=object)
