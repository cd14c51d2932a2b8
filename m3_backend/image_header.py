"""What an image file says about itself, read without decoding a pixel.

Caps on pixels must hold before a decoder is let loose on a file, and whoever decodes it later must
see the picture with the very size and orientation that were judged here. So both read this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from struct import unpack_from
from typing import TypeVar

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base as ExifTag
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from m3_backend.errors import InvalidImageError

# What a decoder does again for every one of them, and real files hold few. A JPEG of 50 million
# pixels takes 15 ms for each scan, which may be 170 bytes long; blocks are stepped over one by one.
MOST_SCANS = 100
MOST_BLOCKS = 20_000

TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations in which width and height change places

_Size = tuple[int, int]
_Block = TypeVar("_Block")


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """An accepted file.

    Args:
        kind: Pillow's name of the format.
        stored: width and height of the pixels in the file; of animations, the canvas.
        orientation: EXIF's, 1 to 8: how the stored pixels have to be turned.
    """

    kind: str
    stored: _Size
    orientation: int

    @property
    def displayed(self) -> _Size:
        """Width and height as people see the picture."""
        width, height = self.stored
        return (height, width) if self.orientation in TRANSPOSED else (width, height)


def read_header(data: bytes) -> ImageHeader:
    """The header of a JPEG, PNG, WebP, GIF or BMP file, told by its bytes.

    Raises:
        InvalidImageError: `unsupported_image_format`, or a header that makes no sense.
    """
    for known in _FORMATS:
        if known.matches(data):
            break
    else:
        raise InvalidImageError(
            "The image is not a JPEG, PNG, WebP, GIF or BMP file.", code="unsupported_image_format"
        )
    try:
        stored, orientation = known.read(data)
    except Exception:
        # A header can break a parser in many ways (Pillow alone raises six kinds); all mean the
        # same here.
        stored, orientation = (0, 0), 1
    if min(stored) < 1:
        raise InvalidImageError("The image file is damaged.")
    return ImageHeader(known.kind, stored, orientation if 1 <= orientation <= 8 else 1)


@dataclass(frozen=True, slots=True)
class _Format:
    """An accepted file format: how it begins, and how its size and orientation are read."""

    kind: str
    prefix: bytes
    read: Callable[[bytes], tuple[_Size, int]]
    infix: bytes = b""  # at byte 8, for RIFF containers

    def matches(self, data: bytes) -> bool:
        return data.startswith(self.prefix) and data[8:12].startswith(self.infix)


def _with_pillow(reader: Callable[[BytesIO], Image.Image]) -> Callable[[bytes], tuple[_Size, int]]:
    """Reads the header with one Pillow class. `Image.open` would judge the size before we can."""

    def read(data: bytes) -> tuple[_Size, int]:
        with reader(BytesIO(data)) as image:
            # The base class's getexif: PNG's own decodes the pixels in search of a late EXIF chunk.
            return image.size, _orientation(Image.Image.getexif(image))

    return read


def _jpeg(data: bytes) -> tuple[_Size, int]:
    """Pillow's header, of a file that no decoder has to work through for long."""
    if data.count(b"\xff\xda") > MOST_SCANS:
        raise ValueError("too many scans")
    _bounded(_jpeg_segments(data))
    return _with_pillow(JpegImageFile)(data)


def _jpeg_segments(data: bytes) -> Iterator[int]:
    """Where each segment before the first scan begins, and each byte that belongs to none."""
    at = 2
    while at + 4 <= len(data):
        yield at
        if data[at] != 0xFF or data[at + 1] in (0x00, 0xFF):
            at += 1
        elif data[at + 1] == 0xDA:
            return
        elif data[at + 1] == 0x01 or 0xD0 <= data[at + 1] <= 0xD9:  # markers that stand alone
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))


def _bounded(blocks: Iterator[_Block]) -> list[_Block]:
    """All of them. Raises ValueError if there are more than any real file has."""
    found = list(islice(blocks, MOST_BLOCKS + 1))
    if len(found) > MOST_BLOCKS:
        raise ValueError("too many blocks")
    return found


def _png(data: bytes) -> tuple[_Size, int]:
    """Pillow's header; EXIF may also stand behind the pixels (PNG, 3rd edition, 5.6)."""
    chunks = _bounded(_png_chunks(data))
    size, orientation = _with_pillow(PngImageFile)(data)
    blocks = [(start, length) for start, length, kind in chunks if kind == b"eXIf"]
    if blocks:  # one is allowed; a file may hold hundreds of thousands, and each takes its time
        start, length = blocks[-1]
        orientation = _orientation(_exif(data[start : start + length]))
    return size, orientation


def _png_chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Start and length of every chunk's content, and its type."""
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield at + 8, length, data[at + 4 : at + 8]
        at += length + 12


def _gif(data: bytes) -> tuple[_Size, int]:
    """The screen, grown to hold the first frame, as Pillow shows it.

    Reads the blocks (GIF89a, 1990): Pillow's reader allocates the frame when it opens a file.
    """
    flags, at = data[10], 13
    if flags & 0x80:  # a global colour table
        at += 3 << (flags & 7) + 1
    blocks = 0
    while data[at] == 0x21:  # an extension: label, then sub-blocks up to an empty one
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
        blocks += 1
        if blocks > MOST_BLOCKS:
            raise ValueError("too many blocks")
    if data[at] != 0x2C:
        raise ValueError("no frame")
    screen_width, screen_height = unpack_from("<HH", data, 6)
    left, top, width, height = unpack_from("<HHHH", data, at + 1)
    return (max(screen_width, left + width), max(screen_height, top + height)), 1


def _webp(data: bytes) -> tuple[_Size, int]:
    """The canvas, and EXIF's orientation.

    Reads the container (RFC 9649): Pillow's reader allocates the canvas when it opens a file.
    """
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise ValueError("the file ends early")
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        size = (int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1)
        return size, _webp_orientation(data)
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), 1
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
        return (width & 0x3FFF, height & 0x3FFF), 1
    raise ValueError("no image chunk")


def _webp_orientation(data: bytes) -> int:
    for start, length, kind in _bounded(_webp_chunks(data)):
        if kind == b"EXIF":
            return _orientation(_exif(data[start : start + length]))
    return 1


def _webp_chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Start and length of every chunk's content, and its type."""
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield at + 8, length, data[at : at + 4]
        at += 8 + length + length % 2


def _exif(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(block)
    return exif


def _orientation(exif: Image.Exif) -> int:
    value = exif.get(ExifTag.Orientation, 1)
    return value if isinstance(value, int) else 1


_FORMATS = (
    _Format("JPEG", b"\xff\xd8\xff", _jpeg),
    _Format("PNG", b"\x89PNG\r\n\x1a\n", _png),
    _Format("WEBP", b"RIFF", _webp, infix=b"WEBP"),
    _Format("GIF", b"GIF87a", _gif),
    _Format("GIF", b"GIF89a", _gif),
    _Format("BMP", b"BM", _with_pillow(BmpImageFile)),
)
