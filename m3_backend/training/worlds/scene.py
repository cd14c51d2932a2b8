"""What a drawn picture comes with."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from m3_backend.training.worlds import lettering
from m3_backend.training.worlds.canvas import Canvas
from m3_backend.training.worlds.palette import NAMES
from m3_backend.training.worlds.phrasings import phrase

Shift = Literal["none", "phrasing", "font", "palette", "density"]
SHIFTS: tuple[Shift, ...] = ("phrasing", "font", "palette", "density")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a picture.

    Args:
        family: the kind of question.
        text, answer: as the user would write them.
        detail_px: size in pixels of what must be made out, in the model's 336-pixel view.
    """

    family: str
    text: str
    answer: str
    detail_px: float


class Scene:
    """A picture in the making: a canvas, the style it is drawn in, and the questions asked so far.

    Args:
        side: pixels of the square picture.
        shift: which one thing, if any, differs from everything the model is trained on.
        held_out_ink: use the handwritten digits that are kept from training.
        rounds: how many times over to ask what can be asked in many ways. Looking at a picture is
            most of the work of learning from it, so that more questions teach more for the same.
        hurried: some questions are asked as people type in a hurry.
    """

    def __init__(
        self,
        side: int,
        rng: Random,
        shift: Shift = "none",
        held_out_ink: bool = False,
        rounds: int = 1,
        hurried: bool = False,
    ) -> None:
        self.side = side
        self.rng = rng
        self.shift = shift
        self.held_out_ink = held_out_ink
        self.rounds = rounds
        self.hurried = hurried
        self.questions: list[Question] = []
        self.canvas = self.fresh_canvas(rng.choice(NAMES))

    def fresh_canvas(self, ground: str) -> Canvas:
        """Starts the picture over on another background."""
        self.canvas = Canvas(self.side, ground, self.rng, self.shift == "palette")
        return self.canvas

    def font(self) -> str:
        fonts = lettering.SHIFTED_FONTS if self.shift == "font" else lettering.FONTS
        return self.rng.choice(fonts)

    def log_uniform(self, low: float, high: float) -> float:
        """Sizes spread evenly over octaves, so that every scale is the right one for some."""
        return float(low * (high / low) ** self.rng.random())

    def ask(self, family: str, kind: str, answer: str, detail_px: float, **words: str) -> None:
        """Adds a question in one of the phrasings of `kind`."""
        text = phrase(kind, self.rng, self.shift == "phrasing", self.hurried, **words)
        self.questions.append(Question(family, text, answer, detail_px))
