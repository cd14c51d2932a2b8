"""The token scales of a checkpoint, and how many tokens an image becomes at each.

A *scale* is a number of visual tokens per vision-tower grid. M3 average-pools the projected grid
with kernel = stride = grid side / √scale, so a scale is valid only if it is a square whose side
divides the grid's (Matryoshka Multimodal Models, arXiv 2405.17430). Nothing is ever rounded to
the next valid scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

from m3_backend.errors import InvalidScaleError

M3_GRID_SIDE = 24
M3_SCALES = (1, 9, 36, 144, 576)


@dataclass(frozen=True, slots=True)
class ScaleLadder:
    """The valid scales of one model, coarse to fine.

    Args:
        scales: ascending token counts per grid.
        grid_side: patches per side of the vision tower's grid (24 for CLIP ViT-L/14 at 336 px).

    Raises:
        ValueError: a scale that is not a square, whose side does not divide the grid's, or out of
            order.
    """

    scales: tuple[int, ...] = M3_SCALES
    grid_side: int = M3_GRID_SIDE

    def __post_init__(self) -> None:
        if not self.scales or list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"scales must be distinct and ascending, got {self.scales}")
        for scale in self.scales:
            side = isqrt(max(scale, 0))
            if scale < 1 or side * side != scale or self.grid_side % side:
                raise ValueError(
                    f"scale {scale} does not fit a {self.grid_side}×{self.grid_side} grid: "
                    "its root must be whole and divide the grid side"
                )

    @property
    def coarsest(self) -> int:
        return self.scales[0]

    @property
    def finest(self) -> int:
        return self.scales[-1]

    def __len__(self) -> int:
        return len(self.scales)

    def __contains__(self, scale: object) -> bool:
        return scale in self.scales

    def require(self, scale: int, *, param: str | None = None) -> int:
        """The scale itself if it is on the ladder, else InvalidScaleError naming those that are."""
        if scale not in self.scales:
            raise InvalidScaleError(scale, self.scales, param=param)
        return scale

    def index(self, scale: int) -> int:
        return self.scales.index(self.require(scale))

    def side(self, scale: int) -> int:
        """Cells per side of the pooled grid."""
        return isqrt(self.require(scale))

    def finer(self, scale: int) -> tuple[int, ...]:
        """The scales that can be pooled down to `scale`, nearest first, `scale` itself excluded."""
        side = self.side(scale)
        return tuple(s for s in self.scales if s > scale and isqrt(s) % side == 0)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a LLaVA-NeXT checkpoint cuts an image into tiles (anyres, `spatial_unpad`).

    Args:
        tile: side of a tile in pixels (the vision tower's input side).
        pinpoints: the canvas sizes (height, width) in pixels that an image may be fitted to.
    """

    tile: int
    pinpoints: tuple[tuple[int, int], ...]

    def canvas(self, width: int, height: int) -> tuple[int, int]:
        """The (height, width) pinpoint with the most effective pixels, then the least waste."""

        def fit(pinpoint: tuple[int, int]) -> tuple[int, int]:
            canvas_height, canvas_width = pinpoint
            ratio = min(canvas_width / width, canvas_height / height)
            effective = min(int(width * ratio) * int(height * ratio), width * height)
            return effective, -(canvas_width * canvas_height - effective)

        return max(self.pinpoints, key=fit)

    def unpadded(self, rows: int, columns: int, width: int, height: int) -> tuple[slice, slice]:
        """The rows and columns of a pooled tile grid that hold picture, not padding.

        Follows the reference's `unpad_image`, integer truncation included.
        """
        if width / height > columns / rows:
            kept = int(height * (columns / width))
            pad = (rows - kept) // 2
            return slice(pad, rows - pad), slice(0, columns)
        kept = int(width * (rows / height))
        pad = (columns - kept) // 2
        return slice(0, rows), slice(pad, columns - pad)


def image_tokens(
    ladder: ScaleLadder, scale: int, width: int, height: int, tiling: Tiling | None
) -> int:
    """Tokens that one image of `width`×`height` pixels puts into the prompt at `scale`.

    Without tiling this is the scale. With it, the thumbnail's tokens plus the un-padded tile grid
    plus one newline token per row of that grid.
    """
    side = ladder.side(scale)
    if tiling is None:
        return scale
    canvas_height, canvas_width = tiling.canvas(width, height)
    rows, columns = canvas_height // tiling.tile * side, canvas_width // tiling.tile * side
    row_slice, column_slice = tiling.unpadded(rows, columns, width, height)
    kept_rows = len(range(*row_slice.indices(rows)))
    kept_columns = len(range(*column_slice.indices(columns)))
    return scale + kept_rows * (kept_columns + 1)


def parse_scales(scales: Sequence[int], grid_side: int) -> ScaleLadder:
    """A ladder from unsorted numbers, as they stand in a checkpoint's config."""
    return ScaleLadder(tuple(sorted(set(scales))), grid_side)
