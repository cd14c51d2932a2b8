"""Eight-bit features: close to what they were, and the same whichever entry they come from."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3_backend.quantised import STEP_BYTES, pack, pool_packed, unpack
from m3_backend.scales import ScaleLadder

LADDER = ScaleLadder()


def features(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    made = torch.randn(2, 576, 16, generator=torch.manual_seed(seed))
    return (made * torch.logspace(-3, 3, 576)[None, :, None]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_value_comes_back_to_half_a_step_of_its_token(dtype: torch.dtype) -> None:
    before = features(dtype)
    packed = pack(before)
    assert packed.dtype == torch.int8
    assert packed.shape == (2, 576, 16 + STEP_BYTES)
    after = unpack(packed, dtype)
    assert after.dtype == dtype
    most = before.float().abs().amax(dim=-1, keepdim=True)
    rounding = most * torch.finfo(dtype).eps
    assert ((after.float() - before.float()).abs() <= most / 127 / 2 + rounding).all()


def test_tokens_without_any_magnitude_stay_so() -> None:
    nothing = torch.zeros(1, 4, 8)
    assert torch.equal(unpack(pack(nothing), torch.float32), nothing)


@given(st.sampled_from(LADDER.scales), st.sampled_from(LADDER.scales), st.integers(0, 9))
def test_pooling_does_not_depend_on_where_it_begins(one: int, other: int, seed: int) -> None:
    finer, coarser = max(one, other), min(one, other)
    packed = pack(features(torch.bfloat16, seed))
    between = pool_packed(packed, LADDER, finer, torch.bfloat16)
    assert torch.equal(
        pool_packed(between, LADDER, coarser, torch.bfloat16),
        pool_packed(packed, LADDER, coarser, torch.bfloat16),
    )
