"""Bytes to pixels: formats, odd modes, orientation, hostile bytes; and the reference's padding."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from m3_backend import preprocess
from m3_backend.checkpoint import Checkpoint
from m3_backend.errors import InvalidImageError
from m3_backend.preprocess import FORMATS, decode_image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_on_the_list_decodes(kind: str) -> None:
    image = decode_image(encoded(Image.new("RGB", (20, 10), (200, 100, 50)), kind))
    assert image.mode == "RGB" and image.size == (20, 10)
    assert np.abs(np.asarray(image, int)[5, 10] - (200, 100, 50)).max() < 8


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (20, 10), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    upright = decode_image(encoded(image, exif=exif))
    assert upright.size == (10, 20)
    assert upright.getpixel((9, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode: str) -> None:
    clear = Image.new(mode, (4, 4), 0)
    assert decode_image(encoded(clear)).getpixel((1, 1)) == (255, 255, 255)


def test_a_transparent_palette_entry_lies_over_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert decode_image(encoded(image)).getpixel((1, 1)) == (10, 20, 30)
    assert decode_image(encoded(image, transparency=1)).getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bits_keep_their_brightness() -> None:
    image = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    assert decode_image(encoded(image)).getpixel((1, 1)) == (128, 128, 128)


def test_cmyk_is_converted() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = np.asarray(decode_image(encoded(image, "JPEG")), int)[8, 8]
    assert red > 200 and green < 60 and blue < 60


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((4, 4)) == (255, 0, 0)


def noise(size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def huge_png_header(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an image",
        encoded(Image.effect_noise((64, 64), 50))[:700],
        encoded(Image.effect_noise((64, 64), 50), "JPEG")[:700],
        encoded(Image.new("RGB", (8, 8)), "TIFF"),
        huge_png_header(50_000),
        huge_png_header(15_000),
    ],
    ids=["empty", "text", "cut png", "cut jpeg", "tiff", "bomb", "over our limit"],
)
def test_what_is_no_usable_image_is_refused_in_our_own_words(data: bytes) -> None:
    with pytest.raises(InvalidImageError) as caught:
        decode_image(data)
    assert caught.value.code == "invalid_image"
    cause = caught.value.__cause__
    assert cause is None or str(cause) not in caught.value.message


def test_padding_has_the_mean_colour_and_the_picture_stays_in_the_middle(
    llava15: Checkpoint,
) -> None:
    wide = Image.new("RGB", (400, 100), "white")
    pixels = llava15.preprocessing.pixels(wide)
    assert pixels.shape == (1, 3, 336, 336)
    assert np.abs(pixels[0, :, :100]).max() < 0.02  # the mean, normalised
    assert pixels[0, :, 168].min() > 1.5


@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "size", [(640, 480), (480, 641), (1001, 17), (3, 2500), (336, 336), (336, 90), (50, 50), (1, 7)]
)
def test_padding_by_strips_is_padding_as_the_reference_does_it(
    size: tuple[int, int], resample: int, llava15: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "_STRIP_PIXELS", 100_000)  # so that there are several
    own = replace(llava15.preprocessing, fit="pad", resample=resample)
    image = noise(size)
    longer = max(size)
    canvas = Image.new("RGB", (longer, longer), tuple(int(mean * 255) for mean in own.mean))
    canvas.paste(image, ((longer - size[0]) // 2, (longer - size[1]) // 2))
    assert np.array_equal(own.pixels(image), own.pixels(canvas))
    resized = np.asarray(canvas.resize((336, 336), Image.Resampling(resample)), np.float32)
    reference = (resized * np.float32(1 / 255) - np.float32(own.mean)) / np.float32(own.std)
    assert np.array_equal(own.pixels(image)[0], reference.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("fit", "size"),
    [("crop", (12_000, 1)), ("crop", (1, 12_000)), ("pad", (90_000, 1)), ("pad", (1, 90_000))],
)
def test_pictures_that_would_fill_the_memory_are_refused(
    fit: Literal["pad", "crop"], size: tuple[int, int], llava15: Checkpoint
) -> None:
    with pytest.raises(InvalidImageError, match="elongated"):
        replace(llava15.preprocessing, fit=fit).pixels(Image.new("RGB", size))


def test_padding_never_holds_the_square(
    llava15: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12,000 × 12,000 pixels would be 430 MB."""
    image, largest, new = noise((12_000, 20)), 0, Image.new

    def measured(mode: str, size: tuple[int, int], *colour: Any) -> Image.Image:
        nonlocal largest
        largest = max(largest, size[0] * size[1])
        return new(mode, size, *colour)

    monkeypatch.setattr(Image, "new", measured)
    replace(llava15.preprocessing, fit="pad").pixels(image)
    assert 0 < largest <= 12_000 * 400


def test_cropping_keeps_the_middle_of_the_longer_side(llava15: Checkpoint) -> None:
    image = Image.new("RGB", (800, 200), "black")
    image.paste("white", (300, 0, 500, 200))
    cropped = replace(llava15.preprocessing, fit="crop").pixels(image)
    assert cropped.shape == (1, 3, 336, 336)
    assert cropped[0, :, :, 5:-5].min() > 1.5


def test_the_identity_names_everything_that_decides_pixels(llava15: Checkpoint) -> None:
    own = llava15.preprocessing
    variants = [own, replace(own, fit="crop"), replace(own, side=224), replace(own, resample=2)]
    variants.append(replace(own, mean=(0.5, 0.5, 0.5)))
    assert len({variant.identity for variant in variants}) == len(variants)
