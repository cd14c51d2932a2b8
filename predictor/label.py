"""Offline: run a checkpoint at every scale over questions and write down what came out.

This is the one module of the room that needs the model. Work is saved every few pictures: a run
that was stopped goes on where it was when started again with the same output. Image features are
computed in passing and kept beside the outcomes, so that training needs neither model nor pictures.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_backend.checkpoint import Checkpoint
from m3_backend.errors import InvalidImageError, ServiceError
from m3_backend.measure import measure_costs
from m3_backend.messages import ImageInput, ImageSlot, Turn, digest_of
from m3_backend.preprocess import decode_image
from m3_backend.runner import ModelRunner
from m3_backend.scales import image_tokens
from m3_backend.scoring import ReferenceScore, ScaleAnswer, Scorer
from predictor.datasets import Row
from predictor.errors import OutcomesError
from predictor.features import image_vector
from predictor.image_table import read_image_table, table_beside, write_image_table
from predictor.metrics import exact_match
from predictor.records import (
    Outcome,
    OutcomeSource,
    merge_outcomes,
    read_samples,
    write_outcomes,
)

Vector = NDArray[np.float32]

_TEXT_ROOM = 512  # tokens for question and answer beside the image
_SHORT_ANSWER = 16  # tokens up to which agreement means equality


def label(
    rows: Iterable[Row],
    checkpoint: Checkpoint,
    out: Path,
    *,
    max_tokens: int = 32,
    pictures_per_part: int = 16,
    progress: Callable[[int], None] = lambda rows_done: None,
) -> int:
    """Answer every row at every scale; write the outcomes to `out` and image features beside it.

    Rows that fail are recorded with their error at every scale.

    Args:
        rows: those about one picture must follow each other; their order must be the same in a
            run that continues another.
        pictures_per_part: how much work an interruption can cost.
        progress: called with the number of rows done, counting those of earlier runs.

    Returns:
        How many rows were answered in this run.

    Raises:
        OutcomesError: `out` exists already, or an unfinished run there used another checkpoint.
        CheckpointError: a checkpoint without a tokenizer.
    """
    if out.exists():
        raise OutcomesError(f"{out} exists; remove it or choose another name.")
    labeller = Labeller(checkpoint, max_tokens=max_tokens)
    folder = out.with_name(out.name + ".parts")
    parts = _finished_parts(folder)
    known = _samples_of(parts, labeller.source)
    done = answered = 0
    for pictures in _by_picture(rows, pictures_per_part):
        outcomes: list[Outcome] = []
        vectors: dict[str, Vector] = {}
        for of_one in pictures:
            fresh = [row for row in of_one if row.sample not in known]
            if fresh:
                found, vector = labeller.outcomes(fresh)
                outcomes += found
                vectors |= {} if vector is None else {fresh[0].image: vector}
            answered += len(fresh)
            done += len(of_one)
            progress(done)
        if outcomes:
            part = folder / f"{len(parts):06}.parquet"
            write_image_table(table_beside(part), vectors)
            write_outcomes(part, outcomes, labeller.source)  # last: it makes the part count
            parts.append(part)
    if not parts:
        raise OutcomesError("There are no rows to label.")
    _join(parts, out)
    shutil.rmtree(folder)
    return answered


def _by_picture(rows: Iterable[Row], size: int) -> Iterator[list[list[Row]]]:
    """Rows of one picture together, `size` pictures at a time."""
    pictures = (list(of_one) for _, of_one in groupby(rows, key=lambda row: row.image))
    while chunk := list(islice(pictures, size)):
        yield chunk


def _finished_parts(folder: Path) -> list[Path]:
    return sorted(part for part in folder.glob("*.parquet") if part.suffixes == [".parquet"])


def _samples_of(parts: Sequence[Path], source: OutcomeSource) -> frozenset[str]:
    samples: set[str] = set()
    for part in parts:
        theirs, held = read_samples(part)
        if theirs != source:
            raise OutcomesError(
                f"The unfinished run in {part.parent} used {theirs.model} with other weights or "
                "settings; remove the folder to start over."
            )
        samples |= held
    return frozenset(samples)


def _join(parts: Sequence[Path], out: Path) -> None:
    vectors: dict[str, Vector] = {}
    for part in parts:
        table = read_image_table(table_beside(part))
        vectors |= dict(zip(table.images, table.values, strict=True))
    write_image_table(table_beside(out), vectors)
    merge_outcomes(parts, out)


class Labeller:
    """Answers the questions about one picture at every scale. Not thread-safe."""

    def __init__(self, checkpoint: Checkpoint, *, max_tokens: int) -> None:
        if checkpoint.tiling is None:
            context = min(checkpoint.max_context, checkpoint.ladder.finest + _TEXT_ROOM)
        else:
            context = checkpoint.max_context
        self._checkpoint = checkpoint
        self._max_tokens = max_tokens
        self._costs = measure_costs(ModelRunner(checkpoint, slots=1, length=context))
        self._scorer = Scorer(checkpoint, context=context)
        self.source = OutcomeSource(
            checkpoint.name,
            checkpoint.identity,
            checkpoint.preprocessing.identity,
            checkpoint.ladder,
        )

    def outcomes(self, rows: Sequence[Row]) -> tuple[list[Outcome], Vector | None]:
        """One outcome per row and scale, and the picture's features unless it does not decode.

        Args:
            rows: all about one picture.
        """
        try:
            data = rows[0].read_picture()
            vector = image_vector(data)
            displayed = decode_image(data)
        except (OSError, InvalidImageError) as error:
            reason = (
                error.message if isinstance(error, ServiceError) else "The file cannot be read."
            )
            return [each for row in rows for each in self._failed(row, reason)], None
        image = ImageInput(data, digest_of(data), displayed.width, displayed.height)
        outcomes: list[Outcome] = []
        for row, answers in zip(rows, self._answers(image, rows), strict=True):
            if isinstance(answers, ServiceError):
                outcomes += self._failed(row, answers.message)
            else:
                outcomes += self._judged(row, image, *answers)
        return outcomes, vector

    def _answers(
        self, image: ImageInput, rows: Sequence[Row]
    ) -> list[tuple[Sequence[ScaleAnswer], Sequence[ReferenceScore]] | ServiceError]:
        """Answers and scores per row; where one row makes a batch fail, rows are tried alone."""
        questions = [row.question for row in rows]
        try:
            answers = self._scorer.answers(image, questions, max_tokens=self._max_tokens)
            finest = [each[-1].token_ids for each in answers]
            scores = self._scorer.score(image, list(zip(questions, finest, strict=True)))
        except ServiceError as error:
            if len(rows) == 1:
                return [error]
            return [each for row in rows for each in self._answers(image, [row])]
        return list(zip(answers, scores, strict=True))

    def _judged(
        self,
        row: Row,
        image: ImageInput,
        answers: Sequence[ScaleAnswer],
        scores: Sequence[ReferenceScore],
    ) -> Iterator[Outcome]:
        checkpoint = self._checkpoint
        text_tokens = self._text_tokens(row.question)
        outcome = _outcome_of(row)
        for answer, score in zip(answers, scores, strict=True):
            tokens = image_tokens(
                checkpoint.ladder, answer.scale, image.width, image.height, checkpoint.tiling
            )
            yield outcome(
                scale=answer.scale,
                answer=answer.text,
                correct=exact_match(answer.text, row.answers) if row.answers else None,
                agrees=agreement(answer, answers[-1], score),
                reference_logprob=score.logprob,
                image_tokens=tokens,
                ms=self._costs.request_ms(text_tokens + tokens, len(answer.token_ids), cached=True),
            )

    def _failed(self, row: Row, reason: str) -> Iterator[Outcome]:
        outcome = _outcome_of(row)
        for scale in self._checkpoint.ladder.scales:
            yield outcome(
                scale=scale,
                answer="",
                correct=None,
                agrees=None,
                reference_logprob=None,
                image_tokens=0,
                ms=0.0,
                error=reason,
            )

    def _text_tokens(self, question: str) -> int:
        checkpoint = self._checkpoint
        turn = Turn("user", (ImageSlot(0), question))
        assert checkpoint.tokenizer is not None  # the scorer refused it otherwise
        return checkpoint.tokenizer.prompt(checkpoint.template.render([turn])).length([0])


def _outcome_of(row: Row) -> partial[Outcome]:
    """An Outcome of this row; what is left to give is what happened at a scale."""
    return partial(
        Outcome,
        sample=row.sample,
        image=row.image,
        group=row.group,
        split=row.split,
        question=row.question,
    )


def agreement(answer: ScaleAnswer, finest: ScaleAnswer, score: ReferenceScore) -> float:
    """How far an answer is the finest scale's: equal or not, by position for long answers."""
    if len(finest.token_ids) <= _SHORT_ANSWER:
        return float(answer.token_ids == finest.token_ids)
    return sum(score.matches) / len(score.matches)
