"""The dozen colour names people use, for pixels and for questions.

"What is written in orange?" needs as many tokens as the orange letters do, whatever else is in the
picture; this module is where the two meet.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
from numpy.typing import NDArray

# Typical shades of each name, sRGB. A pixel has the name of the nearest shade in CIELAB.
_SHADES = {
    "black": ("000000", "202020"),
    "white": ("ffffff", "eeeeee"),
    "grey": ("808080", "555555", "b4b4b4"),
    "red": ("d81e1e", "a01010", "f04040"),
    "orange": ("ff8c00", "f0a050", "e06a10"),
    "yellow": ("f5e020", "ffff60", "d8c020"),
    "green": ("209030", "105020", "60d060", "60ff40"),
    "cyan": ("20c8d0", "80e8f0", "109098"),
    "blue": ("2040d0", "101880", "5090f0"),
    "purple": ("8030a8", "4b0a80", "b080e0"),
    "pink": ("ff90b8", "f050a0", "ffc8d8"),
    "brown": ("804818", "583010", "a87850"),
}
COLOURS = tuple(_SHADES)

_SYNONYMS = {"gray": "grey", "violet": "purple", "turquoise": "cyan", "magenta": "pink"}
_WORD = re.compile(rf"\b({'|'.join((*COLOURS, *_SYNONYMS))})\b")

LEVELS = 16  # per plane of a code


def colour_codes(planes: NDArray[np.float32]) -> NDArray[np.int16]:
    """One of 16³ codes per pixel of 3×height×width luma, blue and red difference in [0, 255]."""
    luma, blue, red = planes.astype(np.int16) >> 4
    codes: NDArray[np.int16] = luma << 8 | blue << 4 | red
    return codes


@cache
def name_of_code() -> NDArray[np.int8]:
    """The index in `COLOURS` of each code's colour."""
    shades = [(name, shade) for name, each in enumerate(_SHADES.values()) for shade in each]
    names = np.array([name for name, _ in shades], dtype=np.int8)
    known = _lab(np.array([list(bytes.fromhex(shade)) for _, shade in shades], np.float64))
    levels = (np.arange(LEVELS) + 0.5) * (256 / LEVELS)
    luma, blue, red = np.meshgrid(levels, levels - 128, levels - 128, indexing="ij")
    pixels = np.stack(  # JFIF
        (luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue), axis=-1
    )
    codes = _lab(np.clip(pixels, 0, 255).reshape(-1, 3))
    distances = ((codes[:, None] - known) ** 2).sum(-1)
    nearest: NDArray[np.int8] = names[distances.argmin(axis=1)]
    return nearest


def named_colours(text: str) -> frozenset[int]:
    """Indices in `COLOURS` of the colours that a lower-case text names."""
    found = (_SYNONYMS.get(word, word) for word in _WORD.findall(text))
    return frozenset(COLOURS.index(word) for word in found)


def _lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB in [0, 255] to CIELAB (D65), colours along the last axis."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.moveaxis(linear @ to_xyz.T / (0.9505, 1.0, 1.089), -1, 0)
    x, y, z = (np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116) for t in (x, y, z))
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)
