"""What a model makes of questions about pictures: outcomes at every scale, and the noise null."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from m3_backend.checkpoint import open_checkpoint
from m3_backend.costs import CostModel
from m3_backend.errors import InvalidImageError, ServiceError
from m3_backend.measure import measure_costs
from m3_backend.messages import ImageInput, digest_of
from m3_backend.preprocess import decode_image
from m3_backend.runner import ModelRunner
from m3_backend.scales import image_tokens
from m3_backend.scoring import ScaleAnswer, Scorer
from predictor import image_features
from predictor.datasets import Row
from predictor.features import image_vector
from predictor.metrics import score
from predictor.null_table import NullOutcome
from predictor.records import Outcome, OutcomeSource, agreement_share
from predictor.shifts import lossless, shifted

Vector = NDArray[np.float32]

_TEXT_ROOM = 512  # tokens for question and answer beside the image


@dataclass(frozen=True, slots=True)
class Setup:
    """What decides the answers; with it another process can do the same work.

    Args:
        checkpoint, dtype, device: as `open_checkpoint` takes them.
        max_tokens: the longest answer.
    """

    checkpoint: str
    dtype: str = "auto"
    device: str = "auto"
    max_tokens: int = 32


class Labeller:
    """Answers the questions about a few pictures at a time. Not thread-safe.

    Args:
        costs: what `measure` gave; None measures now.

    Raises:
        CheckpointError: the checkpoint cannot be opened or has no tokenizer.
    """

    def __init__(self, setup: Setup, costs: CostModel | None = None) -> None:
        checkpoint = open_checkpoint(setup.checkpoint, dtype=setup.dtype, device=setup.device)
        context = checkpoint.max_context
        if checkpoint.tiling is None:
            context = min(context, checkpoint.ladder.finest + _TEXT_ROOM)
        self._checkpoint = checkpoint
        self._max_tokens = setup.max_tokens
        self._scorer = Scorer(checkpoint, context=context)
        self.costs = costs or measure_costs(ModelRunner(checkpoint, tokens=context))
        self.source = OutcomeSource(
            checkpoint.name,
            checkpoint.identity,
            checkpoint.preprocessing.identity,
            checkpoint.ladder,
        )

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides what is written, beside pictures and questions."""
        settings = [
            self.source.to_metadata(),
            str(self._checkpoint.dtype),
            self._max_tokens,
            image_features.VERSION,
        ]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def outcomes(
        self, pictures: Sequence[Sequence[Row]]
    ) -> tuple[list[Outcome], dict[str, Vector]]:
        """One outcome per row and scale, and the features of the pictures that decode, by name.

        Rows that cannot be answered have their error at every scale.

        Args:
            pictures: for each, all rows about it.
        """
        views = [_view(rows[0]) for rows in pictures]
        found = iter(
            self._scorer.answers(
                [
                    (view.image, [row.question for row in rows])
                    for rows, view in zip(pictures, views, strict=True)
                    if isinstance(view, _View)
                ],
                max_tokens=self._max_tokens,
            )
        )
        outcomes: list[Outcome] = []
        vectors: dict[str, Vector] = {}
        for rows, view in zip(pictures, views, strict=True):
            if isinstance(view, ServiceError):
                outcomes += [each for row in rows for each in self._failed(row, view)]
                continue
            vectors[rows[0].image] = view.vector
            for row, answers in zip(rows, next(found), strict=True):
                if isinstance(answers, ServiceError):
                    outcomes += self._failed(row, answers)
                else:
                    outcomes += self._judged(row, view.image, answers)
        return outcomes, vectors

    def null_outcomes(
        self, pictures: Sequence[Sequence[Row]], scale: int, runs: int
    ) -> list[NullOutcome]:
        """One outcome per row and run: the picture as it is, then shifted; see `shifts`."""
        return [outcome for run in range(runs) for outcome in self._null_run(pictures, scale, run)]

    def _null_run(
        self, pictures: Sequence[Sequence[Row]], scale: int, run: int
    ) -> Iterator[NullOutcome]:
        side = self._checkpoint.preprocessing.side
        images = [_shifted_input(rows[0], run, side) for rows in pictures]
        inquiries = [
            (image, [row.question for row in rows])
            for rows, image in zip(pictures, images, strict=True)
            if isinstance(image, ImageInput)
        ]
        found = iter(self._scorer.answers(inquiries, max_tokens=self._max_tokens, scales=(scale,)))
        for rows, image in zip(pictures, images, strict=True):
            answers = next(found) if isinstance(image, ImageInput) else [image] * len(rows)
            for row, answer in zip(rows, answers, strict=True):
                text = "" if isinstance(answer, ServiceError) else answer[0].text
                correct = None if isinstance(answer, ServiceError) else _correct(row, text)
                yield NullOutcome(row.sample, row.image, row.group, row.split, run, text, correct)

    def _judged(
        self, row: Row, image: ImageInput, answers: Sequence[ScaleAnswer]
    ) -> Iterator[Outcome]:
        checkpoint = self._checkpoint
        text_tokens = self._scorer.prompt(row.question).length([0])
        outcome = _outcome_of(row)
        for answer in answers:
            tokens = image_tokens(
                checkpoint.ladder, answer.scale, image.width, image.height, checkpoint.tiling
            )
            yield outcome(
                scale=answer.scale,
                answer=answer.text,
                correct=_correct(row, answer.text),
                agrees=agreement(answer, answers[-1]),
                reference_logprob=answer.logprob,
                image_tokens=tokens,
                ms=self.costs.request_ms(text_tokens + tokens, len(answer.token_ids), cached=True),
            )

    def _failed(self, row: Row, error: ServiceError) -> Iterator[Outcome]:
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
                error=error.message,
            )


def agreement(answer: ScaleAnswer, finest: ScaleAnswer) -> float:
    """How far an answer is the finest scale's: equal or not, by position for long answers."""
    return agreement_share(answer.token_ids == finest.token_ids, answer.matches)


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """A picture that decodes, and its features."""

    image: ImageInput
    vector: Vector


def _view(row: Row) -> _View | ServiceError:
    try:
        data = row.read_picture()
        vector = image_vector(data)
        return _View(_input(data), vector)
    except OSError:
        return InvalidImageError("The file cannot be read.")
    except InvalidImageError as error:
        return error


def _shifted_input(row: Row, run: int, side: int) -> ImageInput | ServiceError:
    try:
        data = row.read_picture()
        return _input(lossless(shifted(decode_image(data), run, side)) if run else data)
    except OSError:
        return InvalidImageError("The file cannot be read.")
    except InvalidImageError as error:
        return error


def _input(data: bytes) -> ImageInput:
    displayed = decode_image(data)
    return ImageInput(data, digest_of(data), displayed.width, displayed.height)


def _correct(row: Row, answer: str) -> float | None:
    return score(row.metric, answer, row.answers) if row.answers else None


def _outcome_of(row: Row) -> partial[Outcome]:
    """An Outcome of this row; what is left to give is what happened at a scale."""
    return partial(
        Outcome,
        sample=row.sample,
        image=row.image,
        group=row.group,
        split=row.split,
        question=row.question,
        metric=row.metric if row.answers else "",
    )
