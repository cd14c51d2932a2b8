"""Questions about freshly drawn pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING

from predictor.datasets.rows import Row
from predictor.records import Split, assign_split

if TYPE_CHECKING:
    from m3_backend.training.worlds import Picture


def world_rows(
    pictures: int, shifted: int = 0, *, questions: int = 3, seed: int = 0
) -> Iterator[Row]:
    """Questions about freshly drawn pictures that m3-tiny was not trained on.

    Args:
        pictures: drawn like the training pictures; their split follows from their name.
        shifted: pictures with held-out phrasings, fonts, palettes or densities.
        questions: at most, per picture.
    """
    from m3_backend.training.worlds import draw  # noqa: PLC0415 - a second of fonts and digits

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
