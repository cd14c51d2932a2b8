"""Pictures and questions as tensors. Batch number n of a stage is a pure function of (seed, n)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from m3_backend.training.model import LABEL_COLUMNS, LABEL_ROWS
from m3_backend.training.recipe import PATCH, Stage
from m3_backend.training.worlds import Picture, Question, draw

# The easiest questions would otherwise fill a sixth of every batch.
_SELDOM = {"background": 0.2, "document_kind": 0.35, "chart_kind": 0.25, "text_colour": 0.5}
_READ = frozenset({"handwriting", "words", "numbers", "documents"})
_CONVERSATIONS = 0.15
_ROOM = 200  # tokens of questions and answers about a picture; evens out the rows of a batch
_ROUNDED_TO = 32  # tokens
NOT_WANTED = -100


@dataclass(frozen=True)
class Batch:
    """One step's worth of pictures.

    Args:
        pixels: uint8 [batch, side, side, 3].
        classes, colours, orders, rows, columns: uint8 [batch, patches, points] dense labels, see
            worlds.canvas.Labels.
        text, blocks, positions, answers: int64 [batch, length], see TinyLlava.answer_logits;
            `answers` holds the token id to predict where one is wanted, else NOT_WANTED.
        wanted: int64 [2, tokens to predict], the rows and columns of those.
    """

    pixels: Tensor
    classes: Tensor
    colours: Tensor
    orders: Tensor
    rows: Tensor
    columns: Tensor
    text: Tensor
    blocks: Tensor
    positions: Tensor
    answers: Tensor
    wanted: Tensor


class Batches(Dataset[Batch]):
    """All batches of a stage, drawn when asked for; of each, every `ranks`th picture."""

    def __init__(
        self,
        stage: Stage,
        tokenizer: PreTrainedTokenizerFast,
        questions: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._stage = stage
        self._tokenizer = tokenizer
        self._questions = questions
        self._seed = seed
        self._rank = rank
        self._ranks = ranks

    def __len__(self) -> int:
        return self._stage.steps

    def __getitem__(self, step: int) -> Batch:
        stage = self._stage
        rng = Random(f"{self._seed}-{stage.name}-{step}-{self._rank}")
        base = step * stage.batch
        # No stage sees another's pictures again.
        seed = self._seed + zlib.crc32(stage.name.encode())
        pictures = [
            draw("train", base + i, stage.side, seed=seed, mix=stage.mix)
            for i in range(self._rank, stage.batch, self._ranks)
        ]
        rows = [pack(self._tokenizer, self._choose(p, rng), rng) for p in pictures]
        text, blocks, positions, answers = zip(*rows, strict=True)
        predicted = pad(answers, NOT_WANTED)
        return Batch(
            pixels=torch.from_numpy(np.stack([np.asarray(p.image) for p in pictures])),
            classes=_sampled([p.labels.classes for p in pictures], LABEL_ROWS, LABEL_COLUMNS),
            orders=_sampled([p.labels.orders for p in pictures], LABEL_ROWS, LABEL_COLUMNS),
            colours=_sampled([p.labels.colours for p in pictures], 2, 2),
            rows=_sampled([p.labels.rows for p in pictures], 2, 2),
            columns=_sampled([p.labels.columns for p in pictures], 2, 2),
            text=pad(text),
            blocks=pad(blocks),
            positions=pad(positions),
            answers=predicted,
            wanted=(predicted != NOT_WANTED).nonzero().T.contiguous(),
        )

    def _choose(self, picture: Picture, rng: Random) -> list[Question]:
        kept = [q for q in picture.questions if rng.random() < _SELDOM.get(q.family, 1.0)]
        kept = [q for q in kept if q.detail_px >= self._stage.least_detail or q.family not in _READ]
        kept = kept or list(picture.questions[:1])
        rng.shuffle(kept)
        return kept[: self._questions]


def pack(
    tokenizer: PreTrainedTokenizerFast,
    questions: list[Question],
    rng: Random,
    conversations: float = _CONVERSATIONS,
    room: int = _ROOM,
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token ids, block numbers, positions and wanted answers of a picture's questions in a row.

    Usually every question is a block of its own that starts right behind the image. In a share of
    `conversations` all of them are turns of one conversation. What does not fit into `room` tokens
    is left out, the first question never.
    """
    conversation = rng.random() < conversations
    text: list[int] = []
    blocks: list[int] = []
    positions: list[int] = []
    answers: list[int] = []
    for number, question in enumerate(questions, start=1):
        opening = "\n" if number == 1 or not conversation else "USER: "
        asked = _encode(tokenizer, f"{opening}{question.text} ASSISTANT:")
        answer = [*_encode(tokenizer, f" {question.answer}"), tokenizer.eos_token_id]
        if text and len(text) + len(asked) + len(answer) > room:
            break
        start = len(text) if conversation else 0
        text += asked + answer
        blocks += [1 if conversation else number] * (len(asked) + len(answer))
        positions += range(start, start + len(asked) + len(answer))
        answers += [NOT_WANTED] * len(asked) + answer
    return text, blocks, positions, answers


def pad(rows: Sequence[list[int]], fill: int = 0) -> Tensor:
    """Rows of different lengths as one int64 tensor [rows, longest], filled up on the right.

    The longest is rounded up: tensors of ever new sizes tear freed memory to pieces.
    """
    longest = -(-max(len(row) for row in rows) // _ROUNDED_TO) * _ROUNDED_TO
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _sampled(labels: Sequence[NDArray[np.uint8]], rows: int, columns: int) -> Tensor:
    return torch.from_numpy(np.stack([_sample(each, rows, columns) for each in labels]))


def _sample(labels: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Labels at rows × columns points of every patch: uint8 [patches, points]."""
    side = labels.shape[0] // PATCH
    y = (np.arange(side)[:, None] * PATCH + (np.arange(rows) + 0.5) * PATCH / rows).astype(int)
    x = (np.arange(side)[:, None] * PATCH + (np.arange(columns) + 0.5) * PATCH / columns).astype(
        int
    )
    points = labels[y[:, None, :, None], x[None, :, None, :]]
    flat: NDArray[np.uint8] = points.reshape(side * side, rows * columns)
    return flat
