"""Offline: pictures, several questions about each, every scale, with nothing computed twice.

What a labelling job needs, in batches and without an event loop. The vision tower runs once per
picture; what stands before the question is prefilled once per picture and scale and shared by its
questions. The finest scale answers first. Coarser ones are given its answer by teacher forcing, in
one prefill each: a greedy answer is the same exactly if the argmax at every position is the token
of the finest, so only what differs is left to decode, from the first difference on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from m3_backend.answer_text import SEPARATOR
from m3_backend.checkpoint import Checkpoint
from m3_backend.errors import CheckpointError, ContextLengthError, ServiceError
from m3_backend.kv_cache import Span
from m3_backend.kv_memory import Rows
from m3_backend.messages import ImageInput, ImageSlot, Turn
from m3_backend.prompt import Prompt, Tokenizer
from m3_backend.runner import ModelRunner
from m3_backend.scales import image_tokens
from m3_backend.vision import pool


@dataclass(frozen=True, slots=True)
class ScaleAnswer:
    """A greedy answer, and the finest scale's answer under teacher forcing at this scale.

    Args:
        token_ids: ends with the end-of-sequence token unless the answer was cut off.
        matches: per token of the finest's answer, whether it is the argmax given those before it.
        logprob: natural log-probability of the whole finest answer.
    """

    scale: int
    text: str
    token_ids: tuple[int, ...]
    matches: tuple[bool, ...]
    logprob: float


_Found = tuple[list[int], tuple[bool, ...], float]  # tokens, matches, logprob of a ScaleAnswer


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """A picture and its full-grid features [tiles, grid², hidden]."""

    image: ImageInput
    features: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """One that can be answered, with the answers found so far, fine to coarse."""

    picture: _Picture
    prompt: Prompt
    answers: list[ScaleAnswer] = field(default_factory=list)

    @property
    def reference(self) -> tuple[int, ...]:
        """What the finest scale answered."""
        return self.answers[0].token_ids


class Scorer:
    """Not thread-safe.

    Args:
        batch: questions per forward pass.
        context: tokens per prompt and answer; bounds memory.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        batch: int = 16,
        context: int = 1024,
    ) -> None:
        if checkpoint.tokenizer is None:
            raise CheckpointError(f"{checkpoint.name} has no tokenizer; it cannot read questions.")
        self._tokenizer: Tokenizer = checkpoint.tokenizer
        self._checkpoint = checkpoint
        self._ladder = checkpoint.ladder
        length = min(context, checkpoint.max_context)
        self._batch, self._length = batch, length
        self._runner = ModelRunner(checkpoint, tokens=batch * length)
        self._eos = checkpoint.eos

    def answers(
        self,
        inquiries: Sequence[tuple[ImageInput, Sequence[str]]],
        *,
        max_tokens: int = 32,
        scales: Sequence[int] | None = None,
    ) -> list[list[tuple[ScaleAnswer, ...] | ServiceError]]:
        """Greedy answers, per picture and question one for every scale, coarse to fine.

        A question that cannot be answered has the error instead and leaves the others alone:
        InvalidImageError with all questions of its picture, ContextLengthError.

        Args:
            scales: ascending; None takes the whole ladder. The last one is "the finest".

        Raises:
            InvalidScaleError: a scale that is not on the ladder.
        """
        wanted = tuple(map(self._ladder.require, scales or self._ladder.scales))
        asked = [self._prepared(image, texts, wanted[-1], max_tokens) for image, texts in inquiries]
        questions = [q for of_one in asked for q in of_one if isinstance(q, _Question)]
        for scale in reversed(wanted):
            for batch in self._batches(questions, scale):
                self._answer(batch, scale, max_tokens)
        return [
            [tuple(reversed(q.answers)) if isinstance(q, _Question) else q for q in of_one]
            for of_one in asked
        ]

    def prompt(self, question: str) -> Prompt:
        """A single question about a single picture, as the checkpoint's template puts it."""
        turn = Turn("user", (ImageSlot(0), question))
        return self._tokenizer.prompt(self._checkpoint.template.render([turn]))

    def _prepared(
        self, image: ImageInput, texts: Sequence[str], finest: int, room: int
    ) -> list[_Question | ServiceError]:
        try:
            picture = _Picture(image, self._runner.encode(image))
        except ServiceError as error:
            return [error] * len(texts)
        prepared: list[_Question | ServiceError] = []
        for text in texts:
            prompt = self.prompt(text)
            length = prompt.length([self._image_tokens(image, finest)])
            if length + room > self._length:
                prepared.append(
                    ContextLengthError(
                        f"{length} prompt tokens and {room} for the answer exceed the scorer's "
                        f"context of {self._length}."
                    )
                )
            else:
                prepared.append(_Question(picture, prompt))
        return prepared

    def _image_tokens(self, image: ImageInput, scale: int) -> int:
        tiling = self._checkpoint.tiling
        return image_tokens(self._ladder, scale, image.width, image.height, tiling)

    def _batches(self, questions: Iterable[_Question], scale: int) -> Iterator[list[_Question]]:
        """Questions whose pictures take equally many tokens, those of one picture together."""
        slots = self._batch
        by_tokens: dict[int, list[_Question]] = defaultdict(list)
        for question in questions:
            by_tokens[self._image_tokens(question.picture.image, scale)].append(question)
        for alike in by_tokens.values():
            batch: list[_Question] = []
            for _, of_one in groupby(alike, key=lambda question: question.picture):
                fresh = list(of_one)
                if batch and len(batch) + len(fresh) > slots:
                    yield batch
                    batch = []
                batch += fresh
                while len(batch) > slots:
                    yield batch[:slots]
                    batch = batch[slots:]
            if batch:
                yield batch

    def _answer(self, batch: Sequence[_Question], scale: int, max_tokens: int) -> None:
        start, tables = self._prefill_pictures(batch, scale)
        find = self._coarser if batch[0].answers else self._finest
        answers = find(batch, start, tables, max_tokens)
        for question, (tokens, matches, logprob) in zip(batch, answers, strict=True):
            text = self._tokenizer.decode(tokens).removeprefix(SEPARATOR)
            question.answers.append(ScaleAnswer(scale, text, tuple(tokens), matches, logprob))

    def _prefill_pictures(self, batch: Sequence[_Question], scale: int) -> tuple[int, list[Rows]]:
        """Prefill every picture once, up to its end: how many tokens, and every question's rows,
        of which those are shared by all questions about a picture.
        """
        own = np.arange(1, len(batch) * self._length + 1).reshape(len(batch), self._length)
        of_picture: dict[_Picture, Rows] = {}
        prefixes = []
        for question, rows in zip(batch, own, strict=True):
            if (picture := question.picture) not in of_picture:
                of_picture[picture] = rows
                before = Prompt((question.prompt.runs[0], ()), (0,))
                pooled = pool(picture.features, self._ladder, scale)
                prefixes.append(self._runner.embed(before, [picture.image], [pooled]))
        start = len(prefixes[0])
        self._runner.hidden([Span(rows, 0, start) for rows in of_picture.values()], prefixes)
        return start, [
            np.concatenate([of_picture[question.picture][:start], rows[start:]])
            for question, rows in zip(batch, own, strict=True)
        ]

    def _finest(
        self, batch: Sequence[_Question], start: int, tables: Sequence[Rows], max_tokens: int
    ) -> list[_Found]:
        scored = self._logprobs(batch, [()] * len(batch), start, tables)
        first = [row.max(dim=-1) for row in scored]
        answers = [[int(best.indices)] for best in first]
        held = [start + len(question.prompt.runs[1]) for question in batch]
        added = self._complete(answers, held, tables, max_tokens)
        return [
            (answer, (True,) * len(answer), float(best.values) + more)
            for answer, best, more in zip(answers, first, added, strict=True)
        ]

    def _coarser(
        self, batch: Sequence[_Question], start: int, tables: Sequence[Rows], max_tokens: int
    ) -> list[_Found]:
        references = [question.reference for question in batch]
        scored = self._logprobs(batch, references, start, tables)
        answers, matches, totals, held = [], [], [], []
        for question, reference, logprobs in zip(batch, references, scored, strict=True):
            tokens = torch.tensor(reference, device=logprobs.device)
            chosen = logprobs.argmax(dim=-1)
            equal = (chosen == tokens).tolist()
            agreed = equal.index(False) if False in equal else len(equal)
            answers.append([*reference[:agreed], *chosen[agreed : agreed + 1].tolist()])
            matches.append(tuple(equal))
            totals.append(float(logprobs.gather(1, tokens[:, None]).sum()))
            held.append(start + len(question.prompt.runs[1]) + len(answers[-1]) - 1)
        self._complete(answers, held, tables, max_tokens)
        return list(zip(answers, matches, totals, strict=True))

    @torch.inference_mode()
    def _logprobs(
        self,
        batch: Sequence[_Question],
        forced: Sequence[tuple[int, ...]],
        start: int,
        tables: Sequence[Rows],
    ) -> list[Tensor]:
        """Log-probabilities of every forced token, or of the first without any: [tokens, vocab]."""
        rests = [
            self._runner.embed_tokens([*question.prompt.runs[1], *tokens[:-1]])
            for question, tokens in zip(batch, forced, strict=True)
        ]
        spans = [Span(table, start, len(rest)) for table, rest in zip(tables, rests, strict=True)]
        hidden = self._runner.hidden(spans, rests)
        counts = [max(len(tokens), 1) for tokens in forced]
        wanted = [
            own[len(rest) - count : len(rest)]
            for own, rest, count in zip(hidden, rests, counts, strict=True)
        ]
        logprobs = self._runner.logits(torch.cat(wanted)).log_softmax(-1)
        return list(torch.split(logprobs, counts))

    def _complete(
        self,
        answers: Sequence[list[int]],
        held: Sequence[int],
        tables: Sequence[Rows],
        max_tokens: int,
    ) -> list[float]:
        """Decode greedily, in place, until every answer has ended or is `max_tokens` long.

        Args:
            held: per answer, how many tokens are in its rows: all up to the answer's last.

        Returns:
            The log-probability of what was added to each.
        """
        lengths, added = list(held), [0.0] * len(answers)
        while True:
            running = [
                at
                for at, answer in enumerate(answers)
                if len(answer) < max_tokens and answer[-1] not in self._eos
            ]
            if not running:
                return added
            logits = self._runner.decode(
                [Span(tables[at], lengths[at], 1) for at in running],
                [answers[at][-1] for at in running],
            )
            best = logits.log_softmax(-1).max(dim=-1)
            found = zip(running, best.indices.tolist(), best.values.tolist(), strict=True)
            for at, token, logprob in found:
                answers[at].append(token)
                added[at] += logprob
                lengths[at] += 1
