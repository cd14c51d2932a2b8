"""Attention in plain products against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from m3_backend.attention import causal_products, is_quicker, plain_attention
from m3_backend.costs import ModelShape
from m3_backend.kv_cache import Span, TokenCache


@pytest.mark.parametrize("length", [1, 7, 160, 161, 400])
def test_plain_attention_is_attention(length: int) -> None:
    query, key, value = torch.randn(3, 2, 4, length, 8)
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    got, _ = plain_attention(torch.nn.Identity(), query, key, value, mask, scaling=8**-0.5)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(got, expected.transpose(1, 2))


def expected(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    new, length = len(queries), len(keys)
    sees = torch.arange(length) <= torch.arange(length - new, length)[:, None]
    q, k, v = (x.transpose(0, 1)[None] for x in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=sees)[0].transpose(0, 1)


@pytest.mark.parametrize(("new", "cached"), [(1, 0), (160, 0), (161, 0), (500, 30), (100, 700)])
def test_blocks_of_a_sequence_see_what_is_before_them(new: int, cached: int) -> None:
    queries = torch.randn(new, 3, 8)
    keys, values = torch.randn(2, new + cached, 3, 8)
    got = causal_products(queries, keys, values)
    torch.testing.assert_close(got, expected(queries, keys, values))


def test_in_bfloat16_on_a_cpu_long_prompts_are_computed_so_whole_and_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    shape = ModelShape(1, 24, 48, heads=3, kv_heads=3, head_dim=8, vocabulary=10)
    cache = TokenCache(shape, tokens=500, dtype=torch.bfloat16, device=torch.device("cpu"))
    table = torch.randperm(500).numpy() + 1
    queries, keys, values = torch.randn(3, 400, 3, 8).to(torch.bfloat16)
    wanted = expected(queries.float(), keys.float(), values.float())
    for pieces in ([400], [150, 250], [30, 120, 250]):
        first = 0
        for count in pieces:
            plan = cache.plan([Span(table, first, count)])
            assert plan.several[0].in_products == (count >= 100)
            part = slice(first, first + count)
            padding = (0, 0, 0, 0, 0, len(plan.rows) - count)
            own = [F.pad(whole[part], padding) for whole in (queries, keys, values)]
            cache.write(0, plan.rows, *own[1:])
            seen = cache.attend(0, plan, *own)[:count]
            torch.testing.assert_close(seen.float(), wanted[part], rtol=0.05, atol=0.02)
            first += count


@pytest.mark.parametrize("tiles", [True, False])
def test_where_there_are_matrix_tiles_the_fused_kernels_are_quicker(
    tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert is_quicker(torch.bfloat16, cpu) is not tiles
    assert not is_quicker(torch.float32, cpu) and not is_quicker(torch.bfloat16, cuda)
