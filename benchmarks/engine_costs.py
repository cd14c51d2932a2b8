"""What the stages of a replica cost when they work on several requests, measured one by one.

A replica that did one thing at a time would answer at the rate that `requests_per_s` gives. What it
does beside something else (pictures are decoded and encoded beside the language model) can only
make it faster, what its own bookkeeping costs slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from benchmarks.engine_requests import Asked, Requests
from benchmarks.engine_sides import CONTEXT
from benchmarks.timing import quickest_s
from m3_backend.checkpoint import Checkpoint
from m3_backend.costs import fit_affine
from m3_backend.kv_cache import Span
from m3_backend.runner import ModelRunner

_PASS = 4  # pictures of one pass of the tower
_PREFILLS = ((4, 32), (4, 64), (4, 170), (1, 600))  # prompts of one step × tokens
_ANSWER = 4  # tokens of an answer, its end included: m3-tiny's are short


@dataclass(frozen=True, slots=True)
class StageCosts:
    """Milliseconds.

    Args:
        pixels_ms, tower_ms: decoding and encoding, per picture.
        prefill_base_ms, prefill_token_ms: of a step with several prompts.
        decode_ms, decode_token_ms: one token for all callers, and more per token that they hold.
    """

    callers: int
    pixels_ms: float
    tower_ms: float
    prefill_base_ms: float
    prefill_token_ms: float
    decode_ms: float
    decode_token_ms: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def requests_per_s(self, asked: Sequence[Asked]) -> float:
        """Of one queue that computes no picture twice, and no prefix that it has computed."""
        seen: set[str] = set()
        prefixes: set[tuple[str, int]] = set()
        total = 0.0
        for one in asked:
            image = one.image.digest
            if image not in seen:
                total += self.pixels_ms + self.tower_ms
            text, whole = len(one.prompt.runs[-1]), one.prompt.length([one.scale])
            known = (image, one.scale) in prefixes
            total += self.prefill_token_ms * (text if known else whole)
            step = self.decode_ms + self.decode_token_ms * self.callers * whole
            total += (_ANSWER - 1) * step / self.callers
            seen.add(image)
            prefixes.add((image, one.scale))
        return 1e3 * len(asked) / total


def measure_stages(checkpoint: Checkpoint, callers: int) -> StageCosts:
    runner = ModelRunner(checkpoint, tokens=callers * CONTEXT)
    requests = Requests(checkpoint, _PASS)
    pictures = [one.image for one in requests.make(requests.at(1), _PASS, 0)]
    pixels = torch.cat([runner.pixels(picture) for picture in pictures])
    table = np.arange(1, runner.cache.tokens + 1)

    def prefill_ms(prompts: int, tokens: int) -> float:
        embedded = torch.zeros(
            tokens, checkpoint.shape.hidden, dtype=checkpoint.dtype, device=checkpoint.device
        )
        spans = [Span(table[at * CONTEXT :], 0, tokens) for at in range(prompts)]
        return 1e3 * quickest_s(lambda: runner.prefill(spans, [embedded] * prompts))

    def decode_ms(held: int) -> float:
        spans = [Span(table[at * CONTEXT :], held, 1) for at in range(callers)]
        return 1e3 * quickest_s(lambda: runner.decode(spans, [0] * callers))

    tokens = [prompts * length for prompts, length in _PREFILLS]
    base, token = fit_affine(tokens, [prefill_ms(*one) for one in _PREFILLS])
    decode, held = fit_affine(
        [callers * length for length in (32, 170, 600)],
        [decode_ms(length) for length in (32, 170, 600)],
    )
    return StageCosts(
        callers=callers,
        pixels_ms=1e3 * quickest_s(lambda: [runner.pixels(one) for one in pictures]) / _PASS,
        tower_ms=1e3 * quickest_s(lambda: runner.features(pixels)) / _PASS,
        prefill_base_ms=base,
        prefill_token_ms=token,
        decode_ms=decode,
        decode_token_ms=held,
    )
