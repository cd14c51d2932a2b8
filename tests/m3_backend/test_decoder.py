"""The flat batch against transformers' own forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from m3_backend.costs import ModelShape
from m3_backend.decoder import Decoder
from m3_backend.kv_cache import Span, TokenCache, few_lengths, similar

CPU = torch.device("cpu")


def model(kv_heads: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
    )
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_pieces_of_any_size_give_what_the_whole_gives(kv_heads: int) -> None:
    own = model(kv_heads)
    shape = ModelShape(3, 32, 48, 4, kv_heads, 8, 50)
    cache = TokenCache(shape, tokens=100, dtype=torch.float32, device=CPU)
    decoder = Decoder(own, cache)
    sequences = [torch.randint(0, 50, (n,), generator=torch.manual_seed(n)) for n in (23, 9, 40, 1)]
    expected = [own(ids[None]).logits[0] for ids in sequences]
    rows = np.random.default_rng(0).permutation(np.arange(1, 101))
    tables = [np.zeros(60, np.int64) for _ in sequences]
    for table, part in zip(tables, np.split(rows, [25, 40, 85]), strict=True):
        table[: len(part)] = part
    cached = [0, 0, 0, 0]
    for sizes in ([10, 4, 1, 1], [1, 5, 30, 0], [12, 0, 9, 0]):
        chosen = [at for at, size in enumerate(sizes) if size]
        spans = [Span(tables[at], cached[at], sizes[at]) for at in chosen]
        plan = cache.plan(spans)
        batch = decoder.embed(
            torch.cat([sequences[at][cached[at] : cached[at] + sizes[at]] for at in chosen])
        )
        every = decoder.logits(decoder.forward(batch, plan, last_only=False))
        last = decoder.logits(decoder.forward(batch, plan, last_only=True))
        torch.testing.assert_close(last, every[plan.last], rtol=1e-4, atol=1e-5)
        for at, part in zip(chosen, torch.split(every, [s.new for s in spans]), strict=True):
            wanted = expected[at][cached[at] : cached[at] + sizes[at]]
            torch.testing.assert_close(part, wanted, rtol=1e-4, atol=1e-5)
            cached[at] += sizes[at]
    assert cached == [23, 9, 40, 1]


def test_groups_are_similar_complete_and_bounded() -> None:
    lengths = [5, 600, 30, 610, 28, 600, 5, 90]
    groups = similar(lengths, 1300)
    assert sorted(at for group in groups for at in group) == list(range(8))
    for group in groups:
        sizes = [lengths[at] for at in group]
        assert max(sizes) <= 2 * min(sizes) + 16
        assert len(group) == 1 or max(sizes) * len(sizes) <= 1300


def test_batches_are_padded_little_and_to_few_lengths() -> None:
    padded = {length: few_lengths(length) for length in range(1, 4097)}
    assert all(length <= to <= max(length + 1, 9 * length / 8) for length, to in padded.items())
    assert len(set(padded.values())) <= 8 * 12
    assert list(padded.values()) == sorted(padded.values())
