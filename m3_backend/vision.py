"""From projected patches to image tokens: exact pooling and the arrangement of tiles.

Features are kept per tile, [tiles, scale, hidden]: that is what caches hold, because it depends on
the picture, the model and the scale only. `assemble` turns it into the tokens of the prompt.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from m3_backend.scales import ScaleLadder, Tiling


def pooling_chain(ladder: ScaleLadder, scale: int) -> tuple[int, ...]:
    """The scales whose features lead to `scale`, nearest first: itself, its parent, …, the grid.

    The parent of a scale is the next finer one it can be pooled from, so every scale has exactly
    one chain and its values do not depend on which member of the chain was at hand.
    """
    chain = [ladder.require(scale)]
    while finer := ladder.finer(chain[-1]):
        chain.append(finer[0])
    full = ladder.grid_side**2
    return tuple(chain) if chain[-1] == full else (*chain, full)


def pool(features: Tensor, ladder: ScaleLadder, scale: int) -> Tensor:
    """Average-pool [tiles, finer, hidden] to [tiles, scale, hidden] along the chain of `scale`.

    Means are taken in float32 and rounded to the features' own type at every step of the chain.

    Raises:
        ValueError: the features' own scale is not on the chain.
    """
    chain = pooling_chain(ladder, scale)
    steps = chain[: chain.index(features.shape[1])]
    for step in reversed(steps):
        features = _average(features, isqrt(step))
    return features


def _average(features: Tensor, side: int) -> Tensor:
    tiles, cells, hidden = features.shape
    window = isqrt(cells) // side
    grid = features.view(tiles, side, window, side, window, hidden)
    return grid.float().mean(dim=(2, 4)).to(features.dtype).view(tiles, side * side, hidden)


def tile_count(width: int, height: int, tiling: Tiling | None) -> int:
    """Inputs of the vision tower that one image becomes, the thumbnail included."""
    if tiling is None:
        return 1
    canvas_height, canvas_width = tiling.canvas(width, height)
    return 1 + (canvas_height // tiling.tile) * (canvas_width // tiling.tile)


def assemble(
    features: Tensor, width: int, height: int, tiling: Tiling | None, newline: Tensor | None
) -> Tensor:
    """The image's tokens [n, hidden] from its tiles [tiles, scale, hidden].

    With tiling: the thumbnail's tokens, then the rows of the joined tiles, un-padded on the pooled
    grid, each row closed by `newline`.
    """
    if tiling is None:
        return features[0]
    assert newline is not None
    _, scale, hidden = features.shape
    canvas_height, canvas_width = tiling.canvas(width, height)
    down, across = canvas_height // tiling.tile, canvas_width // tiling.tile
    side = isqrt(scale)
    grid = features[1:].view(down, across, side, side, hidden).permute(0, 2, 1, 3, 4)
    grid = grid.reshape(down * side, across * side, hidden)
    rows, columns = tiling.unpadded(down * side, across * side, width, height)
    kept = grid[rows, columns]
    line_ends = newline.to(kept.dtype).expand(kept.shape[0], 1, hidden)
    return torch.cat([features[0], torch.cat([kept, line_ends], dim=1).flatten(0, 1)])
