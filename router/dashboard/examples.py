"""Example pictures of the playground: what the manifest in their folder lists, in its order.

The manifest is `questions.jsonl`, one object a line: `image` (a file beside it), `question` and
`answer`, which is right. A picture may have several questions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from router.dashboard.files import PageFile

MANIFEST = "questions.jsonl"


class ExampleQuestion(BaseModel):
    """A question about a picture, and what is right."""

    model_config = ConfigDict(frozen=True)

    question: str
    answer: str | None = None


class Example(BaseModel):
    """A picture by the name that its path ends with, and what may be asked about it."""

    name: str
    questions: list[ExampleQuestion]


class ExampleList(BaseModel):
    """Answer of `GET /dashboard/examples`."""

    examples: list[Example] = []


class _Row(ExampleQuestion):
    image: str = Field(pattern=r"^[^/\\]+$")


@dataclass(frozen=True, slots=True)
class Examples:
    """The pictures that are there, and what may be asked about them."""

    listed: ExampleList
    pictures: Mapping[str, PageFile]


NO_EXAMPLES = Examples(ExampleList(), {})


def read_examples(folder: Path | None) -> Examples:
    """The examples in a folder; none where there is no manifest."""
    if folder is None or not (folder / MANIFEST).is_file():
        return NO_EXAMPLES
    examples: dict[str, Example] = {}
    pictures: dict[str, PageFile] = {}
    for line in (folder / MANIFEST).read_text(encoding="utf-8").splitlines():
        row = _Row.model_validate(json.loads(line))
        path = folder / row.image
        if not path.is_file():
            continue
        if row.image not in pictures:
            pictures[row.image] = PageFile.of(path.read_bytes(), path.suffix.lower())
            examples[row.image] = Example(name=row.image, questions=[])
        asked = ExampleQuestion(question=row.question, answer=row.answer)
        examples[row.image].questions.append(asked)
    return Examples(ExampleList(examples=list(examples.values())), pictures)
