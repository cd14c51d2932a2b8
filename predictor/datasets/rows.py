"""What a question about a picture is, and what is said about one that is broken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from predictor.metrics import Metric
from predictor.records import Split


@dataclass(frozen=True, slots=True)
class Row:
    """A question to be answered at every scale.

    Args:
        sample: names the (image, question) pair.
        image: names the picture; rows of one picture should follow each other.
        picture: its file, or its encoded bytes.
        answers: what counts as right; empty without ground truth.
        group: the family of questions, for reports.
        metric: how an answer is compared with `answers`.
        place: where it stands in which file, for reports; empty if it comes from none.
    """

    sample: str
    image: str
    picture: Path | bytes
    question: str
    answers: tuple[str, ...]
    group: str
    split: Split
    metric: Metric = "exact"
    place: str = ""

    def read_picture(self) -> bytes:
        """The encoded picture. Raises OSError if its file cannot be read."""
        return self.picture if isinstance(self.picture, bytes) else self.picture.read_bytes()


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one record of a file.

    Args:
        place: the file and the line or record number.
        reason: what is wrong with it and, where that helps, what to do.
    """

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"
