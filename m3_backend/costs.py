"""What a request costs at a scale: operations, bytes and milliseconds. No torch here.

Operations follow the usual count for a decoder: two per weight and token, plus attention's two
products over the whole square of positions, the half above the diagonal included. That is how the
efficiency table of M3 (arXiv 2405.17430) counts, for the language model only. Milliseconds are an
affine model fitted to measurements on the replica's own device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a Llama-shaped language model."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    def weights_per_layer(self) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    def prefill_flops(self, prompt_tokens: int) -> float:
        """Floating-point operations to prefill `prompt_tokens` (text and image together)."""
        dense = 2.0 * prompt_tokens * self.weights_per_layer()
        attention = 4.0 * prompt_tokens * prompt_tokens * self.heads * self.head_dim
        head = 2.0 * prompt_tokens * self.hidden * self.vocabulary
        return self.layers * (dense + attention) + head

    def kv_bytes(self, tokens: int, bytes_per_value: int = 2) -> int:
        """Key and value memory of `tokens` cached tokens."""
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * bytes_per_value


@dataclass(frozen=True, slots=True)
class CostModel:
    """Replica milliseconds, affine in tokens.

    Args:
        encode_ms: vision tower and projector, one image; paid only on a cache miss.
        prefill_base_ms, prefill_token_ms: prefill of n tokens costs base + n × token.
        decode_token_ms: one more generated token.
    """

    encode_ms: float
    prefill_base_ms: float
    prefill_token_ms: float
    decode_token_ms: float

    def prefill_ms(self, prompt_tokens: int) -> float:
        return self.prefill_base_ms + self.prefill_token_ms * prompt_tokens

    def start_ms(self, prompt_tokens: int, images: int) -> float:
        """Estimated replica time before an answer begins, with nothing cached."""
        return self.encode_ms * images + self.prefill_ms(prompt_tokens)

    def hold_ms(self, new_tokens: float, slots: int) -> float:
        """Estimated replica time of an answer, as its share of steps that `slots` requests take."""
        return self.decode_token_ms * new_tokens / slots

    def request_ms(
        self, prompt_tokens: int, new_tokens: int, images: int = 1, cached: bool = False
    ) -> float:
        """Estimated replica time of a whole request, alone on the replica."""
        encode = 0.0 if cached else self.encode_ms * images
        return (
            encode + self.prefill_ms(prompt_tokens) + self.decode_token_ms * max(new_tokens - 1, 0)
        )


def fit_affine(tokens: Sequence[float], milliseconds: Sequence[float]) -> tuple[float, float]:
    """(base, per token), neither below zero, with the least squared *relative* errors.

    Relative, because plain least squares would let the longest prompt alone decide what the
    shortest costs, and that is where coarse scales live.
    """
    weights = [1 / max(ms, 1e-6) ** 2 for ms in milliseconds]
    total = sum(weights)
    points = list(zip(weights, tokens, milliseconds, strict=True))
    mean_x = sum(w * x for w, x, _ in points) / total
    mean_y = sum(w * y for w, _, y in points) / total
    spread = sum(w * (x - mean_x) ** 2 for w, x, _ in points)
    covariance = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in points)
    slope = max(covariance / spread, 0.0) if spread else 0.0
    base = mean_y - slope * mean_x
    if base < 0:  # the best line through the origin instead
        base, slope = (
            0.0,
            sum(w * x * y for w, x, y in points) / sum(w * x * x for w, x, _ in points),
        )
    return base, slope


@dataclass(frozen=True, slots=True)
class AffineFit:
    """Milliseconds as base + per token, and how well that describes what was measured.

    Args:
        error: root mean square of the relative deviations, 0.05 for five per cent.
    """

    base_ms: float
    token_ms: float
    error: float

    def at(self, tokens: float) -> float:
        return self.base_ms + self.token_ms * tokens


def fit_milliseconds(tokens: Sequence[float], milliseconds: Sequence[float]) -> AffineFit:
    """The line of `fit_affine` through measurements above zero, with its error.

    Its parts are the `prefill_base_ms` and `prefill_token_ms` of a CostModel when `milliseconds`
    are prefills.
    """
    base, per_token = fit_affine(tokens, milliseconds)
    deviations = ((base + per_token * x - y) / y for x, y in zip(tokens, milliseconds, strict=True))
    error = sqrt(sum(deviation**2 for deviation in deviations) / len(tokens))
    return AffineFit(base, per_token, error)
