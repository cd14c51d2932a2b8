"""Questions about pictures, from a file of the user's or drawn by the training worlds."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from m3_backend.training.worlds import Picture, draw
from predictor.errors import OutcomesError
from predictor.records import SPLITS, Split, assign_split


@dataclass(frozen=True, slots=True)
class Row:
    """A question to be answered at every scale.

    Args:
        sample: names the (image, question) pair.
        image: names the picture; rows of one picture should follow each other.
        picture: its file, or its encoded bytes.
        answers: what counts as right; empty without ground truth.
        group: the family of questions, for reports.
    """

    sample: str
    image: str
    picture: Path | bytes
    question: str
    answers: tuple[str, ...]
    group: str
    split: Split

    def read_picture(self) -> bytes:
        """The encoded picture. Raises OSError if its file cannot be read."""
        return self.picture if isinstance(self.picture, bytes) else self.picture.read_bytes()


def read_jsonl(path: Path, *, seed: int = 0) -> list[Row]:
    """Rows from a file with one JSON object per line, pictures of equal name next to each other.

        {"image": "a.jpg", "question": "What …?", "answers": ["red"], "group": "colour"}

    `image` is relative to the file's folder. `answer` may stand for `answers` of one, or both be
    left out; `sample`, `group` and `split` are optional. Without `split`, one follows from the
    picture's name and `seed`.

    Raises:
        OutcomesError: a line that is not such an object, by its number.
    """
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append(_row(line, f"{path}, line {number}", number, path.parent, seed))
    return sorted(rows, key=lambda row: row.image)


def _row(line: str, place: str, number: int, folder: Path, seed: int) -> Row:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise OutcomesError(f"{place}: not JSON.") from error
    if not isinstance(fields, dict):
        raise OutcomesError(f"{place}: not a JSON object.")
    image, question = _text(fields, "image", place), _text(fields, "question", place)
    answers = fields.get("answers", [fields["answer"]] if "answer" in fields else [])
    if not isinstance(answers, list):
        raise OutcomesError(f"{place}: 'answers' must be a list.")
    split = fields.get("split") or assign_split(image, seed)
    if split not in SPLITS:
        raise OutcomesError(f"{place}: split {split!r} is not one of {', '.join(SPLITS)}.")
    return Row(
        sample=str(fields.get("sample", f"{number:07}")),
        image=image,
        picture=folder / image,
        question=question,
        answers=tuple(map(str, answers)),
        group=str(fields.get("group", "all")),
        split=split,
    )


def _text(fields: dict[str, Any], name: str, place: str) -> str:
    text = fields.get(name)
    if not isinstance(text, str) or not text:
        raise OutcomesError(f"{place}: {name!r} must be a text that is not empty.")
    return text


def world_rows(
    pictures: int, shifted: int = 0, *, questions: int = 3, seed: int = 0
) -> Iterator[Row]:
    """Questions about freshly drawn pictures that m3-tiny was not trained on.

    Args:
        pictures: drawn like the training pictures; their split follows from their name.
        shifted: pictures with held-out phrasings, fonts, palettes or densities.
        questions: at most, per picture.
    """
    for index in range(pictures):
        picture = draw("label", index, seed=seed)
        yield from _rows_of(picture, assign_split(picture.name), questions)
    for index in range(shifted):
        yield from _rows_of(draw("shifted", index, seed=seed), "shifted", questions)


def _rows_of(picture: Picture, split: Split, questions: int) -> Iterator[Row]:
    file = io.BytesIO()
    picture.image.save(file, "PNG")
    asked = Random(picture.name).sample(picture.questions, min(questions, len(picture.questions)))
    for number, question in enumerate(asked):
        yield Row(
            sample=f"{picture.name}-{number}",
            image=picture.name,
            picture=file.getvalue(),
            question=question.text,
            answers=(question.answer,),
            group=question.family,
            split=split,
        )
