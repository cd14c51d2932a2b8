"""Features in eight bits: half the bytes of 16-bit ones, a quarter of 32-bit ones.

Every token is its largest magnitude ÷ 127 (a step, 32 bits) and one whole number of steps per
value, which lie behind each other: [tiles, scale, hidden] becomes int8 [tiles, scale, hidden + 4].

Features are rounded to that at every step of the pooling chain, as they are to their own type where
they are kept exactly. So here, too, an answer never depends on which entry was hit, or on whether
any was; it may differ from the answer without this storage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m3_backend.scales import ScaleLadder
from m3_backend.vision import pool, pooling_chain

STEP_BYTES = 4
_MOST = 127


def pack(features: Tensor) -> Tensor:
    """[tiles, scale, hidden] of any float type → int8 [tiles, scale, hidden + 4]."""
    values = features.float()
    steps = values.abs().amax(dim=-1, keepdim=True) / _MOST
    codes = (values / steps.where(steps > 0, torch.ones_like(steps))).round()
    codes = codes.clamp(-_MOST, _MOST).to(torch.int8)
    return torch.cat((codes, steps.view(torch.int8)), dim=-1)


def unpack(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """What `pack` was given, to half a step."""
    codes, steps = packed[..., :-STEP_BYTES], packed[..., -STEP_BYTES:].contiguous()
    return (codes.float() * steps.view(torch.float32)).to(dtype)


def pool_packed(packed: Tensor, ladder: ScaleLadder, scale: int, dtype: torch.dtype) -> Tensor:
    """`vision.pool`, rounded to this storage at every step of the chain: packed → packed."""
    chain = pooling_chain(ladder, scale)
    for step in reversed(chain[: chain.index(packed.shape[1])]):
        packed = pack(pool(unpack(packed, dtype), ladder, step))
    return packed
