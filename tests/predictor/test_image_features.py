from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from m3_backend.errors import InvalidImageError
from predictor.features import image_names
from predictor.image_features import GRIDS, image_features, open_view
from tests.predictor.synthetic import draw, encoded


def text_picture(height: int, side: int = 336, ink: str = "black", ground: str = "white") -> bytes:
    """Lines of capitals without descenders, `height` px high."""
    image = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(height / 0.73)
    for top in range(10, side - 2 * height, 2 * height):
        pen.text((10, top), "HEMTLZNKXE" * 4, fill=ink, font=font)
    return encoded(image)


def checkerboard(cell: int) -> bytes:
    dark = (np.indices((336, 336)) // cell).sum(0) % 2
    return encoded(Image.fromarray((dark * 255).astype(np.uint8)).convert("RGB"))


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", encoded(draw(0)[0])[:-2000], encoded(draw(0)[0], "JPEG")[:400]],
    ids=["empty", "text", "cut PNG", "cut JPEG"],
)
def test_what_does_not_decode_is_the_callers_error(data: bytes) -> None:
    with pytest.raises(InvalidImageError) as caught:
        image_features(data)
    assert caught.value.code == "invalid_image"
    assert "cannot be decoded; send a complete" in caught.value.message


def test_formats_off_the_list_are_refused() -> None:
    with pytest.raises(InvalidImageError):
        image_features(encoded(draw(0)[0], "TIFF"))


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000), (17, 5), (336, 200), (900, 1400)])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "CMYK", "I;16"])
def test_every_shape_and_mode_gives_finite_features(size: tuple[int, int], mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    features = image_features(encoded(Image.new(mode, size, 1), kind))
    assert tuple(features) == image_names()
    assert np.isfinite(list(features.values())).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_formats_agree_about_a_picture(kind: str) -> None:
    plain = image_features(encoded(draw(4)[0]))
    other = image_features(encoded(draw(4)[0], kind))
    assert other["luma.lost_24"] == pytest.approx(plain["luma.lost_24"], rel=0.15)
    assert other["regions.count"] == pytest.approx(plain["regions.count"], rel=0.3)


def test_exif_orientation_is_applied() -> None:
    upright = draw(5)[0].crop((0, 0, 336, 200))
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    wanted = image_features(encoded(upright, "JPEG", quality=95))
    found = image_features(encoded(turned, "JPEG", quality=95, exif=exif))
    assert found["file.aspect"] == wanted["file.aspect"] > 0
    for name in ("luma.lost_24_max", "runs.rows_per_line", "runs.columns_per_line"):
        assert found[name] == pytest.approx(wanted[name], rel=0.1)


def test_a_plain_picture_loses_nothing() -> None:
    features = image_features(encoded(Image.new("RGB", (336, 336), (200, 40, 90))))
    assert max(features[f"luma.lost_{grid}_max"] for grid in GRIDS) == pytest.approx(0, abs=1e-2)
    assert features["glyphs.count"] == features["regions.count"] == 0
    assert features["glyphs.height_q10"] == features["regions.side_min"] == 336


def test_padding_is_not_detail() -> None:
    features = image_features(encoded(Image.new("RGB", (336, 100), "white")))
    assert max(features[f"luma.lost_{grid}_max"] for grid in GRIDS) == pytest.approx(0, abs=1e-2)
    assert features["edges.full"] == 0


@pytest.mark.parametrize(("cell", "kept"), [(14, 24), (28, 12), (56, 6), (112, 3)])
def test_a_grid_keeps_the_checkerboard_that_it_resolves(cell: int, kept: int) -> None:
    features = image_features(checkerboard(cell))
    for grid in GRIDS:
        lost = features[f"luma.lost_{grid}"]
        if grid % kept == 0:
            assert lost == pytest.approx(0, abs=0.1)
        elif grid == 1 or kept % (2 * grid) == 0:
            assert lost == pytest.approx(127.5, rel=0.02)


def test_finer_grids_lose_less() -> None:
    for seed in range(10):
        features = image_features(encoded(draw(seed)[0]))
        for name in ("luma", "chroma"):
            lost = [features[f"{name}.lost_{grid}"] for grid in GRIDS]
            assert lost == sorted(lost, reverse=True)


@pytest.mark.parametrize("height", [7, 10, 16, 24, 40, 60])
@pytest.mark.parametrize(("ink", "ground"), [("black", "white"), ("yellow", "navy")])
def test_glyph_heights_are_measured(height: int, ink: str, ground: str) -> None:
    features = image_features(text_picture(height, ink=ink, ground=ground))
    assert features["glyphs.height_q50"] == pytest.approx(height, rel=0.2, abs=2)


def test_lengths_are_in_model_pixels_whatever_was_uploaded() -> None:
    small = image_features(text_picture(20))
    large = image_features(text_picture(60, side=1008))
    assert large["glyphs.height_q50"] == pytest.approx(small["glyphs.height_q50"], abs=2)
    assert large["file.log_pixels"] > small["file.log_pixels"]


def test_regions_are_counted_and_sized() -> None:
    image = Image.new("RGB", (336, 336), "white")
    pen = ImageDraw.Draw(image)
    for number in range(7):
        x, y = 40 + 90 * (number % 3), 40 + 90 * (number // 3)
        pen.ellipse([x - 15, y - 15, x + 15, y + 15], fill="crimson")
    features = image_features(encoded(image))
    assert features["regions.count"] == 7
    assert features["regions.side_q50"] == pytest.approx(31, abs=3)


def test_a_jpegs_draft_is_enough_for_the_model_view() -> None:
    image, _ = draw(7, side=1344)
    view = open_view(encoded(image, "JPEG", quality=95))
    exact = np.asarray(image.convert("L").resize((336, 336), Image.Resampling.BOX), dtype=float)
    assert view.luma.shape == (336, 336)
    assert np.abs(view.luma - exact).mean() < 3
    assert (view.width, view.height) == (1344, 1344)


def test_reading_a_large_jpeg_never_holds_it_whole() -> None:
    data = encoded(Image.new("RGB", (4000, 3000), "gray"), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        image.draft("YCbCr", (336, 252))
        assert image.size == (500, 375)
    assert open_view(data).luma.shape == (252, 336)
