"""Questions about pictures, from files people have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
