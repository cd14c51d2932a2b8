"""Encoded image → normalised pixels, as each checkpoint's reference implementation computes them.

Three ways of fitting a picture to the vision tower's square input:

    pad    LLaVA-1.5: pad to a square with the mean colour, then resize
    crop   CLIP: resize the shorter side, then cut the centre
    tiles  LLaVA-NeXT: a squashed thumbnail, then tiles of a black-padded canvas
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from m3_backend.errors import InvalidImageError
from m3_backend.image_header import read_header
from m3_backend.scales import Tiling

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = (
    100_000_000  # the router's own limit is lower; this one guards a replica used without it
)

_UPRIGHT = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_MAX_CANVAS = 4 * MAX_PIXELS  # a canvas takes no memory, but resizing this one takes seconds
_STRIP_PIXELS = 1 << 22

_REVISION = 1  # part of the processor identity: raise it when the same bytes give other pixels

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ImagePreprocessing:
    """How a checkpoint wants its pictures.

    Args:
        fit: see the module's docstring.
        side: input side of the vision tower in pixels.
        mean, std: per channel, of values in [0, 1].
        resample: Pillow's filter number (3 is bicubic).
        tiling: the canvases, for `tiles`.
    """

    fit: Literal["pad", "crop", "tiles"]
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int
    tiling: Tiling | None = None

    @property
    def identity(self) -> str:
        """SHA-256 of everything that decides the pixels; part of every feature's cache key."""
        settings: dict[str, Any] = asdict(self) | {"revision": _REVISION}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def pixels(self, image: Image.Image) -> Pixels:
        """An RGB picture as float32 [tiles, 3, side, side]; one tile unless `fit` is "tiles".

        Raises:
            InvalidImageError: it is so much longer than wide that fitting it takes too much memory.
        """
        if self.fit == "tiles":
            views = self._tiles(image)
        elif self.fit == "pad":
            views = [self._padded(image)]
        else:
            views = [self._centre(image)]
        stacked = np.stack([np.asarray(view) for view in views])
        pixels = stacked.transpose(0, 3, 1, 2).astype(np.float32, order="C")
        pixels *= np.float32(1 / 255)  # in place: new arrays of this size cost more than the sums
        pixels -= np.array(self.mean, np.float32)[:, None, None]
        pixels /= np.array(self.std, np.float32)[:, None, None]
        return pixels

    @property
    def _filter(self) -> Image.Resampling:
        return Image.Resampling(self.resample)

    def _padded(self, image: Image.Image) -> Image.Image:
        """The square canvas of the longer side, resized, without that canvas ever being there.

        Pillow resizes rows first, rounds them to eight bits and resizes columns then. So the rows
        can be padded and resized a few at a time, and those without picture are known: the result
        is the same to the bit.
        """
        width, height = image.size
        longer = max(width, height)
        if longer**2 > _MAX_CANVAS:
            raise _too_elongated(image)
        left, top = (longer - width) // 2, (longer - height) // 2
        colour = tuple(int(channel * 255) for channel in self.mean)
        rows = Image.new("RGB", (self.side, longer), colour)
        step = max(1, _STRIP_PIXELS // longer)
        for first in range(0, height, step):
            last = min(first + step, height)
            strip = Image.new("RGB", (longer, last - first), colour)
            strip.paste(image.crop((0, first, width, last)), (left, 0))
            rows.paste(strip.resize((self.side, last - first), self._filter), (0, top + first))
        return rows.resize((self.side, self.side), self._filter)

    def _centre(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        shorter = min(width, height)
        size = int(self.side * width / shorter), int(self.side * height / shorter)
        if size[0] * size[1] > MAX_PIXELS:
            raise _too_elongated(image)
        resized = image.resize(size, self._filter)
        left, top = (resized.width - self.side) // 2, (resized.height - self.side) // 2
        return resized.crop((left, top, left + self.side, top + self.side))

    def _tiles(self, image: Image.Image) -> list[Image.Image]:
        assert self.tiling is not None
        canvas_height, canvas_width = self.tiling.canvas(*image.size)
        across, down = canvas_width / image.width, canvas_height / image.height
        if across < down:
            size = canvas_width, min(math.ceil(image.height * across), canvas_height)
        else:
            size = min(math.ceil(image.width * down), canvas_width), canvas_height
        canvas = Image.new("RGB", (canvas_width, canvas_height))
        corner = (canvas_width - size[0]) // 2, (canvas_height - size[1]) // 2
        canvas.paste(image.resize(size, self._filter), corner)
        thumbnail = image.resize((self.side, self.side), self._filter)
        return [thumbnail] + [
            canvas.crop((left, top, left + self.side, top + self.side))
            for top in range(0, canvas_height, self.side)
            for left in range(0, canvas_width, self.side)
        ]


def decode_image(data: bytes) -> Image.Image:
    """The picture in `data` as displayed: first frame, upright, RGB, transparency over white.

    White, as in a browser: most pictures with transparency are drawings and logos for light pages,
    and to drop the alpha channel would show whatever their invisible pixels hold, mostly black on
    black. Colour profiles are not applied, as in the models' training.

    Raises:
        InvalidImageError: another format, damaged or too large. What the decoder said stays out.
    """
    try:
        header = read_header(data)
        width, height = header.stored
        if width * height <= MAX_PIXELS:
            image = Image.open(io.BytesIO(data), formats=(header.kind,))
            if image.size != header.stored:
                raise ValueError("the decoder sees another size than was judged")
            image.load()
            turn = _UPRIGHT.get(header.orientation)
            return _to_rgb(image if turn is None else image.transpose(turn))
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise InvalidImageError(
            f"The image cannot be decoded; send a complete {', '.join(FORMATS)} file."
        ) from error
    raise InvalidImageError(f"The image has {width * height} pixels; the limit is {MAX_PIXELS}.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.has_transparency_data:
        return _over_white(image)
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """A few rows at a time: Pillow composes without letting go of the interpreter, and a picture of
    50 million pixels would stop all of a process for a quarter of a second.
    """
    flat = Image.new("RGB", image.size)
    step = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, step):
        strip = image.crop((0, top, image.width, min(top + step, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        flat.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return flat


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey levels of 16 bits, which Pillow's own conversion would clip at 255."""
    levels = np.asarray(image)
    grey = (levels >> 8).astype(np.uint8)
    if "transparency" in image.info:  # one level, as PNG's tRNS chunk names it
        grey[levels == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def _too_elongated(image: Image.Image) -> InvalidImageError:
    return InvalidImageError(
        f"The image's sides, {image.width}×{image.height} pixels, are too unequal for this model; "
        "cut it to a less elongated shape."
    )
