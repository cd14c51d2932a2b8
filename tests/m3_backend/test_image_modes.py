"""Every way in which the accepted formats store a picture, decoded from real files.

What Pillow cannot write (16 bits per channel, interlacing, late metadata) is written here by hand.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m3_backend.errors import InvalidImageError
from m3_backend.image_header import read_header
from m3_backend.preprocess import decode_image
from predictor.image_features import open_view

RED, WHITE = (255, 0, 0), (255, 255, 255)
GREY, GREY_ALPHA, RGB, RGBA, PALETTE = 0, 4, 2, 6, 3  # PNG colour types


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    pixel: bytes,
    depth: int,
    colour: int,
    before: bytes = b"",
    after: bytes = b"",
    size: tuple[int, int] = (8, 6),
) -> bytes:
    """A PNG in which all pixels are alike; `pixel` fills whole bytes of a row."""
    width, height = size
    channels = {GREY: 1, GREY_ALPHA: 2, RGB: 3, RGBA: 4, PALETTE: 1}[colour]
    row = b"\0" + pixel * (width * depth * channels // 8 // len(pixel))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            before,
            chunk(b"IDAT", zlib.compress(row * height)),
            after,
            chunk(b"IEND", b""),
        )
    )


def colour_of(data: bytes) -> tuple[int, ...]:
    image = decode_image(data)
    assert image.mode == "RGB"
    assert image.size == read_header(data).displayed
    return tuple(int(value) for value in np.asarray(image)[image.height // 2, image.width // 2])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(b"\xff", 1, GREY), WHITE),
        (png(b"\xaa", 2, GREY), (170, 170, 170)),
        (png(b"\x88", 4, GREY), (136, 136, 136)),
        (png(b"\x80", 8, GREY), (128, 128, 128)),
        (png(b"\x80\x12", 16, GREY), (128, 128, 128)),
        (png(b"\x80\x12", 16, GREY, chunk(b"tRNS", b"\x80\x12")), WHITE),
        (png(b"\x80\x12", 16, GREY, chunk(b"tRNS", b"\x80\x13")), (128, 128, 128)),
        (png(b"\0", 1, GREY, chunk(b"tRNS", b"\0\0")), WHITE),
        (png(b"\x10", 8, GREY, chunk(b"tRNS", b"\0\x10")), WHITE),
        (png(b"\x10\x80", 8, GREY_ALPHA), (135, 135, 135)),
        (png(b"\x10\x00\x80\x00", 16, GREY_ALPHA), (135, 135, 135)),
        (png(bytes(RED), 8, RGB), RED),
        (png(bytes(RED), 8, RGB, chunk(b"tRNS", b"\0\xff\0\0\0\0")), WHITE),
        (png(b"\xff\xff\0\0\0\0", 16, RGB), RED),
        (png(bytes((*RED, 0)), 8, RGBA), WHITE),
        (png(bytes((*RED, 255)), 8, RGBA), RED),
        (png(b"\xff\xff\0\0\0\0\0\0", 16, RGBA), WHITE),
        (png(b"\xff", 1, PALETTE, chunk(b"PLTE", b"\0\0\0\xff\0\0")), RED),
        (png(b"\x55", 2, PALETTE, chunk(b"PLTE", b"\0\0\0\xff\0\0")), RED),
        (
            png(b"\x01", 8, PALETTE, chunk(b"PLTE", b"\0\0\0\xff\0\0") + chunk(b"tRNS", b"\xff\0")),
            WHITE,
        ),
    ],
)
def test_png(data: bytes, expected: tuple[int, ...]) -> None:
    assert np.abs(np.subtract(colour_of(data), expected)).max() <= 1


@pytest.mark.parametrize(
    ("pixel", "depth", "colour", "before", "expected"),
    [
        (b"\x10\x80", 8, GREY_ALPHA, b"", (135, 135, 135)),
        (b"\x80\x12", 16, GREY, b"", (128, 128, 128)),
        (bytes((*RED, 0)), 8, RGBA, b"", WHITE),
        (b"\x01", 8, PALETTE, chunk(b"PLTE", b"\0\0\0\xff\0\0"), RED),
    ],
)
def test_the_predictor_sees_the_same_picture(
    pixel: bytes, depth: int, colour: int, before: bytes, expected: tuple[int, ...]
) -> None:
    """What it decodes for itself is what the model will be shown."""
    view = open_view(png(pixel, depth, colour, before, size=(16, 12)))
    assert (view.width, view.height) == (16, 12)
    red, green, blue = expected
    assert abs(float(view.luma.mean()) - (0.299 * red + 0.587 * green + 0.114 * blue)) < 2


def test_cmyk_and_orientation_reach_the_predictor_too() -> None:
    data = encoded(Image.new("CMYK", (48, 32), (0, 255, 255, 0)), "JPEG", exif=exif_of(6))
    view = open_view(data)
    assert (view.width, view.height) == read_header(data).displayed == (32, 48)
    assert view.luma.shape[0] > view.luma.shape[1]
    assert abs(float(view.luma.mean()) - 76) < 12  # red


def test_interlaced_png() -> None:
    """Adam7 stores a 1 × 1 picture in its first pass alone."""
    row = zlib.compress(b"\0" + bytes(RED))
    header = struct.pack(">IIBBBBB", 1, 1, 8, RGB, 0, 0, 1)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", row), chunk(b"IEND", b"")
    assert colour_of(b"\x89PNG\r\n\x1a\n" + b"".join(parts)) == RED


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, green, blue = colour_of(data)
    assert red > 240 and green < 15 and blue < 15


def test_of_several_pictures_in_a_jpeg_the_first() -> None:
    """Phones store depth and preview pictures behind the photograph (MPO)."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert colour_of(data)[0] > 240


def test_a_transparent_gif_lies_over_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    assert colour_of(encoded(image, "GIF")) == RED
    assert colour_of(encoded(image, "GIF", transparency=1)) == WHITE


@pytest.mark.parametrize("lossless", [True, False])
def test_transparent_webp_lies_over_white(lossless: bool) -> None:
    clear = Image.new("RGBA", (8, 8), (*RED, 0))
    assert colour_of(encoded(clear, "WEBP", lossless=lossless)) == WHITE


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_composed_a_few_rows_at_a_time(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row by itself looks as the whole picture would."""
    ramp = Image.linear_gradient("L").resize((50, 40))
    image = Image.merge("RGBA", (ramp, ramp.rotate(90), ramp.rotate(180), ramp.rotate(270)))
    if mode == "LA":
        image = Image.merge("LA", (ramp, ramp.rotate(90)))
    if mode == "PA":
        image = image.quantize(64)  # a palette with an alpha value per entry
    white = Image.new("RGBA", image.size, "white")
    expected = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    monkeypatch.setattr("m3_backend.preprocess._STRIP_PIXELS", 150)  # strips of three rows
    assert np.array_equal(np.asarray(decode_image(encoded(image))), np.asarray(expected))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 128, (128, 128, 128)),
        ("P", 1, RED),
        ("RGB", RED, RED),
        ("RGBA", (*RED, 0), RED),  # Pillow writes no alpha mask, and without one there is no alpha
    ],
)
def test_bmp(mode: str, colour: Any, expected: tuple[int, ...]) -> None:
    image = Image.new(mode, (8, 6), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, *RED])
    assert colour_of(encoded(image, "BMP")) == expected


def test_a_bmp_with_an_alpha_mask_lies_over_white() -> None:
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", 108, 4, 4, 1, 32, 3, 64, 0, 0, 0, 0) + masks + bytes(52)
    head = struct.pack("<2sIHHI", b"BM", 14 + 108 + 64, 0, 0, 14 + 108)
    assert colour_of(head + info + b"\0\0\xff\0" * 16) == WHITE
    assert colour_of(head + info + b"\0\0\xff\xff" * 16) == RED


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 128, (128, 128, 128)),
        ("RGB", RED, RED),
        ("CMYK", (0, 255, 255, 0), RED),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
    ],
)
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg(mode: str, colour: Any, expected: tuple[int, ...], progressive: bool) -> None:
    data = encoded(Image.new(mode, (16, 16), colour), "JPEG", progressive=progressive, quality=95)
    assert np.abs(np.subtract(colour_of(data), expected)).max() < 12


CORNERS = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("orientation", CORNERS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_all_orientations(kind: str, orientation: int) -> None:
    """A white square in the stored picture's first corner, and where people see it."""
    image = Image.new("RGB", (48, 32))
    image.paste("white", (0, 0, 16, 16))
    data = encoded(image, kind, exif=exif_of(orientation))
    shown = decode_image(data)
    assert shown.size == read_header(data).displayed
    assert shown.size == ((48, 32) if orientation < 5 else (32, 48))
    right, bottom = CORNERS[orientation]
    at = (shown.width - 8 if right else 8, shown.height - 8 if bottom else 8)
    assert min(shown.getpixel(at)) > 240  # type: ignore[type-var]


def test_exif_behind_the_pixels_counts_too() -> None:
    late = chunk(b"eXIf", exif_of(6).removeprefix(b"Exif\0\0"))
    data = png(bytes(RED), 8, RGB, after=late)
    assert read_header(data).displayed == (6, 8)
    assert decode_image(data).size == (6, 8)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_upright(orientation: int) -> None:
    data = encoded(Image.new("RGB", (48, 32)), "JPEG", exif=exif_of(orientation))
    assert decode_image(data).size == read_header(data).displayed == (48, 32)


def test_broken_exif_is_a_damaged_file_everywhere_or_nowhere() -> None:
    """What the header's reader accepts, the decoder sees in the same size."""
    for block in (b"", b"II", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"):
        data = png(bytes(RED), 8, RGB, after=chunk(b"eXIf", block))
        try:
            size = read_header(data).displayed
        except InvalidImageError:
            with pytest.raises(InvalidImageError):
                decode_image(data)
        else:
            assert decode_image(data).size == size
