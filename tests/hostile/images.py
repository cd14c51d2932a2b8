"""Files that claim to be pictures and were made to hurt whoever opens them, from a seed."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    image = image or Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 2, data: bytes = b""
) -> bytes:
    """A PNG of any promise; `data` is what its pixels are inflated from."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG_MAGIC + head + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def images(seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every hostile picture."""
    chance = random.Random(seed)
    yield from _truncated()
    yield from _flipped(chance)
    yield from _noise(chance)
    yield from _sizes()
    yield from _png_bombs()
    yield from _jpegs()
    yield from _gifs()
    yield from _webps()
    yield from _bmps()
    yield from _exif()
    yield from _disguises()
    yield from _modes()


def _truncated() -> Iterator[tuple[str, bytes]]:
    """Cut at every boundary a reader passes in the header, and in the pixels."""
    for kind in KINDS:
        whole = encoded(kind)
        cuts = {1, 2, 3, 4, 6, 8, 10, 12, 13, 16, 18, 20, 24, 26, 29, 30, 33, 37, 41, 54}
        cuts |= {len(whole) // 2, len(whole) - 4, len(whole) - 1}
        for cut in sorted(cuts):
            yield f"{kind}-cut-{cut}", whole[:cut]


def _flipped(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    for kind in KINDS:
        whole = encoded(kind)
        for number in range(8):
            data = bytearray(whole)
            for _ in range(1 + number * 4):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            yield f"{kind}-flipped-{number}", bytes(data)
        yield f"{kind}-zeros", whole[:12] + bytes(len(whole) - 12)
        yield f"{kind}-ones", whole[:12] + b"\xff" * (len(whole) - 12)


def _noise(chance: random.Random) -> Iterator[tuple[str, bytes]]:
    magics = {"png": PNG_MAGIC, "jpeg": b"\xff\xd8\xff", "gif": b"GIF89a", "bmp": b"BM"}
    magics |= {"webp": b"RIFF\x40\x00\x00\x00WEBPVP8 ", "none": b""}
    for name, magic in magics.items():
        for size in (0, 16, 256, 4096):
            yield f"noise-{name}-{size}", magic + chance.randbytes(size)


def _sizes() -> Iterator[tuple[str, bytes]]:
    most = 2**31 - 1
    for width, height in (
        *((0, 0), (0, 1), (1, 0), (most, most), (most, 1), (1, most), (2**32 - 1, 2**32 - 1)),
        *((65_535, 1), (1, 65_535), (65_535, 65_535), (12_001, 1), (12_000, 12_000)),
    ):
        yield f"png-{width}x{height}", png(width, height)
    for width, height in ((65_535, 65_535), (65_535, 1), (0, 0), (12_000, 4_000)):
        data = bytearray(encoded("JPEG"))
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
        yield f"jpeg-{width}x{height}", bytes(data)
        data = bytearray(encoded("GIF"))
        data[6:10] = struct.pack("<HH", width, height)
        yield f"gif-screen-{width}x{height}", bytes(data)
    for width, height in ((1, 10_000), (10_000, 1)):
        yield f"thin-{width}x{height}", encoded("PNG", Image.new("L", (width, height)))


def _png_bombs() -> Iterator[tuple[str, bytes]]:
    zeros = zlib.compress(bytes(50_000_000), 9)
    yield "png-more-pixels-than-promised", png(8, 8, data=zeros)
    yield "png-all-of-the-pixels", png(4000, 4000, colour=0, data=zlib.compress(bytes(4001 * 4000)))
    yield (
        "png-16-bit-rgba",
        png(900, 900, depth=16, colour=6, data=zlib.compress(bytes(7201 * 900))),
    )
    yield "png-iccp-bomb", png(8, 8, chunk(b"iCCP", b"x\0\0" + zeros))
    yield "png-ztxt-bomb", png(8, 8, chunk(b"zTXt", b"x\0\0" + zeros))
    yield "png-itxt-bomb", png(8, 8, chunk(b"iTXt", b"x\0\1\0\0\0" + zeros))
    small = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(900_000), 9))
    yield "png-many-ztxt", png(8, 8, *[small] * 100)
    yield "png-many-chunks", png(8, 8, *[chunk(b"teSt", b"")] * 30_000)
    yield "png-many-exif", png(8, 8, *[chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0")] * 1000)
    yield "png-huge-palette", png(8, 8, chunk(b"PLTE", bytes(3 * 70_000)), colour=3)
    yield "png-no-palette", png(8, 8, colour=3, data=zlib.compress(bytes(9 * 8)))
    yield (
        "png-short-palette",
        png(8, 8, chunk(b"PLTE", b"\1\2\3"), colour=3, data=zlib.compress(b"\0" + b"\xff" * 8)),
    )
    yield "png-two-headers", png(8, 8, chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)))
    for depth, colour in ((3, 0), (16, 3), (255, 2), (8, 1), (8, 7), (0, 0), (1, 2)):
        yield f"png-depth-{depth}-colour-{colour}", png(8, 8, depth=depth, colour=colour)
    yield "png-chunk-of-4-gb", png(8, 8)[:33] + b"\xff\xff\xff\xffIDAT" + bytes(64)
    yield "png-negative-chunk", png(8, 8)[:33] + b"\x80\0\0\0tEXt" + bytes(64)
    yield "png-wrong-crc", png(8, 8)[:-20] + bytes(20)
    yield "png-bad-deflate", png(8, 8, data=b"\x78\x9c" + b"\xff" * 64)
    yield "png-bad-filter", png(8, 8, data=zlib.compress(b"\x09" * 200))
    yield "png-interlaced-lie", png(8, 8)[:28] + b"\1" + png(8, 8)[29:]
    yield (
        "apng-many-frames",
        encoded(
            "PNG",
            Image.new("L", (4, 4)),
            save_all=True,
            append_images=[Image.new("L", (4, 4), n % 256) for n in range(1, 300)],
        ),
    )


def _jpegs() -> Iterator[tuple[str, bytes]]:
    whole = encoded("JPEG")
    for factors in (0x00, 0x44, 0xFF, 0x0F, 0xF0, 0x14, 0x41):
        data = bytearray(whole)
        data[data.index(b"\xff\xc0") + 11] = factors
        yield f"jpeg-sampling-{factors:02x}", bytes(data)
    for components in (0, 2, 5, 255):
        data = bytearray(whole)
        data[data.index(b"\xff\xc0") + 9] = components
        yield f"jpeg-components-{components}", bytes(data)
    for precision in (0, 1, 12, 16):
        data = bytearray(whole)
        data[data.index(b"\xff\xc0") + 4] = precision
        yield f"jpeg-precision-{precision}", bytes(data)
    for process in (0xC1, 0xC3, 0xC5, 0xC9, 0xCB, 0xCF):  # extended, lossless, arithmetic, …
        yield f"jpeg-process-{process:x}", whole.replace(b"\xff\xc0", bytes((0xFF, process)), 1)
    progressive = encoded("JPEG", Image.new("L", (2000, 2000)), progressive=True)
    last = progressive.rindex(b"\xff\xda")
    scan = progressive[last:-2]
    yield "jpeg-2000-scans", progressive[:last] + scan * 2000 + progressive[-2:]
    yield "jpeg-90-scans", progressive[:last] + scan * 90 + progressive[-2:]
    for name, segment in {
        "comments": b"\xff\xfe\0\2",
        "app": b"\xff\xe5\0\2",
        "fill": b"\xff",
        "short": b"\xff\xfe\0\0",
        "restarts": b"\xff\xd0",
        "adobe": b"\xff\xee\0\2",
        "icc": b"\xff\xe2\0\x10ICC_PROFILE\0\xff\xff",
        "tables": b"\xff\xdb\0\2",
        "mpf": b"\xff\xe2\0\x08MPF\0II",
    }.items():
        yield f"jpeg-many-{name}", whole[:2] + segment * 30_000 + whole[2:]
        yield f"jpeg-some-{name}", whole[:2] + segment * 50 + whole[2:]
    yield "jpeg-segment-past-the-end", whole[:2] + b"\xff\xe1\xff\xff" + bytes(100)
    yield "jpeg-no-tables", whole[:2] + whole[whole.index(b"\xff\xc0") :]
    yield "jpeg-no-end", whole[:-2]
    yield "jpeg-twice", whole + whole
    yield "jpeg-only-scan", b"\xff\xd8" + whole[whole.index(b"\xff\xda") :]
    yield "jpeg-restart-interval", whole[:2] + b"\xff\xdd\0\4\0\1" + whole[2:]


def _gifs() -> Iterator[tuple[str, bytes]]:
    frames = [Image.new("P", (16, 16), n % 256) for n in range(1, 400)]
    yield "gif-deep", encoded("GIF", frames[0], save_all=True, append_images=frames[1:])
    screen = struct.pack("<6sHHBBB", b"GIF89a", 8, 8, 0, 0, 0)
    for left, top, width, height in (
        *((0, 0, 65_535, 65_535), (65_535, 65_535, 1, 1), (0, 0, 0, 0)),
        (65_000, 0, 1000, 8),
    ):
        frame = struct.pack("<BHHHHB", 0x2C, left, top, width, height, 0)
        yield f"gif-frame-{left}-{top}-{width}-{height}", screen + frame + b"\x02\x02\x4c\x01\0;"
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, 8, 8, 0)
    for bits in (0, 1, 11, 12, 13, 255):
        yield f"gif-code-size-{bits}", screen + frame + bytes((bits,)) + b"\x02\x4c\x01\0;"
    yield "gif-no-palette", screen + frame + b"\x08\x02\x4c\x01\0;"
    yield "gif-lzw-garbage", screen + frame + b"\x08" + (b"\xff" + b"\xa5" * 255) * 50 + b"\0;"
    yield "gif-endless-extension", screen + b"\x21\xfe" + (b"\xff" + b"a" * 255) * 500
    yield "gif-many-extensions", screen + b"\x21\xfe\x01a\0" * 30_000 + frame
    yield "gif-no-frame", screen + b";"
    yield "gif-unknown-block", screen + b"\x99" * 300


def _webps() -> Iterator[tuple[str, bytes]]:
    frames = [Image.new("RGB", (16, 16), (n, 0, 0)) for n in range(60)]
    yield "webp-animated", encoded("WEBP", frames[0], save_all=True, append_images=frames[1:])
    for side in (1, 16_382, 2**24 - 1):
        vp8x = bytes(4) + (side).to_bytes(3, "little") * 2
        yield f"webp-canvas-{side}", riff(b"VP8X", vp8x)
        yield f"webp-animated-canvas-{side}", riff(b"VP8X", b"\x02" + vp8x[1:])
    for flags in (0x00, 0xFF):
        bits = (0x3FFF | 0x3FFF << 14) | flags << 28 & 0xF0000000
        yield f"webp-lossless-{flags:02x}", riff(b"VP8L", b"\x2f" + struct.pack("<I", bits))
    lossy = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 0x3FFF, 0x3FFF)
    yield "webp-lossy-large", riff(b"VP8 ", lossy + bytes(32))
    yield "webp-wrong-code", riff(b"VP8 ", b"\0" * 10)
    whole = encoded("WEBP")
    yield "webp-size-lie", whole[:4] + b"\xff\xff\xff\xff" + whole[8:]
    yield "webp-size-zero", whole[:4] + bytes(4) + whole[8:]
    yield "webp-chunk-lie", whole[:16] + b"\xff\xff\xff\x7f" + whole[20:]
    yield "webp-unknown-chunk", riff(b"EVIL", bytes(64))
    exif = encoded("WEBP", exif=Image.Exif().tobytes())
    many = exif[8:30] + b"junk\0\0\0\0" * 30_000 + exif[30:]
    yield "webp-many-chunks", b"RIFF" + struct.pack("<I", len(many)) + many


def riff(kind: bytes, content: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(
    width: int,
    height: int,
    *,
    bits: int = 24,
    compression: int = 0,
    info: int = 40,
    offset: int = 54,
    colours: int = 0,
    body: bytes = b"",
) -> bytes:
    head = struct.pack("<2sIHHI", b"BM", min(offset + len(body), 2**32 - 1), 0, 0, offset)
    fields = (width, height, 1, bits, compression, len(body), 0, 0, colours, 0)
    return head + struct.pack("<IiiHHIIiiII", info, *fields) + body


def _bmps() -> Iterator[tuple[str, bytes]]:
    least = -(2**31)
    for width, height in (
        *((-8, 8), (8, -8), (least, 8), (8, least), (0, 0), (2**31 - 1, 2**31 - 1)),
        *((12_000, 4_000), (65_535, 1)),
    ):
        yield f"bmp-{width}x{height}", bmp(width, height, body=bytes(300))
    for compression in (1, 2, 3, 4, 5, 99):
        for bits in (4, 8, 24):
            name = f"bmp-compression-{compression}-bits-{bits}"
            yield name, bmp(8, 8, bits=bits, compression=compression, body=bytes(1200))
    for bits in (0, 1, 2, 3, 16, 32, 64, 65_535):
        yield f"bmp-bits-{bits}", bmp(8, 8, bits=bits, body=bytes(300))
    for info in (0, 12, 39, 64, 124, 2**31):
        yield f"bmp-info-{info}", bmp(8, 8, info=info, body=bytes(300))
    for offset in (0, 2**31 - 1, 2**32 - 1):
        yield f"bmp-offset-{offset}", bmp(8, 8, offset=offset, body=bytes(300))
    yield "bmp-palette-of-4-billion", bmp(8, 8, bits=8, colours=2**32 - 1, body=bytes(300))
    palette, at = bytes(1024), 54 + 1024
    run = b"\xff\0" * 50_000
    yield "bmp-rle-bomb", bmp(4000, 3000, bits=8, compression=1, offset=at, body=palette + run)
    ones = b"\1\1" * 100_000
    yield (
        "bmp-rle-one-by-one",
        bmp(4000, 3000, bits=8, compression=1, offset=at, body=palette + ones),
    )
    jumps = b"\0\2\xff\xff" * 30_000
    yield "bmp-rle-jumps", bmp(4000, 3000, bits=8, compression=1, offset=at, body=palette + jumps)


def tiff(*entries: tuple[int, int, int, int], next_at: int = 0) -> bytes:
    """An EXIF block: (tag, type, count, value) of one directory."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + struct.pack("<I", next_at)


def _exif() -> Iterator[tuple[str, bytes]]:
    blocks = {
        "loop": tiff((0x0112, 3, 1, 1), next_at=8),
        "sub-loop": tiff((0x8769, 4, 1, 8)),
        "gps-loop": tiff((0x8825, 4, 1, 8), (0x8769, 4, 1, 8)),
        "past-the-end": tiff((0x0112, 3, 1, 6), next_at=2**32 - 1),
        "huge-count": tiff((0x0112, 3, 2**32 - 1, 8)),
        "huge-orientation": tiff((0x0112, 4, 1, 2**32 - 1)),
        "orientation-as-text": tiff((0x0112, 2, 4, 0x41414141)),
        "orientation-as-rational": tiff((0x0112, 5, 1, 8)),
        "orientation-by-zero": tiff((0x0112, 5, 1, 2**31)),
        "many": tiff(*((0x9000 + n, 7, 4, 0) for n in range(5000))),
        "overlapping": tiff(*((0x9000 + n, 7, 60_000, 0) for n in range(200))) + bytes(60_000),
        "no-directory": b"II*\0\xff\xff\xff\x7f",
        "wrong-order": b"XX*\0" + bytes(20),
        "big-tiff": b"II+\0\x08\0\0\0" + bytes(40),
        "empty": b"",
    }
    for name, block in blocks.items():
        whole = encoded("PNG")
        yield f"png-exif-{name}", whole[:33] + chunk(b"eXIf", block) + whole[33:]
        if len(block) < 65_000:
            segment = b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
            yield f"jpeg-exif-{name}", encoded("JPEG")[:2] + segment + encoded("JPEG")[2:]


def _disguises() -> Iterator[tuple[str, bytes]]:
    """Other formats, and files that are two things at once."""
    for kind in ("TIFF", "ICO", "PPM", "TGA", "PCX", "ICNS"):
        yield f"other-{kind}", encoded(kind, Image.new("RGB", (32, 32)))
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file"
    yield "html", b"<html><script>alert(1)</script>"
    yield "elf", b"\x7fELF" + bytes(60)
    yield "pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR."
    yield "zip-behind-png", encoded("PNG") + b"PK\x03\x04" + bytes(26)
    yield "png-behind-gif", encoded("GIF") + encoded("PNG")
    yield "gif-that-is-javascript", b"GIF89a=1;/*" + bytes(40) + b"*/alert(1)"
    yield "bmp-that-is-text", b"BM" + b"A" * 200
    yield "png-in-jpeg", encoded("JPEG")[:20] + encoded("PNG")
    yield "webp-in-gif", b"GIF89a" + encoded("WEBP")
    yield "mpo", encoded("MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])


def _modes() -> Iterator[tuple[str, bytes]]:
    """Unusual, whole, and to be answered."""
    for mode, kind in (
        ("CMYK", "JPEG"),
        ("I;16", "PNG"),
        ("1", "BMP"),
        ("LA", "PNG"),
        ("P", "GIF"),
    ):
        yield f"fine-{kind}-{mode.replace(';', '')}", encoded(kind, Image.new(mode, (20, 20)))
    for orientation in (0, 5, 8, 9, 65_535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"fine-orientation-{orientation}", encoded("JPEG", exif=exif.tobytes())
    yield "fine-one-pixel", encoded("PNG", Image.new("RGB", (1, 1)))
