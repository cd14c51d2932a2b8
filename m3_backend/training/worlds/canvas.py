"""A picture drawn together with its dense labels: what stands at each pixel, in which colour, and
what belongs together.

The labels supervise the vision tower directly (facts of training from scratch: through the language
model's loss alone a small tower learns next to nothing in hours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from m3_backend.training.worlds import lettering
from m3_backend.training.worlds.palette import NAMES, Rgb, tint

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart")

ITEMS = tuple(
    """
    tea milk bread rice soap salt fish eggs ham jam corn beans oil pen book lamp rope nails
    glue tape
    """.split()
)
FIELDS = tuple(
    """
    name city date phone code room unit plan
    """.split()
)
MOST_ROWS, MOST_COLUMNS = 9, 5

_NOTHING = ("nothing",)
_INKS = tuple(f"handwritten {d}" for d in lettering.DIGITS)
_GLYPHS = tuple(f"printed {g}" for g in lettering.GLYPHS)
_REST = ("bar", "line", "slice", "rule", "clutter", "temple", "flower")
CLASSES = _NOTHING + SHAPES + _INKS + _GLYPHS + _REST
CLASS = {name: i for i, name in enumerate(CLASSES)}
# What a value in a document is the value of: by the row's name or number, and by the column.
ROWS = _NOTHING + ITEMS + FIELDS + ("total", *(f"row {n + 1}" for n in range(MOST_ROWS)))
ROW = {name: i for i, name in enumerate(ROWS)}
MOST_ORDER = 20  # of glyphs in a text; values of bars come in as many steps
COLOUR = {name: i for i, name in enumerate(NAMES)}
NO_COLOUR = len(NAMES)  # photographs and noise: not supervised

Point = tuple[float, float]
_MIDDLE = 12  # pixels marked in the middle of a shape, about a patch


@dataclass(frozen=True, slots=True)
class Labels:
    """Dense labels, each uint8 [side, side].

    Args:
        classes: what stands at a pixel, of CLASSES.
        colours: in which colour; NO_COLOUR where nobody can say.
        orders: what has to be counted to read it: the number of a glyph within its text, from 1;
            the value of a bar in twentieths of its axis; 1 in the middle of a shape, and on a line
            that falls; 2 on one that rises.
        rows, columns: what a value in a document belongs to, of ROWS and from 1.
    """

    classes: NDArray[np.uint8]
    colours: NDArray[np.uint8]
    orders: NDArray[np.uint8]
    rows: NDArray[np.uint8]
    columns: NDArray[np.uint8]


class Canvas:
    """A square picture of `side` pixels and its label maps.

    Args:
        side: pixels; 336 for the model's full view, 168 for cheap early training.
        ground: name of the background colour.
        shifted_palette: draw with tints that are never trained on.
    """

    def __init__(self, side: int, ground: str, rng: Random, shifted_palette: bool = False) -> None:
        self.side = side
        self.ground = ground
        self.rng = rng
        self._shifted = shifted_palette
        self.image = Image.new("RGB", (side, side), self.rgb(ground))
        self._classes = Image.new("L", (side, side), 0)
        self._colours = Image.new("L", (side, side), COLOUR[ground])
        self._orders, self._rows, self._columns = (
            Image.new("L", (side, side), 0) for _ in range(3)
        )
        self._draw = ImageDraw.Draw(self.image)
        self._draw_class = ImageDraw.Draw(self._classes)
        self._draw_colour = ImageDraw.Draw(self._colours)
        self._draw_order = ImageDraw.Draw(self._orders)
        self._draw_row = ImageDraw.Draw(self._rows)
        self._draw_column = ImageDraw.Draw(self._columns)

    def rgb(self, colour: str) -> Rgb:
        return tint(colour, self.rng, self._shifted)

    def labels(self) -> Labels:
        """The labels of what has been drawn so far."""
        return Labels(
            np.asarray(self._classes),
            np.asarray(self._colours),
            np.asarray(self._orders),
            np.asarray(self._rows),
            np.asarray(self._columns),
        )

    def ellipse(self, box: Sequence[float], colour: str, what: str, rgb: Rgb | None = None) -> None:
        self._draw.ellipse(box, fill=rgb or self.rgb(colour))
        self._draw_class.ellipse(box, fill=CLASS[what])
        self._draw_colour.ellipse(box, fill=COLOUR[colour])

    def rectangle(
        self, box: Sequence[float], colour: str, what: str, rgb: Rgb | None = None, order: int = 0
    ) -> None:
        self._draw_order.rectangle(box, fill=order)
        self._draw.rectangle(box, fill=rgb or self.rgb(colour))
        self._draw_class.rectangle(box, fill=CLASS[what])
        self._draw_colour.rectangle(box, fill=COLOUR[colour])

    def polygon(
        self, points: Sequence[Point], colour: str, what: str, rgb: Rgb | None = None
    ) -> None:
        self._draw.polygon(points, fill=rgb or self.rgb(colour))
        self._draw_class.polygon(points, fill=CLASS[what])
        self._draw_colour.polygon(points, fill=COLOUR[colour])

    def slice(self, box: Sequence[float], start: float, end: float, colour: str) -> None:
        self._draw.pieslice(box, start, end, fill=self.rgb(colour))
        self._draw_class.pieslice(box, start, end, fill=CLASS["slice"])
        self._draw_colour.pieslice(box, start, end, fill=COLOUR[colour])

    def line(
        self,
        points: Sequence[Point],
        colour: str,
        width: int,
        what: str = "rule",
        order: int = 0,
    ) -> None:
        self._draw_order.line(points, fill=order, width=width)
        self._draw.line(points, fill=self.rgb(colour), width=width)
        self._draw_class.line(points, fill=CLASS[what], width=width)
        self._draw_colour.line(points, fill=COLOUR[colour], width=width)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        font: str,
        height: int,
        colour: str,
        row: str = "nothing",
        column: int = 0,
    ) -> float:
        """Writes `text`, capitals `height` pixels high with tops at y. Gives the x of its end.

        `row` and `column` say what it is the value of, in a document.
        """
        face = lettering.font_of_height(font, height)
        size = int(face.size)
        rgb = self.rgb(colour)
        for order, char in enumerate(text, start=1):
            step = lettering.advance(font, size, char)
            self._draw.text((x, y + height), char, font=face, fill=rgb, anchor="ls")
            if char != " ":
                box = (round(x), round(y), round(x + step) - 1, round(y + height))
                kind = CLASS.get(f"printed {char}", CLASS["clutter"])
                self._draw_class.rectangle(box, fill=kind)
                self._draw_colour.rectangle(box, fill=COLOUR[colour])
                self._draw_order.rectangle(box, fill=min(order, MOST_ORDER))
                self._draw_row.rectangle(box, fill=ROW[row])
                self._draw_column.rectangle(box, fill=column)
            x += step
        return x

    def stamp(
        self, mask: Image.Image, x: int, y: int, colour: str, what: str, order: int = 0
    ) -> None:
        """Pastes `colour` through a grey mask; the label covers the mask's whole box."""
        self.image.paste(self.rgb(colour), (x, y), mask)
        box = (x, y, x + mask.width - 1, y + mask.height - 1)
        self._draw_class.rectangle(box, fill=CLASS[what])
        self._draw_colour.rectangle(box, fill=COLOUR[colour])
        self._draw_order.rectangle(box, fill=order)

    def photograph(self, photo: Image.Image, what: str) -> None:
        """Fills the whole canvas with a picture of the same size."""
        self.image.paste(photo, (0, 0))
        self._classes.paste(CLASS[what], (0, 0, self.side, self.side))
        self._colours.paste(NO_COLOUR, (0, 0, self.side, self.side))

    def shape(self, shape: str, x: float, y: float, size: float, colour: str) -> None:
        """One of SHAPES in the box of `size` pixels whose corner is at (x, y)."""
        box = (x, y, x + size, y + size)
        rgb = self.rgb(colour)  # once, so that a shape of several parts shows no seams
        if shape == "circle":
            self.ellipse(box, colour, shape, rgb)
        elif shape == "ring":
            self.ellipse(box, colour, shape, rgb)
            hole = size * 0.28
            inner = (x + hole, y + hole, x + size - hole, y + size - hole)
            self._draw.ellipse(
                inner, fill=self.image.getpixel((int(max(x - 1, 0)), int(max(y - 1, 0))))
            )
            self._draw_colour.ellipse(inner, fill=COLOUR[self.ground])
        elif shape == "square":
            self.rectangle(box, colour, shape, rgb)
        elif shape == "heart":
            half = size / 2
            self.ellipse((x, y, x + half + 1, y + half + 1), colour, shape, rgb)
            self.ellipse((x + half - 1, y, x + size, y + half + 1), colour, shape, rgb)
            corners = [
                (x + size * 0.03, y + size * 0.36),
                (x + size * 0.97, y + size * 0.36),
                (x + half, y + size),
            ]
            self.polygon(corners, colour, shape, rgb)
        else:
            outline = [(x + size * u, y + size * v) for u, v in _OUTLINES[shape]]
            self.polygon(outline, colour, shape, rgb)
        middle = (size - min(size, _MIDDLE)) / 2
        self._draw_order.rectangle(box, fill=0)
        self._draw_order.rectangle(
            (x + middle, y + middle, x + size - middle, y + size - middle), fill=1
        )

    def clutter(self, amount: int) -> None:
        """Thin strokes and specks that carry no meaning."""
        rng, side = self.rng, self.side
        for _ in range(amount):
            colour = rng.choice(NAMES)
            x, y = rng.uniform(0, side), rng.uniform(0, side)
            if rng.random() < 0.6:
                end = (x + rng.uniform(-60, 60), y + rng.uniform(-60, 60))
                self.line([(x, y), end], colour, rng.randint(1, 2), "clutter")
            else:
                size = rng.uniform(2, 6)
                self.ellipse((x, y, x + size, y + size), colour, "clutter")

    def noise(self, level: float) -> None:
        """Sensor noise with a standard deviation of `level` grey values, on the picture only."""
        generator = np.random.default_rng(self.rng.getrandbits(63))
        grain = generator.normal(0.0, level, (self.side, self.side, 1)).astype(np.float32)
        noisy = np.asarray(self.image, dtype=np.float32) + grain
        self.image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        self._draw = ImageDraw.Draw(self.image)


def _star() -> tuple[Point, ...]:
    angles = np.pi * (np.arange(10) / 5 - 0.5)
    radii = np.where(np.arange(10) % 2 == 0, 0.52, 0.21)
    return tuple(zip(0.5 + radii * np.cos(angles), 0.53 + radii * np.sin(angles), strict=True))


_A, _B = 0.33, 0.67
_OUTLINES: dict[str, tuple[Point, ...]] = {
    "triangle": ((0.5, 0.0), (0.0, 1.0), (1.0, 1.0)),
    "diamond": ((0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)),
    "cross": (
        (_A, 0), (_B, 0), (_B, _A), (1, _A), (1, _B), (_B, _B),
        (_B, 1), (_A, 1), (_A, _B), (0, _B), (0, _A), (_A, _A),
    ),
    "star": _star(),
}  # fmt: skip
