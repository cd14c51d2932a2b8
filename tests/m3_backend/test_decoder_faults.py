"""Pictures that make a decoder throw, on both sides of the seam: the predictor and the replica.

Whatever it throws, the caller hears `invalid_image`, and nothing of what the decoder said.
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from m3_backend.engine import TorchEngine
from m3_backend.errors import InvalidImageError
from m3_backend.image_header import read_header
from m3_backend.messages import GenerationRequest, ImageInput, ImageSlot, Sampling, Turn, digest_of
from m3_backend.preprocess import ImagePreprocessing, decode_image
from predictor.features import image_vector
from router.errors import error_body

SECRET = "0xdeadbeef in libjpeg"
THROWN: list[Exception] = [
    MemoryError(SECRET),
    RecursionError(SECRET),
    struct.error(SECRET),
    SyntaxError(SECRET),
    OSError(SECRET),
    OverflowError(SECRET),
    IndexError(SECRET),
    KeyError(SECRET),
    AssertionError(SECRET),
    ZeroDivisionError(SECRET),
    Image.DecompressionBombError(SECRET),
    type("FromAPluginError", (Exception,), {})(SECRET),
]
KINDS = {
    "JPEG": ({}, {"progressive": True}, {"quality": 30}),
    "PNG": ({}, {"compress_level": 0}),
    "WEBP": ({}, {"lossless": True}),
    "GIF": ({},),
    "BMP": ({},),
}
PADDED = ImagePreprocessing("pad", 336, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resample=3)


def as_replica(data: bytes) -> None:
    PADDED.pixels(decode_image(data))


READERS: list[Callable[[bytes], Any]] = [as_replica, image_vector]


def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Flipped, overwritten, repeated, cut out, cut off: a few of these at once."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        at, length = generator.randrange(len(changed)), generator.choice((1, 1, 2, 4, 32))
        match generator.randrange(6):
            case 0:
                changed[at] ^= 1 << generator.randrange(8)
            case 1:
                changed[at : at + length] = generator.randbytes(length)
            case 2:
                changed[at : at + length] = generator.choice((b"\0", b"\xff", b"\x7f")) * length
            case 3:
                changed[at:at] = changed[at : at + length]
            case 4:
                del changed[at : at + length]
            case 5:
                del changed[max(at, 16) :]
        if len(changed) < 17:
            return bytes(data[:17])
    return bytes(changed)


def assert_harmless(error: InvalidImageError) -> None:
    assert (error.status, error.code) == (400, "invalid_image")
    assert SECRET not in str(error_body(error))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("read", READERS, ids=["replica", "predictor"])
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_pictures_or_the_callers_mistake(
    kind: str, read: Callable[[bytes], Any]
) -> None:
    generator = random.Random(kind)
    originals = [encoded(kind, **options) for options in KINDS[kind]]
    outcomes = set()
    for _ in range(400):
        data = mutated(generator.choice(originals), generator)
        try:
            # Only what has passed the router's look at the header comes to a decoder.
            width, height = read_header(data).displayed
        except InvalidImageError:
            continue
        if width * height > 2_000_000:  # the router's own limits, tested elsewhere
            continue
        try:
            read(data)
            outcomes.add("picture")
        except InvalidImageError as error:
            assert_harmless(error)
            outcomes.add("refused")
    assert outcomes == {"picture", "refused"}


@pytest.mark.parametrize("read", READERS, ids=["replica", "predictor"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("thrown", THROWN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["open", "load"])
def test_whatever_a_decoder_throws(
    where: str,
    thrown: Exception,
    kind: str,
    read: Callable[[bytes], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def throw(*_: Any, **__: Any) -> Any:
        raise thrown

    data = encoded(kind)
    monkeypatch.setattr(
        *((Image, "open") if where == "open" else (ImageFile.ImageFile, "load")), throw
    )
    with pytest.raises(InvalidImageError) as caught:
        read(data)
    assert_harmless(caught.value)


@pytest.mark.parametrize("thrown", THROWN[:4], ids=lambda error: type(error).__name__)
async def test_an_engine_outlives_them(thrown: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them counts as a failure of the device, which ends an engine."""
    engine = TorchEngine.open("m3-tiny")
    data = encoded("PNG")
    image = ImageInput(data, digest_of(data), 32, 24)
    question = Turn("user", (ImageSlot(0), "What is this?"))
    request = GenerationRequest("id", (question,), (image,), (9,), Sampling(max_tokens=2))

    def throw(*_: Any, **__: Any) -> Any:
        raise thrown

    try:
        with monkeypatch.context() as broken:
            broken.setattr(ImageFile.ImageFile, "load", throw)
            for _ in range(5):
                with pytest.raises(InvalidImageError) as caught:
                    async for _ in engine.generate(request):
                        pass
                assert_harmless(caught.value)
        assert len([event async for event in engine.generate(request)]) > 1
    finally:
        engine.close()
