"""What a request costs at a scale: operations, bytes and milliseconds. No torch here.

Operations follow the usual count for a decoder: two per weight and token, plus attention's two
    products
over the causal prefix (as in the efficiency table of M3, arXiv 2405.17430, which counts the
language model only). Milliseconds are an affine model fitted to measurements on the replica's own
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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

    def request_ms(
        self, prompt_tokens: int, new_tokens: int, images: int = 1, cached: bool = False
    ) -> float:
        """Estimated replica time of a whole request, alone on the replica."""
        encode = 0.0 if cached else self.encode_ms * images
        return (
            encode + self.prefill_ms(prompt_tokens) + self.decode_token_ms * max(new_tokens - 1, 0)
        )


def fit_affine(tokens: Sequence[int], milliseconds: Sequence[float]) -> tuple[float, float]:
    """Least squares (base, per token), neither below zero."""
    n = len(tokens)
    mean_x, mean_y = sum(tokens) / n, sum(milliseconds) / n
    spread = sum((x - mean_x) ** 2 for x in tokens)
    if not spread:
        return max(mean_y, 0.0), 0.0
    slope = (
        sum((x - mean_x) * (y - mean_y) for x, y in zip(tokens, milliseconds, strict=True)) / spread
    )
    slope = max(slope, 0.0)
    return max(mean_y - slope * mean_x, 0.0), slope
