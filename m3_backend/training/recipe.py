"""The recipes by which m3-tiny is made: every number of a training run in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from m3_backend.scales import M3_SCALES
from m3_backend.training.worlds import MIX

PATCH = 14


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of the model. The language model outweighs the vision tower, as in the 7B model."""

    vision_width: int = 160
    vision_layers: int = 4
    vision_heads: int = 5
    vision_mlp: int = 640
    text_width: int = 256
    text_layers: int = 6
    text_heads: int = 4
    text_mlp: int = 704
    vocabulary: int = 1024
    max_positions: int = 2048


@dataclass(frozen=True, slots=True)
class Stage:
    """One leg of training.

    Args:
        kind: "dense" trains the vision tower on per-patch labels; "language" the language model
            and the projector on questions, with the Matryoshka loss.
        side: picture side in pixels. Pictures of 168 px show a quarter of the grid at full detail.
        scales: sampling weight of each scale.
        scales_per_step: how many different ones a step draws. M3 trains with all of them every
            time; a few drawn ones estimate the same mean, and the fine ones are most of the cost.
        mix: share of pictures from each of the worlds.
        tower_rate: how fast the vision tower goes on learning from the dense labels in a language
            stage, relative to the rates of the language model; 0 freezes it.
        end_to_end: the tower learns from the answers too. Before the language model can read, there
            is next to nothing in them for the tower; later they teach what no label told.
        decay: share of the steps, at the end, over which the learning rate falls to zero.
        least_detail: smaller writing (pixels) is not asked about in a language stage.
    """

    name: str
    kind: Literal["dense", "language"]
    steps: int
    batch: int
    side: int = 336
    lr: float = 2e-3
    matrix_lr: float = 3e-3
    tower_rate: float = 0.0
    end_to_end: bool = False
    warmup: int = 50
    decay: float = 0.4
    least_detail: float = 0.0
    scales: dict[int, float] = field(default_factory=lambda: dict.fromkeys(M3_SCALES, 1.0))
    scales_per_step: int = 1
    mix: dict[str, float] = field(default_factory=lambda: dict(MIX))


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    stages: tuple[Stage, ...]
    architecture: Architecture = Architecture()
    questions: int = 12
    seed: int = 0


# Glyphs are what a small tower finds hardest, and only reading shows what fine scales are for.
_GLYPHS = {"printing": 0.5, "handwriting": 0.2, "form": 0.08, "receipt": 0.04, "table": 0.04}
_GLYPHS |= {"shapes": 0.08, "bars": 0.04, "photo": 0.02}
# Small print in a quarter picture is beyond any scale: its answers would be noise to learn from.
_LEGIBLE = {"shapes": 0.26, "dominant": 0.06, "handwriting": 0.15, "printing": 0.38, "form": 0.03}
_LEGIBLE |= {"table": 0.02, "bars": 0.06, "lines": 0.02, "pie": 0.01, "photo": 0.01}

# What is written in documents and charts has an order and belongs to something.
_PAPERS = {"printing": 0.36, "handwriting": 0.1, "form": 0.12, "receipt": 0.12, "table": 0.1}
_PAPERS |= {"shapes": 0.08, "bars": 0.08, "lines": 0.02, "pie": 0.01, "photo": 0.01}

# Once the words are understood, what is left to learn is looking up, and small print.
_SKILLS = {"shapes": 0.20, "dominant": 0.04, "handwriting": 0.11, "printing": 0.28, "form": 0.09}
_SKILLS |= {"receipt": 0.09, "table": 0.08, "bars": 0.07, "lines": 0.02, "pie": 0.01, "photo": 0.01}

_QUARTER = {1: 0.05, 9: 0.10, 36: 0.30, 144: 0.55}
# A step at 576 tokens costs as much as four at 144, and teaches the same skills.
_FRUGAL = {1: 0.08, 9: 0.14, 36: 0.25, 144: 0.35, 576: 0.18}
_WHOLE = {1: 0.10, 9: 0.15, 36: 0.20, 144: 0.25, 576: 0.30}

# With an accelerator the finest scale costs what it should: several scales a step, as in M3.
_MATRYOSHKA = {1: 0.10, 9: 0.18, 36: 0.24, 144: 0.28, 576: 0.20}

_ON_A_CPU = (
    Stage("dense", "dense", steps=800, batch=128, side=168, lr=1e-3, matrix_lr=2e-3),
    Stage("glyphs", "dense", steps=700, batch=128, side=168, mix=_GLYPHS),
    Stage(
        "glyphs-again",
        "dense",
        steps=600,
        batch=128,
        side=168,
        warmup=100,
        decay=0.3,
        mix=_GLYPHS,
    ),
    Stage(
        "language-168",
        "language",
        steps=1050,
        batch=64,
        side=168,
        decay=0.15,
        scales=_QUARTER,
        mix=_LEGIBLE,
        tower_rate=0.3,
        least_detail=11,
    ),
    Stage(
        "language-336",
        "language",
        steps=320,
        batch=32,
        lr=1e-3,
        matrix_lr=1.5e-3,
        scales=_WHOLE,
    ),
    Stage("reading-168", "dense", steps=800, batch=128, side=168, mix=_PAPERS),
    Stage(
        "reading-336",
        "dense",
        steps=400,
        batch=32,
        lr=1e-3,
        matrix_lr=1.5e-3,
        mix=_PAPERS,
    ),
    Stage(
        "again-168",
        "language",
        steps=500,
        batch=64,
        side=168,
        decay=0.15,
        scales=_QUARTER,
        mix=_LEGIBLE,
        tower_rate=0.3,
        least_detail=8,
    ),
    Stage(
        "again-336",
        "language",
        steps=600,
        batch=64,
        decay=0.3,
        scales=_FRUGAL,
    ),
    Stage(
        "skills-168",
        "language",
        steps=450,
        batch=64,
        side=168,
        decay=0.15,
        scales=_QUARTER,
        mix=_SKILLS,
        tower_rate=0.3,
        least_detail=9,
    ),
    Stage(
        "skills-336",
        "language",
        steps=1300,
        batch=64,
        decay=0.35,
        scales=_FRUGAL,
    ),
    Stage(
        "whole-336",
        "language",
        steps=720,
        batch=64,
        decay=0.5,
        scales=_FRUGAL,
        tower_rate=0.5,
        end_to_end=True,
    ),
)
# Eight minutes of one accelerator, a day of a CPU.
_WITH_AN_ACCELERATOR = Stage(
    "fast-336",
    "language",
    steps=2016,
    batch=384,
    warmup=100,
    decay=0.5,
    scales=_MATRYOSHKA,
    scales_per_step=2,
    tower_rate=0.5,
    end_to_end=True,
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("cpu", _ON_A_CPU),
        Recipe("accelerator", (*_ON_A_CPU, _WITH_AN_ACCELERATOR)),
        Recipe(
            "smoke",
            (
                Stage("dense", "dense", steps=4, batch=8, side=168, warmup=1),
                Stage(
                    "language",
                    "language",
                    steps=4,
                    batch=8,
                    side=168,
                    warmup=1,
                    scales=_QUARTER,
                    tower_rate=0.3,
                ),
            ),
            Architecture(64, 1, 2, 128, 64, 1, 2, 128),
        ),
    )
}
