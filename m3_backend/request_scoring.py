"""One request at every scale, on the features that are in the cache already: for shadow labels.

The finest scale answers greedily; every coarser one is given that answer by teacher forcing, in
one prefill. Its greedy answer is the same exactly if the argmax at every position is the finest's
token; what it says by itself is decoded, from the first difference on, only where that is asked
for. Works beside the engine on the same weights, with KV memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from m3_backend.answer_text import SEPARATOR
from m3_backend.errors import FeaturesGoneError, NotNowError
from m3_backend.job import Work
from m3_backend.kv_cache import Span
from m3_backend.messages import GenerationRequest, Sampling
from m3_backend.preparation import Preparation
from m3_backend.prompt import Prompt
from m3_backend.runner import ModelRunner


@dataclass(frozen=True, slots=True)
class ScaleScore:
    """How the finest scale's answer fares at one scale.

    Args:
        image_tokens: in the prompt.
        matches: per token of that answer, whether it is the argmax given those before it.
        logprob: natural log-probability of the whole answer.
        text: this scale's own greedy answer; None unless it was asked for.
    """

    scale: int
    image_tokens: int
    matches: tuple[bool, ...]
    logprob: float
    text: str | None = None


class RequestScorer:
    """Not thread-safe.

    Args:
        context: tokens per prompt and answer.
    """

    def __init__(self, runner: ModelRunner, preparation: Preparation, context: int) -> None:
        self._checkpoint = runner.checkpoint
        self._preparation = preparation
        self._runner = ModelRunner(runner.checkpoint, tokens=context)
        self._rows = np.arange(1, context + 1)

    @torch.inference_mode()
    def scores(
        self,
        request: GenerationRequest,
        *,
        max_tokens: int,
        may_go_on: Callable[[], bool] = lambda: True,
        texts: bool = False,
    ) -> tuple[ScaleScore, ...]:
        """Of every scale, coarse to fine.

        Args:
            request: about one image; its scale, sampling and deadline do not matter.
            max_tokens: of the finest scale's answer.
            may_go_on: asked before each scale and each token.
            texts: also find what each scale answers by itself, which takes decoding where it is
                not what the finest says.

        Raises:
            FeaturesGoneError, NotNowError: see there.
            ServiceError: the request cannot be answered at the finest scale.
        """
        ladder = self._checkpoint.ladder
        features = self._preparation.cached(request.images[0], request.cache_salt)
        if features is None:
            raise FeaturesGoneError("The image's features are gone.")

        def at(scale: int) -> tuple[Prompt, int, int]:
            if not may_go_on():
                raise NotNowError("Requests are waiting.")
            work = Work(
                make_prompt=lambda: self._preparation.conversation(request),
                images=request.images,
                scales=(scale,),
                sampling=Sampling(),
            )
            prompt, (tokens,), room = self._preparation.measure(work)
            return prompt, tokens, room

        prompt, tokens, room = at(ladder.finest)
        embedded = self._runner.embed(prompt, request.images, [features[ladder.finest]])
        most = min(max_tokens, room)
        answer, logprob = self._answer(embedded, most, may_go_on)
        text = self._text(answer) if texts else None
        whole = ScaleScore(ladder.finest, tokens, (True,) * len(answer), logprob, text)
        coarser = []
        for scale in ladder.scales[:-1]:
            prompt, tokens, _ = at(scale)
            embedded = self._runner.embed(prompt, request.images, [features[scale]])
            best, logprob = self._forced(embedded, answer)
            matches = tuple(a == b for a, b in zip(best, answer, strict=True))
            text = None
            if texts:
                own = best[: matches.index(False) + 1] if False in matches else answer.copy()
                self._go_on(len(embedded), own, most, may_go_on)
                text = self._text(own)
            coarser.append(ScaleScore(scale, tokens, matches, logprob, text))
        self._preparation.release(request.images[0], request.cache_salt)
        return (*coarser, whole)

    def _text(self, answer: list[int]) -> str:
        assert self._checkpoint.tokenizer is not None  # it has made the prompt
        return self._checkpoint.tokenizer.decode(answer).removeprefix(SEPARATOR)

    def _answer(
        self, prompt: Tensor, most: int, may_go_on: Callable[[], bool]
    ) -> tuple[list[int], float]:
        """The greedy answer, which ends with the end-of-sequence token unless it is cut off."""
        logits = self._runner.prefill([Span(self._rows, 0, len(prompt))], [prompt])
        best = logits[0].log_softmax(-1).max(dim=-1)
        answer = [int(best.indices)]
        return answer, float(best.values) + self._go_on(len(prompt), answer, most, may_go_on)

    def _go_on(
        self, start: int, answer: list[int], most: int, may_go_on: Callable[[], bool]
    ) -> float:
        """Adds the tokens that are still to come; gives their log-probability.

        Args:
            start: tokens of the prompt, which are in KV memory with all of the answer but its last.
        """
        total = 0.0
        while answer[-1] not in self._checkpoint.eos and len(answer) < most:
            if not may_go_on():
                raise NotNowError("Requests are waiting.")
            held = start + len(answer) - 1
            logits = self._runner.decode([Span(self._rows, held, 1)], [answer[-1]])
            best = logits[0].log_softmax(-1).max(dim=-1)
            answer.append(int(best.indices))
            total += float(best.values)
        return total

    def _forced(self, prompt: Tensor, answer: list[int]) -> tuple[list[int], float]:
        """The likeliest token at each position of an answer, and the answer's log-probability."""
        given = torch.cat((prompt, self._runner.embed_tokens(answer[:-1])))
        (hidden,) = self._runner.hidden([Span(self._rows, 0, len(given))], [given])
        logprobs = self._runner.logits(hidden[-len(answer) :]).log_softmax(-1)
        tokens = torch.tensor(answer, device=logprobs.device)
        best = [int(token) for token in logprobs.argmax(-1).tolist()]
        return best, float(logprobs.gather(1, tokens[:, None]).sum())
