"""Pooling and the arrangement of tiles, against the definition and against the reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from m3_backend.checkpoint import Checkpoint
from m3_backend.runner import ModelRunner
from m3_backend.scales import ScaleLadder, image_tokens
from m3_backend.vision import assemble, pool, pooling_chain, tile_count
from tests.m3_backend.support import LLAVA15, NEXT, golden_image

LADDER = ScaleLadder()


def features(seed: int, dtype: torch.dtype, tiles: int = 1, cells: int = 576) -> Tensor:
    values = torch.randn(tiles, cells, 8, generator=torch.manual_seed(seed))
    return values.to(dtype)


@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    scale=st.sampled_from(LADDER.scales),
    entry=st.sampled_from(LADDER.scales),
)
@settings(max_examples=60, deadline=None)
def test_an_answer_does_not_depend_on_which_finer_entry_was_at_hand(
    seed: int, dtype: torch.dtype, scale: int, entry: int
) -> None:
    full = features(seed, dtype, tiles=2)
    if entry >= scale:
        assert torch.equal(
            pool(pool(full, LADDER, entry), LADDER, scale), pool(full, LADDER, scale)
        )


@given(seed=st.integers(0, 2**32), scale=st.sampled_from(LADDER.scales))
@settings(max_examples=30, deadline=None)
def test_the_chain_is_the_average_pool_of_the_paper(seed: int, scale: int) -> None:
    full = features(seed, torch.float32)
    window = 24 // LADDER.side(scale)
    grid = full.view(1, 24, 24, 8).permute(0, 3, 1, 2)
    direct = torch.nn.functional.avg_pool2d(grid, window).permute(0, 2, 3, 1).reshape(1, scale, 8)
    assert torch.allclose(pool(full, LADDER, scale), direct, atol=1e-6)


def test_every_step_of_the_chain_rounds_to_the_storage_type() -> None:
    full = features(3, torch.bfloat16)
    by_hand = full
    for side in (12, 6, 3, 1):
        window = int(by_hand.shape[1] ** 0.5) // side
        grid = by_hand.float().view(1, side, window, side, window, 8)
        by_hand = grid.mean(dim=(2, 4)).bfloat16().view(1, side * side, 8)
    assert torch.equal(pool(full, LADDER, 1), by_hand)
    at_once = full.float().mean(dim=1).bfloat16()
    assert not torch.equal(pool(full, LADDER, 1)[:, 0], at_once)


def test_chains_of_ladders() -> None:
    assert pooling_chain(LADDER, 1) == (1, 9, 36, 144, 576)
    assert pooling_chain(LADDER, 144) == (144, 576)
    assert pooling_chain(ScaleLadder((9, 16, 64)), 16) == (16, 64, 576)
    assert pooling_chain(ScaleLadder((9, 16, 64)), 9) == (9, 576)


def test_features_that_are_too_coarse_are_refused() -> None:
    with pytest.raises(ValueError):
        pool(features(0, torch.float32, cells=9), LADDER, 36)


@pytest.mark.parametrize("folder", [LLAVA15, NEXT], ids=lambda folder: folder.name)
def test_features_are_those_of_the_reference(
    folder: Path, llava15: Checkpoint, llava_next: Checkpoint
) -> None:
    checkpoint = llava15 if folder is LLAVA15 else llava_next
    image = golden_image(folder)
    full = ModelRunner(checkpoint, tokens=8).encode(image)
    expected = load_file(folder / "expected.safetensors")
    for scale in (1, 9, 36):
        tokens = assemble(
            pool(full, checkpoint.ladder, scale),
            image.width,
            image.height,
            checkpoint.tiling,
            checkpoint.model.image_newline,
        )
        reference = expected[f"image_features.{scale}"]
        assert tokens.shape == reference.shape
        assert (tokens - reference).abs().max() <= 1e-4 * reference.abs().max()


@pytest.mark.parametrize(
    ("size", "tokens"),
    [
        ((640, 480), (7, 37, 166, 594, 2340)),
        ((1024, 512), (4, 30, 114, 444, 1752)),
        ((300, 200), (1, None, None, None, None)),
    ],
)
def test_tiled_images_become_as_many_tokens_as_announced(
    size: tuple[int, int], tokens: tuple[int | None, ...], llava_next: Checkpoint
) -> None:
    width, height = size
    tiles = tile_count(width, height, llava_next.tiling)
    for scale, expected in zip(LADDER.scales, tokens, strict=True):
        own = features(1, torch.float32, tiles=tiles, cells=scale)
        assembled = assemble(own, width, height, llava_next.tiling, torch.zeros(8))
        announced = image_tokens(LADDER, scale, width, height, llava_next.tiling)
        assert len(assembled) == announced
        assert expected in (None, announced)


def test_rows_of_tiles_end_in_a_newline_and_keep_their_places(llava_next: Checkpoint) -> None:
    """640×480 goes on a canvas of 2×2 tiles; of the 6×6 grid at 9 tokens per tile, the reference
    cuts the first and the last row as padding."""
    tiles = torch.arange(5 * 9, dtype=torch.float32).view(5, 9, 1)
    newline = torch.tensor([-1.0])
    tokens = assemble(tiles, 640, 480, llava_next.tiling, newline)[:, 0].tolist()
    assert tokens[:9] == list(range(9))
    rows = [tokens[start : start + 7] for start in range(9, len(tokens), 7)]
    assert all(row[-1] == -1 for row in rows)
    assert rows[0][:6] == [12, 13, 14, 21, 22, 23]
    assert rows[-1][:6] == [30, 31, 32, 39, 40, 41]
