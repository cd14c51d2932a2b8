"""Things to read: handwritten digits, printed words and numbers, on clean and cluttered grounds."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from m3_backend.training.worlds import lettering
from m3_backend.training.worlds.palette import readable_on
from m3_backend.training.worlds.scene import Scene
from m3_backend.training.worlds.shapes import ask_background

# The last quarter of scikit-learn's digits is never trained on. Neighbours there share a writer.
_HELD_OUT_FROM = 1350


@lru_cache(maxsize=1)
def _ink() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels


def _handwritten_digit(scene: Scene, height: int) -> tuple[Image.Image, str]:
    images, labels = _ink()
    low, high = (_HELD_OUT_FROM, len(images)) if scene.held_out_ink else (0, _HELD_OUT_FROM)
    index = scene.rng.randrange(low, high)
    mask = Image.fromarray(images[index]).resize(
        (round(height * 0.8), height), Image.Resampling.BICUBIC
    )
    return mask.point(lambda v: min(255, max(0, int((v - 40) * 1.7)))), str(labels[index])


def handwriting(scene: Scene) -> None:
    rng, side = scene.rng, scene.side
    height = round(scene.log_uniform(14, min(170, side * 0.85)))
    step = height * 0.85
    count = rng.randint(1, max(1, min(4, int((side - 4) / step))))
    x = rng.uniform(2, max(2.0, side - count * step - 2))
    y = rng.uniform(1, max(1.0, side - height - 2))
    colour = rng.choice(readable_on(scene.canvas.ground))
    if rng.random() < 0.25:
        scene.canvas.clutter(rng.randint(2, 10))
    digits = ""
    for i in range(count):
        mask, digit = _handwritten_digit(scene, height)
        scene.canvas.stamp(
            mask, round(x + i * step), round(y), colour, f"handwritten {digit}", i + 1
        )
        digits += digit
    ask_background(scene)
    scene.ask("handwriting", "handwritten", digits, height)


def print_somewhere(
    scene: Scene, text: str, height: int, colour: str, top: float, bottom: float
) -> bool:
    """Writes `text` at a random place between two heights. False if it does not fit."""
    font = scene.font()
    width = lettering.width_of(font, height, text)
    if width > scene.side - 4 or height > bottom - top - 2:
        return False
    x = scene.rng.uniform(2, scene.side - 2 - width)
    y = scene.rng.uniform(top + 1, bottom - height - 1)
    scene.canvas.text(x, y, text, font, height, colour)
    return True


def text_of_height(scene: Scene, height: int) -> tuple[str, str]:
    """Family and text, short enough for the picture at that height."""
    longest = max(1, int((scene.side - 6) / (height * 1.15)))
    if scene.rng.random() < 0.5:
        return "words", lettering.word(scene.rng, longest)
    return "numbers", lettering.number(scene.rng, longest)


def printing(scene: Scene) -> None:
    """One to four texts in different colours, of any height from 8 to 120 pixels."""
    rng, side = scene.rng, scene.side
    cluttered = rng.random() < 0.3
    if cluttered:
        scene.canvas.clutter(rng.randint(5, 30))
    if scene.shift == "density":
        scene.canvas.clutter(rng.randint(50, 80))
    readable = readable_on(scene.canvas.ground)
    lines = min(rng.choices((1, 2, 3, 4), (0.45, 0.3, 0.15, 0.1))[0], len(readable))
    colours = rng.sample(readable, lines)
    printed = []
    for i in range(lines):
        height = round(scene.log_uniform(8, min(120, side * 0.5 / lines)))
        family, text = text_of_height(scene, height)
        if print_somewhere(
            scene, text, height, colours[i], i * side / lines, (i + 1) * side / lines
        ):
            printed.append((family, text, height, colours[i]))
    ask_background(scene)
    if len(printed) == 1:
        family, text, height, colour = printed[0]
        scene.ask(family, "read_text", text, height)
        scene.ask("text_colour", "text_colour", colour, height)
    for family, text, height, colour in printed if len(printed) > 1 else ():
        scene.ask(family, "read_coloured", text, height, colour=colour)
