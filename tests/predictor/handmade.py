"""A dozen samples whose every figure can be worked out on paper.

Pictures a to d are familiar and carry a `read` (1) and a `count` (2) question each, e and f are
shifted, the question about g failed. Right at 1, 4 and 16 tokens per grid:

    a1 - x x    b1 - - x    c1 - - -    d1 - x -    e1 - - x    f1 - x x
    a2 x x x    b2 x - x    c2 x x -    d2 - - x    e2 x x x

Picture a is cut into tiles: it takes twice the tokens.
"""

from __future__ import annotations

from pathlib import Path

from m3_backend.costs import ModelShape
from m3_backend.scales import ScaleLadder
from predictor.null_table import NullOutcome, null_table_beside, write_null_table
from predictor.records import Outcome, OutcomeSource, Split, write_outcomes

SCALES = (1, 4, 16)
SOURCE = OutcomeSource("by-hand", "1" * 64, "2" * 64, ScaleLadder(SCALES, 4))
SHAPE = ModelShape(
    layers=1, hidden=2, intermediate=3, heads=1, kv_heads=1, head_dim=2, vocabulary=5
)
MS = (5.0, 6.0, 10.0)
SPLIT_OF: dict[str, Split] = {"a": "train", "b": "test", "c": "test", "d": "calibrate"}

# Graded correctness (right from 0.5 on), agreement with the finest (from 0.9 on); coarse to fine.
ANSWERS = {
    "a1": ((0, 0.6, 1), (0, 1, 1)),
    "a2": ((1, 1, 1), (1, 1, 1)),
    "b1": ((0, 0, 1), (0, 0, 1)),
    "b2": ((1, 0, 1), (1, 0, 1)),
    "c1": ((0.3, 0, 0), (0.95, 0.8, 1)),
    "c2": ((1, 1, 0), (0, 0, 1)),
    "d1": ((0, 1, 0), (1, 0, 1)),
    "d2": ((0, 0, 1), (0, 0, 1)),
    "e1": ((0, 0, 1), (0, 0, 1)),
    "e2": ((1, 1, 1), (1, 1, 1)),
    "f1": ((0, 1, 1), (0, 1, 1)),
}
# Three runs at 4 tokens per grid.
RUNS = {"a1": (1, 0, 1), "b1": (0, 0, 0), "b2": (0, 1, 0), "c2": (1, 1, 1), "e1": (0, 1, 1)}


def _group(sample: str) -> str:
    return "read" if sample[1] == "1" else "count"


def outcomes(*, ground_truth: bool = True) -> list[Outcome]:
    rows = [
        Outcome(
            sample=sample,
            image=sample[0],
            group=_group(sample),
            split=SPLIT_OF.get(sample[0], "shifted"),
            question="?",
            scale=scale,
            answer="",
            correct=correct[at] if ground_truth else None,
            agrees=agrees[at],
            reference_logprob=None,
            image_tokens=scale * (2 if sample[0] == "a" else 1),
            ms=MS[at],
        )
        for sample, (correct, agrees) in ANSWERS.items()
        for at, scale in enumerate(SCALES)
    ]
    failed = Outcome("g1", "g", "read", "test", "?", 1, "", None, None, None, 0, 0.0, "No picture.")
    return [*rows, failed]


def write(path: Path) -> Path:
    """The table and its noise null beside it."""
    write_outcomes(path, outcomes(), SOURCE)
    runs = [
        NullOutcome(
            sample, sample[0], _group(sample), SPLIT_OF.get(sample[0], "shifted"), run, "", right
        )
        for sample, answers in RUNS.items()
        for run, right in enumerate(answers)
    ]
    write_null_table(null_table_beside(path), runs, SOURCE, scale=4)
    return path
