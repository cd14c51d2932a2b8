"""Attention that trains fast on a CPU.

The fused CPU kernels spend more time than the products they fuse: forward and backward of 32 × 4
heads of 64 over 582 tokens in bf16 take 520 ms on one core, products with a softmax in between
250 ms, over 150 tokens 62 and 23 ms. On an accelerator the fused kernels win and this is not used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

PLAIN = "plain"


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
    scores = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def register() -> str:
    """Makes the function known to transformers. Gives the name by which models ask for it."""
    AttentionInterface.register(PLAIN, plain_attention)
    AttentionMaskInterface.register(PLAIN, sdpa_mask)
    return PLAIN
