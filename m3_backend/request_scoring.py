"""One request at every scale, on the features that are in the cache already: for shadow labels.

The finest scale answers greedily; every coarser one is given that answer by teacher forcing, in
one prefill. Its greedy answer is the same exactly if the argmax at every position is the finest's
token. Works beside the engine on the same weights, with KV memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
    """

    scale: int
    image_tokens: int
    matches: tuple[bool, ...]
    logprob: float


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
    ) -> tuple[ScaleScore, ...]:
        """Of every scale, coarse to fine.

        Args:
            request: about one image; its scale, sampling and deadline do not matter.
            max_tokens: of the finest scale's answer.
            may_go_on: asked before each scale and each token.

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
        answer, logprob = self._answer(embedded, min(max_tokens, room), may_go_on)
        whole = ScaleScore(ladder.finest, tokens, (True,) * len(answer), logprob)
        coarser = []
        for scale in ladder.scales[:-1]:
            prompt, tokens, _ = at(scale)
            embedded = self._runner.embed(prompt, request.images, [features[scale]])
            matches, logprob = self._forced(embedded, answer)
            coarser.append(ScaleScore(scale, tokens, matches, logprob))
        return (*coarser, whole)

    def _answer(
        self, prompt: Tensor, most: int, may_go_on: Callable[[], bool]
    ) -> tuple[list[int], float]:
        """The greedy answer, which ends with the end-of-sequence token unless it is cut off."""
        answer: list[int] = []
        total = 0.0
        logits = self._runner.prefill([Span(self._rows, 0, len(prompt))], [prompt])
        while True:
            best = logits[0].log_softmax(-1).max(dim=-1)
            answer.append(int(best.indices))
            total += float(best.values)
            if answer[-1] in self._checkpoint.eos or len(answer) >= most:
                return answer, total
            if not may_go_on():
                raise NotNowError("Requests are waiting.")
            held = len(prompt) + len(answer) - 1
            logits = self._runner.decode([Span(self._rows, held, 1)], [answer[-1]])

    def _forced(self, prompt: Tensor, answer: list[int]) -> tuple[tuple[bool, ...], float]:
        given = torch.cat((prompt, self._runner.embed_tokens(answer[:-1])))
        (hidden,) = self._runner.hidden([Span(self._rows, 0, len(given))], [given])
        logprobs = self._runner.logits(hidden[-len(answer) :]).log_softmax(-1)
        tokens = torch.tensor(answer, device=logprobs.device)
        matches = tuple((logprobs.argmax(-1) == tokens).tolist())
        return matches, float(logprobs.gather(1, tokens[:, None]).sum())
