"""The same picture a pixel or two to the side: what must not matter, and does by luck."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

# Right and down are positive; the first is the picture as it is.
OFFSETS = (
    *((0, 0), (1, 0), (0, 2), (-1, 0), (0, -2), (2, 0), (0, 1), (-2, 0), (0, -1)),
    *((1, 1), (-2, 2), (-1, -1), (2, -2), (-1, 1), (2, 2), (1, -1), (-2, -2)),
    *((1, 2), (2, 1), (-1, 2), (-2, 1), (1, -2), (2, -1), (-1, -2), (-2, -1)),
)


def shifted(picture: Image.Image, run: int, model_side: int) -> Image.Image:
    """The picture moved by `OFFSETS[run]`, its edge pixels repeated where it leaves a gap.

    Offsets are in pixels of the picture, of a larger one in as many as make a pixel of the model.

    Args:
        model_side: the longer side in pixels at which the model sees it.
    """
    unit = max(1, round(max(picture.size) / model_side))
    right, down = (offset * unit for offset in OFFSETS[run])
    pixels = np.asarray(picture)
    rows = np.clip(np.arange(picture.height) - down, 0, picture.height - 1)
    columns = np.clip(np.arange(picture.width) - right, 0, picture.width - 1)
    return Image.fromarray(pixels[rows][:, columns])


def lossless(picture: Image.Image) -> bytes:
    """An encoded copy with exactly these pixels, in the format that costs least time."""
    file = io.BytesIO()
    picture.save(file, "BMP")
    return file.getvalue()
