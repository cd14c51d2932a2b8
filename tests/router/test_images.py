from __future__ import annotations

import base64
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m3_backend.errors import ServiceError
from m3_backend.messages import ImageInput, digest_of
from router.config import ImageLimits
from router.images import read_image
from tests.router.support import data_url, picture, png_header

LIMITS = ImageLimits()


def read(data: bytes, limits: ImageLimits = LIMITS) -> ImageInput:
    return read_image(data_url(data), limits, "image")


def code_of(url: str, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ServiceError) as caught:
        read_image(url, limits, "image")
    assert caught.value.status == 400
    assert caught.value.param == "image"
    return str(caught.value.code)


def animated(kind: str) -> bytes:
    file = BytesIO()
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        picture("PNG"),
        picture("JPEG"),
        picture("JPEG", progressive=True),
        picture("BMP"),
        picture("GIF"),
        picture("WEBP"),
        picture("WEBP", lossless=True),
        animated("GIF"),
        animated("WEBP"),
        picture("GIF", comment=b"x" * 300),
    ],
    ids=("png jpeg progressive bmp gif webp vp8l gif-frames webp-frames gif-comment".split()),
)
def test_accepted_formats(data: bytes) -> None:
    image = read(data)
    assert (image.width, image.height) == (40, 30)
    assert image.data == data
    assert image.digest == digest_of(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (40, 30)), (3, (40, 30)), (6, (30, 40))])
def test_size_is_as_displayed(kind: str, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read(picture(kind, exif=exif.tobytes()))
    assert (image.width, image.height) == size


def test_of_many_exif_chunks_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten megabytes of them would keep a planning thread busy for half a minute."""
    loaded: list[bytes] = []
    load = Image.Exif.load

    def counting(exif: Image.Exif, data: bytes) -> None:
        loaded.append(data)
        load(exif, data)

    monkeypatch.setattr(Image.Exif, "load", counting)
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    whole = picture("PNG")
    end = whole.index(b"IEND") - 4
    image = read(whole[:end] + chunk * 100 + whole[end:])
    assert (image.width, image.height) == (30, 40)
    assert len(loaded) <= 2  # Pillow's own look at the header, and ours


def scans_repeated(count: int) -> bytes:
    """A progressive JPEG whose last scan is there `count` times: three bytes of work for a decoder
    that has to go through all of the picture for each.
    """
    whole = picture("JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + whole[-2:]


def gif_extensions(count: int) -> bytes:
    whole = picture("GIF")
    colours = 13 + (3 << (whole[10] & 7) + 1)
    return whole[:colours] + b"\x21\xfe\x01a\x00" * count + whole[colours:]


def webp_chunks(count: int) -> bytes:
    whole = picture("WEBP", exif=Image.Exif().tobytes())
    body = whole[8:30] + b"junk\0\0\0\0" * count + whole[30:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def png_chunks(count: int) -> bytes:
    whole = picture("PNG")
    return whole[:33] + struct.pack(">I4sI", 0, b"teSt", zlib.crc32(b"teSt")) * count + whole[33:]


def jpeg_segments(count: int, segment: bytes = b"\xff\xfe\x00\x02") -> bytes:
    whole = picture("JPEG")
    return whole[:2] + segment * count + whole[2:]


@pytest.mark.parametrize(
    "make", [scans_repeated, gif_extensions, webp_chunks, png_chunks, jpeg_segments]
)
def test_a_small_file_that_is_much_work_is_refused(make: Callable[[int], bytes]) -> None:
    """340 kB of scans kept a decoder busy for half a minute, ten megabytes of segments for two
    seconds; real files have a dozen scans and some hundred blocks.
    """
    image = read(make(20))
    assert (image.width, image.height) == (40, 30)
    assert code_of(data_url(make(20_001))) == "invalid_image"


@pytest.mark.parametrize("junk", [b"\xff", b"\xff\x01", b"\xff\xd0"])
def test_junk_before_a_jpegs_first_scan_is_stepped_over_but_not_for_long(junk: bytes) -> None:
    assert code_of(data_url(jpeg_segments(20_001, junk))) == "invalid_image"


@pytest.mark.filterwarnings("ignore:Tag data larger")
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_whose_values_overlap_takes_no_more_memory_than_it_has_bytes(kind: str) -> None:
    """Each of these entries says that it is the whole block; Pillow must not copy it for each."""
    size, entries = 200_000, 200
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", entries)
    head += b"".join(struct.pack("<HHII", 0x9000 + n, 7, size, 0) for n in range(entries))
    block = head + bytes(size + 100 - len(head))
    whole = picture(kind)
    if kind == "PNG":
        chunk = struct.pack(">I", len(block)) + b"eXIf" + block
        at, pieces = whole.index(b"IEND") - 4, [chunk + struct.pack(">I", zlib.crc32(chunk[4:]))]
    else:  # Pillow joins the segments
        parts = [block[start : start + 65_000] for start in range(0, len(block), 65_000)]
        segments = [b"Exif\0\0" + part for part in parts]
        at = 2
        pieces = [b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in segments]
    hostile = whole[:at] + b"".join(pieces) + whole[at:]
    url = data_url(hostile)
    tracemalloc.start()
    try:
        image = read_image(url, LIMITS, "image")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (image.width, image.height) == (40, 30)
    assert peak < 20 * size  # all copies would be two hundred times


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM"])
def test_other_formats_are_refused_whatever_they_claim(kind: str) -> None:
    assert code_of(data_url(picture(kind), "image/png")) == "unsupported_image_format"


def test_what_is_no_image_is_refused() -> None:
    assert code_of(data_url(b"hello, this is text")) == "unsupported_image_format"
    assert code_of(data_url(b"")) == "unsupported_image_format"


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"BM",
        b"RIFF\x00\x00\x00\x00WEBP",
        picture("PNG")[:20],
        picture("JPEG")[:30],
        picture("WEBP")[:-1],
        png_header(0, 10),
    ],
)
def test_damaged_header(data: bytes) -> None:
    assert code_of(data_url(data)) == "invalid_image"


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 1), (12_001, 10), (10_000, 10_000)])
def test_too_many_pixels_by_the_header(size: tuple[int, int]) -> None:
    assert code_of(data_url(png_header(*size))) == "image_too_large"


def test_a_webp_canvas_is_judged_before_it_is_allocated() -> None:
    vp8x = bytes(4) + (16_382).to_bytes(3, "little") * 2
    data = b"WEBPVP8X" + len(vp8x).to_bytes(4, "little") + vp8x
    assert code_of(data_url(b"RIFF" + len(data).to_bytes(4, "little") + data)) == "image_too_large"


def test_a_gif_frame_is_judged_before_it_is_allocated() -> None:
    screen = struct.pack("<6sHHBBB", b"GIF89a", 1, 1, 0, 0, 0)
    control = b"\x21\xf9\x04\x08\0\0\0\0"  # dispose of the frame after showing it
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, 13_000, 13_000, 0)
    assert code_of(data_url(screen + control + frame)) == "image_too_large"


def test_a_gif_frame_may_be_larger_than_its_screen() -> None:
    data = bytearray(picture("GIF"))
    data[6:10] = struct.pack("<HH", 5, 50)
    image = read(bytes(data))
    with Image.open(BytesIO(data)) as shown:
        assert (image.width, image.height) == shown.size == (40, 50)


def test_byte_limit_is_exact() -> None:
    for data in (picture(size=(s, s)) for s in (20, 21, 22, 23, 24)):
        read(data, ImageLimits(max_bytes=len(data)))
        url = data_url(data + bytes(3))
        assert code_of(url, ImageLimits(max_bytes=len(data))) == "image_too_large"


@pytest.mark.parametrize(
    "url", ["http://example.org/a.png", "https://example.org/a.png", "HTTPS://example.org/a.png"]
)
def test_remote_images_are_refused(url: str) -> None:
    assert code_of(url) == "remote_images_disabled"


PNG = base64.b64encode(picture()).decode()


@pytest.mark.parametrize(
    "url",
    [
        "",
        PNG,
        "file:///etc/passwd",
        "data:image/png,plain",
        "data:image/png;base64",
        f"data:image/png;base64,{PNG[:-1]}",
        f"data:image/png;base64,{PNG[:40]}\n{PNG[40:]}",
        f"data:image/png;base64,{PNG[:40]}-{PNG[41:]}",
        f"data:image/png;base64,{PNG}=",
        "data:image/png;base64,ünï",
    ],
)
def test_not_a_base64_data_url(url: str) -> None:
    assert code_of(url) == "invalid_image"


@given(
    prefix=st.sampled_from(
        [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF\x20\0\0\0WEBPVP8 ", b""]
    ),
    rest=st.binary(max_size=200),
)
def test_any_bytes_give_an_image_or_a_client_error(prefix: bytes, rest: bytes) -> None:
    try:
        image = read(prefix + rest)
    except ServiceError as error:
        assert error.status == 400
    else:
        assert image.width * image.height <= LIMITS.max_pixels


@given(cut=st.integers(min_value=1), flip=st.integers(min_value=0), bit=st.integers(0, 7))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_broken_files_give_an_image_or_a_client_error(
    kind: str, cut: int, flip: int, bit: int
) -> None:
    data = bytearray(picture(kind))
    data[flip % len(data)] ^= 1 << bit
    del data[cut % len(data) + 1 :]
    try:
        read(bytes(data))
    except ServiceError as error:
        assert error.status == 400
