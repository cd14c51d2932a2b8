from __future__ import annotations

import numpy as np
import pytest

from predictor.features import VERSION, extract, feature_names, image_names, image_vector
from predictor.query_features import QueryProjection
from tests.predictor.synthetic import COUNT, GROUND, READ, draw, encoded

PROJECTION = QueryProjection.fit([*READ, *COUNT, *GROUND], size=3)


def named(question: str, seed: int = 0) -> dict[str, float]:
    features = extract(image_vector(encoded(draw(seed)[0])), question, PROJECTION)
    return dict(zip(features.names, features.values.tolist(), strict=True))


def test_names_are_distinct_and_as_many_as_values() -> None:
    names = feature_names(3)
    assert len(set(names)) == len(names) == len(named(READ[0]))
    assert names[: len(image_names())] == image_names()


def test_the_version_names_every_group() -> None:
    features = extract(image_vector(encoded(draw(0)[0])), "What?", PROJECTION)
    assert features.version == VERSION == "image-1+query-1+cross-1"
    assert features.values.dtype == np.float32


def test_the_question_decides_whose_size_matters() -> None:
    reading, counting = named(READ[0]), named(COUNT[0])
    assert reading["cross.text_height"] == reading["glyphs.height_q25"] < 336
    assert reading["cross.object_side"] == 336
    assert counting["cross.object_side"] == counting["regions.side_q25"] < 336
    assert counting["cross.text_height"] == 336


def test_questions_about_one_picture_share_its_features() -> None:
    reading, counting = named(READ[0]), named(COUNT[0])
    assert all(reading[name] == counting[name] for name in image_names())
    assert reading["query.direction_0"] != pytest.approx(counting["query.direction_0"])
