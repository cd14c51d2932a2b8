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

    def last_logits_flops(self, prompt_tokens: int) -> float:
        """What of `prefill_flops` it takes to get the logits after the last token alone.

        Attention over what each token sees; the last layer gives keys and values for all tokens,
        and all else for one.
        """
        seen = prompt_tokens * (prompt_tokens + 1) / 2
        whole = 2.0 * prompt_tokens * self.weights_per_layer() + self._attention_flops(seen)
        others = 2.0 * (prompt_tokens - 1) * 2 * self.hidden * self.kv_heads * self.head_dim
        return (self.layers - 1) * whole + others + self.step_flops(1, prompt_tokens, layers=1)

    def step_flops(self, requests: int, held: int, layers: int | None = None) -> float:
        """Operations for one more token of each of `requests`, that see `held` tokens in all.

        Args:
            layers: the last so many, and the head; None for all of them.
        """
        per_layer = 2.0 * requests * self.weights_per_layer() + self._attention_flops(held)
        head = 2.0 * requests * self.hidden * self.vocabulary
        return (self.layers if layers is None else layers) * per_layer + head

    def step_bytes(self, held: int, bytes_per_value: int = 2) -> int:
        """What such a step must read: the weights once, and keys and values of what is held."""
        weights = self.layers * self.weights_per_layer() + self.hidden * self.vocabulary
        return weights * bytes_per_value + self.kv_bytes(held, bytes_per_value)

    def kv_bytes(self, tokens: int, bytes_per_value: int = 2) -> int:
        """Key and value memory of `tokens` cached tokens."""
        return 2 * self.layers * self.kv_heads * self.head_dim * tokens * bytes_per_value

    def _attention_flops(self, pairs: float) -> float:
        """In one layer, for so many pairs of a query and a key."""
        return 4.0 * pairs * self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class TowerShape:
    """The sizes of a CLIP-shaped vision tower and of the projector behind it.

    Args:
        layers: those that are used.
        patches: of one tile; the class token is one position more.
        patch_values: numbers in a patch, three per pixel.
        text_hidden: width of the language model.
    """

    layers: int
    hidden: int
    intermediate: int
    patches: int
    patch_values: int
    text_hidden: int

    def encode_flops(self, tiles: int = 1) -> float:
        """Floating-point operations to encode and project `tiles` tiles."""
        positions = self.patches + 1
        weights = 4 * self.hidden**2 + 2 * self.hidden * self.intermediate
        layer = 2.0 * positions * weights + 4.0 * positions**2 * self.hidden
        embedding = 2.0 * self.patches * self.patch_values * self.hidden
        projector = 2.0 * self.patches * self.text_hidden * (self.hidden + self.text_hidden)
        return tiles * (self.layers * layer + embedding + projector)


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
