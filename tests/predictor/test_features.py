from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from predictor.features import VERSION, extract, feature_names, image_names, image_vector
from predictor.query_features import QueryProjection
from tests.predictor.synthetic import COUNT, GROUND, READ, draw, encoded

PROJECTION = QueryProjection.fit([*READ, *COUNT, *GROUND], size=3)


def named(question: str, image: Image.Image | None = None) -> dict[str, float]:
    data = encoded(draw(0)[0] if image is None else image)
    features = extract(image_vector(data), question, PROJECTION)
    return dict(zip(features.names, features.values.tolist(), strict=True))


def test_names_are_distinct_and_as_many_as_values() -> None:
    names = feature_names(3)
    assert len(set(names)) == len(names) == len(named(READ[0]))
    assert len(set(image_names())) == len(image_names()) == len(image_vector(encoded(draw(0)[0])))


def test_the_version_names_every_group() -> None:
    features = extract(image_vector(encoded(draw(0)[0])), "What?", PROJECTION)
    assert features.version == VERSION == "image-2+query-1+cross-2"
    assert features.values.dtype == np.float32


def test_the_question_decides_whose_size_matters() -> None:
    reading, counting = named(READ[0]), named(COUNT[0])
    assert reading["cross.text_height"] == reading["glyphs.height_q25"] < 336
    assert reading["cross.object_side"] == 336
    assert counting["cross.object_side"] == counting["regions.side_q25"] < 336
    assert counting["cross.text_height"] == 336


def test_questions_about_one_picture_share_its_features() -> None:
    reading, counting = named(READ[0]), named(COUNT[0])
    shared = [name for name in image_names() if name in reading]
    assert len(shared) > 80
    assert all(reading[name] == counting[name] for name in shared)
    assert reading["query.direction_0"] != pytest.approx(counting["query.direction_0"])


def two_bars() -> Image.Image:
    """Red 200 px high on the left, blue 56 px high on the right, both 40 px wide, crossed by grey
    lines as bars of a chart are."""
    image = Image.new("RGB", (336, 336), "white")
    pen = ImageDraw.Draw(image)
    for height in range(16, 336, 40):
        pen.line([(0, height), (335, height)], fill=(135, 135, 135), width=1)
    pen.rectangle([56, 100, 95, 299], fill=(215, 35, 35))
    pen.rectangle([224, 244, 263, 299], fill=(40, 75, 215))
    return image


def test_what_a_question_names_is_measured() -> None:
    red, blue = (named(f"How high is the {each} bar?", two_bars()) for each in ("red", "blue"))
    assert red["named.rows"] == pytest.approx(200, abs=4)
    assert red["named.tall"] == pytest.approx(200, abs=8)
    assert blue["named.rows"] == pytest.approx(56, abs=4)
    assert red["named.wide"] == pytest.approx(40, abs=4)
    assert red["named.cover_24"] == blue["named.cover_24"] == 1.0  # fills whole cells of 14 px
    assert red["named.cover_1"] == pytest.approx(200 * 40 / 336**2, rel=0.05)
    assert blue["named.off_centre"] == pytest.approx((243.5 - 168) / 336, abs=0.02)
    assert red["named.colours"] == 1


def test_two_named_things_are_compared() -> None:
    both = named("Is the red bar taller than the blue one?", two_bars())
    assert both["named.difference"] == pytest.approx(144, abs=4)
    assert both["named.apart"] == pytest.approx(168 / 336, abs=0.02)
    assert both["named.rows"] == pytest.approx(56, abs=4)  # of the smaller one
    assert both["named.colours"] == 2


def test_what_is_not_there_has_no_size() -> None:
    absent, unnamed = named("Where is the green star?", two_bars()), named("What?", two_bars())
    assert absent["named.cover_24"] == absent["named.rows"] == 0
    assert unnamed["named.colours"] == 0
    assert unnamed["named.rows"] == 336
    assert unnamed["named.cover_24"] == 1
