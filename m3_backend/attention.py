"""Attention in plain products, where those are faster than the fused kernels: in 16 bits on CPUs
without matrix tiles (AMX).

There the fused kernels spend more time than the products they fuse. Forward and backward of 32 × 4
heads of 64 over 582 tokens in bf16 take 520 ms on one core, products with a softmax in between
250 ms, over 150 tokens 62 and 23 ms; forward alone, of 5 heads of 32 over 577 tokens, 3.8 and
2.3 ms. With matrix tiles, as on an accelerator, the fused forward pass is the quicker one, by a
quarter to a half; forward and backward together are even.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

PLAIN = "plain"
# Queries at once: their scores stay in the second-level cache until they have been used, and in
# causal attention most of what is never seen is not computed either.
_BLOCK = 160


def is_quicker(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether plain products beat the fused kernels."""
    tiles = torch.cpu._is_amx_tile_supported()  # no public function tells
    return device.type == "cpu" and dtype == torch.bfloat16 and not tiles


def causal_products(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal softmax attention of the last queries of a sequence over all of it.

    Args:
        queries: [new, heads, width].
        keys, values: [length, heads, width], the last `new` of them those of the queries.

    Returns:
        [new, heads, width]
    """
    new, cached = len(queries), len(keys) - len(queries)
    scaled = queries.transpose(0, 1) * queries.shape[-1] ** -0.5
    own_keys, own_values = keys.permute(1, 2, 0), values.transpose(0, 1)
    side = min(new, _BLOCK)
    future = torch.full((side, side), -torch.inf, dtype=queries.dtype, device=queries.device)
    future = future.triu(1)
    seen = torch.empty_like(queries)
    for first in range(0, new, _BLOCK):
        count = min(_BLOCK, new - first)
        end = cached + first + count
        scores = scaled[:, first : first + count] @ own_keys[..., :end]
        scores[..., end - count :] += future[:count, :count]
        seen[first : first + count] = (scores.softmax(-1) @ own_values[:, :end]).transpose(0, 1)
    return seen


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """Softmax attention in the dtype of its inputs, as transformers' attention functions.

    Args:
        query, key, value: [batch, heads, length, width]; as many key as query heads.
        attention_mask: bool, True where a key may be seen, broadcast to [batch, heads, length,
            length]; None lets all be seen.

    Returns:
        [batch, length, heads, width], and no weights.
    """
    assert dropout == 0.0
    length = query.shape[-2]
    scaled, keys = query * scaling, key.transpose(-1, -2)
    mask = None if attention_mask is None else attention_mask.expand(-1, -1, length, -1)
    seen = []
    for first in range(0, length, _BLOCK):
        block = slice(first, first + _BLOCK)
        scores = scaled[..., block, :] @ keys
        if mask is not None:
            scores = scores.masked_fill(~mask[..., block, :], torch.finfo(scores.dtype).min)
        seen.append(scores.softmax(-1) @ value)
    return torch.cat(seen, dim=-2).transpose(1, 2), None


def register() -> str:
    """Makes the function known to transformers. Gives the name by which models ask for it."""
    AttentionInterface.register(PLAIN, plain_attention)
    AttentionMaskInterface.register(PLAIN, sdpa_mask)
    return PLAIN
