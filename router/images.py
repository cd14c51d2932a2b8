"""An image part's URL → ImageInput, judged by its header alone.

Nothing here decodes a pixel: caps hold before a decoder is let loose on a file. Whether the pixels
are whole is found by whoever decodes them first, the predictor or the replica; both raise
InvalidImageError.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from struct import unpack_from

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from m3_backend.errors import InvalidImageError, InvalidRequestError
from m3_backend.messages import ImageInput, digest_of
from router.config import ImageLimits
from router.errors import Code

TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)  # EXIF: width and height change places


def read_image(url: str, limits: ImageLimits, param: str) -> ImageInput:
    """The image behind an `image_url.url`.

    Args:
        param: the name of the field, for error messages.

    Raises:
        InvalidRequestError: `remote_images_disabled`, `image_too_large`,
            `unsupported_image_format`.
        InvalidImageError: not a base64 data URL, or a header that makes no sense.
    """
    data = _decode_data_url(url, limits, param)
    width, height = _size(data, param)
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise InvalidRequestError(
            f"The image has {width}×{height} pixels; at most {limits.max_pixels:,} and "
            f"{limits.max_side:,} on a side are allowed. Scale it down.",
            code=Code.IMAGE_TOO_LARGE,
            param=param,
        )
    return ImageInput(data, digest_of(data), width, height)


def _decode_data_url(url: str, limits: ImageLimits, param: str) -> bytes:
    scheme = url[:8].lower()
    if scheme.startswith(("http:", "https:")):
        raise InvalidRequestError(
            "Images are not fetched from remote URLs here; send a data URL.",
            code=Code.REMOTE_IMAGES_DISABLED,
            param=param,
        )
    head, comma, payload = url.partition(",")
    if not (comma and scheme.startswith("data:") and head.lower().endswith(";base64")):
        raise InvalidImageError(
            "The image is not a data URL; send 'data:image/png;base64,…'.", param=param
        )
    if len(payload) // 4 * 3 > limits.max_bytes + 2:  # base64 padding hides up to two bytes
        raise InvalidRequestError(
            f"The image has more than {limits.max_bytes:,} bytes; compress it or scale it down.",
            code=Code.IMAGE_TOO_LARGE,
            param=param,
        )
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except ValueError:
        raise InvalidImageError("The image's data is not valid base64.", param=param) from None


@dataclass(frozen=True, slots=True)
class _Format:
    """An accepted file format: how it begins and how its displayed size is read."""

    prefix: bytes
    size: Callable[[bytes], tuple[int, int]]
    infix: bytes = b""  # at byte 8, for RIFF containers

    def matches(self, data: bytes) -> bool:
        return data.startswith(self.prefix) and data[8:12].startswith(self.infix)


def _size(data: bytes, param: str) -> tuple[int, int]:
    """Width and height as displayed, from the header."""
    for known in _FORMATS:
        if known.matches(data):
            break
    else:
        raise InvalidRequestError(
            "The image is not a JPEG, PNG, WebP, GIF or BMP file.",
            code=Code.UNSUPPORTED_IMAGE_FORMAT,
            param=param,
        )
    try:
        width, height = known.size(data)
    except Exception:
        # A header can break a parser in many ways (Pillow alone raises six kinds); all mean the
        # same here.
        width = height = 0
    if width < 1 or height < 1:
        raise InvalidImageError("The image file is damaged.", param=param)
    return width, height


def _pillow_size(reader: Callable[[BytesIO], Image.Image]) -> Callable[[bytes], tuple[int, int]]:
    """Reads the header with one Pillow class. `Image.open` would judge the size before we can."""

    def size(data: bytes) -> tuple[int, int]:
        with reader(BytesIO(data)) as image:
            # The base class's getexif: PNG's own decodes the pixels in search of a late EXIF chunk.
            return _displayed(image.size, Image.Image.getexif(image))

    return size


def _gif_size(data: bytes) -> tuple[int, int]:
    """The screen, grown to hold the first frame, as Pillow shows it.

    Reads the blocks (GIF89a, 1990): Pillow's reader allocates the frame when it opens a file.
    """
    flags, at = data[10], 13
    if flags & 0x80:  # a global colour table
        at += 3 << (flags & 7) + 1
    while data[at] == 0x21:  # an extension: label, then sub-blocks up to an empty one
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    if data[at] != 0x2C:
        raise ValueError("no frame")
    screen_width, screen_height = unpack_from("<HH", data, 6)
    left, top, width, height = unpack_from("<HHHH", data, at + 1)
    return max(screen_width, left + width), max(screen_height, top + height)


def _webp_size(data: bytes) -> tuple[int, int]:
    """The canvas, turned as EXIF says.

    Reads the container (RFC 9649): Pillow's reader allocates the canvas when it opens a file.
    """
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise ValueError("the file ends early")
    kind, body = data[12:16], data[20:]
    if kind == b"VP8X":
        size = (int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1)
        return _displayed(size, _webp_exif(data))
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no image chunk")


def _webp_exif(data: bytes) -> Image.Exif:
    exif = Image.Exif()
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            exif.load(data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return exif


def _displayed(size: tuple[int, int], exif: Image.Exif) -> tuple[int, int]:
    width, height = size
    if exif.get(ExifTag.Orientation) in TRANSPOSED_ORIENTATIONS:
        return height, width
    return width, height


_FORMATS = (
    _Format(b"\xff\xd8\xff", _pillow_size(JpegImageFile)),
    _Format(b"\x89PNG\r\n\x1a\n", _pillow_size(PngImageFile)),
    _Format(b"RIFF", _webp_size, infix=b"WEBP"),
    _Format(b"GIF87a", _gif_size),
    _Format(b"GIF89a", _gif_size),
    _Format(b"BM", _pillow_size(BmpImageFile)),
)
