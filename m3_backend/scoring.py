"""Offline: one image, several questions, every scale, with the vision tower run once.

What a labelling job needs, in batches and without an event loop. Answers are greedy; a reference
answer can also be scored by teacher forcing, which takes one prefill per scale: the greedy answer
at a scale equals the reference exactly if the argmax at every position is the reference's token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from m3_backend.answer_text import SEPARATOR
from m3_backend.checkpoint import Checkpoint
from m3_backend.errors import CheckpointError, ContextLengthError
from m3_backend.messages import ImageInput, ImageSlot, Turn
from m3_backend.prompt import Prompt, Tokenizer
from m3_backend.runner import ModelRunner
from m3_backend.scheduler import similar_lengths
from m3_backend.vision import pool

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ScaleAnswer:
    """A greedy answer. `token_ids` ends with the end-of-sequence token unless it was cut off."""

    scale: int
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReferenceScore:
    """A reference answer under teacher forcing at one scale.

    Args:
        matches: per reference token, whether it is the argmax given the reference before it.
        logprob: natural log-probability of the whole reference.
    """

    scale: int
    matches: tuple[bool, ...]
    logprob: float


@dataclass(frozen=True, slots=True)
class _Item:
    """One question at one scale, and the tokens to force."""

    question: int
    scale: int
    embeddings: Tensor
    forced: tuple[int, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        return len(self.embeddings)


class Scorer:
    """Not thread-safe.

    Args:
        batch: prompts per forward pass.
        context: tokens per prompt and answer; bounds memory.
        scales: those of the checkpoint's ladder to run, coarse to fine; None takes all.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        batch: int = 16,
        context: int = 1024,
        scales: Sequence[int] | None = None,
    ) -> None:
        if checkpoint.tokenizer is None:
            raise CheckpointError(f"{checkpoint.name} has no tokenizer; it cannot read questions.")
        self._tokenizer: Tokenizer = checkpoint.tokenizer
        self._checkpoint = checkpoint
        self.scales = tuple(map(checkpoint.ladder.require, scales or checkpoint.ladder.scales))
        length = min(context, checkpoint.max_context)
        self._runner = ModelRunner(checkpoint, slots=batch, length=length)
        self._last: tuple[str, Tensor] | None = None

    def answers(
        self, image: ImageInput, questions: Sequence[str], *, max_tokens: int = 32
    ) -> list[tuple[ScaleAnswer, ...]]:
        """Greedy answers, per question and then per scale.

        Raises:
            InvalidImageError, ContextLengthError
        """
        items = self._items(image, [(question, ()) for question in questions], max_tokens)
        return self._by_question(items, lambda batch: self._generate(batch, max_tokens))

    def score(
        self, image: ImageInput, references: Sequence[tuple[str, Sequence[int]]]
    ) -> list[tuple[ReferenceScore, ...]]:
        """Teacher-forced scores of (question, reference token ids), per pair and then per scale.

        Raises:
            InvalidImageError, ContextLengthError
        """
        forced = [(question, tuple(tokens)) for question, tokens in references]
        items = self._items(image, forced, max((len(tokens) for _, tokens in forced), default=0))
        return self._by_question(items, self._force)

    def _items(
        self, image: ImageInput, forced: Sequence[tuple[str, tuple[int, ...]]], room: int
    ) -> list[_Item]:
        full = self._encode(image)
        items = []
        for scale in self.scales:
            features = pool(full, self._checkpoint.ladder, scale)
            for index, (question, tokens) in enumerate(forced):
                embeddings = self._runner.embed(self._prompt(question), [image], [features])
                if len(embeddings) + room > self._runner.cache.length:
                    raise ContextLengthError(
                        f"{len(embeddings)} prompt tokens and {room} for the answer exceed the "
                        f"scorer's context of {self._runner.cache.length}."
                    )
                items.append(_Item(index, scale, embeddings, tokens))
        return items

    def _encode(self, image: ImageInput) -> Tensor:
        """Full-grid features; the last image's are kept, because answers and scores follow."""
        if self._last is None or self._last[0] != image.digest:
            self._last = image.digest, self._runner.encode(image)
        return self._last[1]

    def _prompt(self, question: str) -> Prompt:
        turn = Turn("user", (ImageSlot(0), question))
        return self._tokenizer.prompt(self._checkpoint.template.render([turn]))

    def _by_question(
        self, items: list[_Item], run: Callable[[Sequence[_Item]], list[R]]
    ) -> list[tuple[R, ...]]:
        results: dict[tuple[int, int], R] = {}
        slots = self._runner.cache.slots
        for group in similar_lengths(items):
            for start in range(0, len(group), slots):
                batch = group[start : start + slots]
                for item, result in zip(batch, run(batch), strict=True):
                    results[item.question, item.scale] = result
        count = len(items) // len(self.scales)
        return [tuple(results[q, scale] for scale in self.scales) for q in range(count)]

    def _generate(self, batch: Sequence[_Item], max_tokens: int) -> list[ScaleAnswer]:
        answers: list[list[int]] = [[] for _ in batch]
        eos = self._checkpoint.eos
        logits = self._runner.prefill([item.embeddings for item in batch])
        for step in range(max_tokens):
            chosen = logits.argmax(dim=-1).tolist()
            for answer, token in zip(answers, chosen, strict=True):
                if not answer or answer[-1] not in eos:
                    answer.append(token)
            if step == max_tokens - 1 or all(answer[-1] in eos for answer in answers):
                break
            logits = self._runner.decode(chosen, [item.prompt_tokens + step for item in batch])
        return [
            ScaleAnswer(
                item.scale, self._tokenizer.decode(answer).removeprefix(SEPARATOR), tuple(answer)
            )
            for item, answer in zip(batch, answers, strict=True)
        ]

    @torch.inference_mode()
    def _force(self, batch: Sequence[_Item]) -> list[ReferenceScore]:
        prompts = []
        for item in batch:
            prompts.append(
                torch.cat([item.embeddings, self._runner.embed_tokens(item.forced[:-1])])
            )
        hidden = self._runner.hidden(prompts)
        scores = []
        for item, own in zip(batch, hidden, strict=True):
            first = item.prompt_tokens - 1
            logprobs = self._runner.logits(own[first : first + len(item.forced)]).log_softmax(-1)
            tokens = torch.tensor(item.forced, device=logprobs.device)
            matches = tuple((logprobs.argmax(dim=-1) == tokens).tolist())
            total = float(logprobs.gather(1, tokens[:, None]).sum())
            scores.append(ReferenceScore(item.scale, matches, total))
        return scores
