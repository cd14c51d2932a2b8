from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from predictor.colour_names import COLOURS, colour_codes, name_of_code, named_colours
from predictor.features import extract, image_vector
from predictor.query_features import QueryProjection


def name_of(css: str) -> str:
    pixel = Image.new("RGB", (1, 1), css).convert("YCbCr")
    planes = np.moveaxis(np.asarray(pixel, dtype=np.float32), -1, 0)
    return COLOURS[name_of_code()[colour_codes(planes)[0, 0]]]


@pytest.mark.parametrize(
    ("css", "name"),
    [
        ("black", "black"),
        ("white", "white"),
        ("gray", "grey"),
        ("firebrick", "red"),
        ("crimson", "red"),
        ("darkorange", "orange"),
        ("gold", "yellow"),
        ("forestgreen", "green"),
        ("limegreen", "green"),
        ("darkturquoise", "cyan"),
        ("royalblue", "blue"),
        ("navy", "blue"),
        ("indigo", "purple"),
        ("hotpink", "pink"),
        ("saddlebrown", "brown"),
    ],
)
def test_pixels_get_the_name_people_give_them(css: str, name: str) -> None:
    assert name_of(css) == name


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("what is written in orange?", {"orange"}),
        ("is the gray bar above the violet one?", {"grey", "purple"}),
        ("how many hundred oranges?", set()),
        ("", set()),
    ],
)
def test_questions_name_colours(text: str, names: set[str]) -> None:
    assert {COLOURS[index] for index in named_colours(text)} == names


def test_the_size_of_what_the_question_names_by_its_colour() -> None:
    image = Image.new("RGB", (336, 336), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle([20, 20, 119, 119], fill="blue")
    for left in (150, 200, 250):
        pen.rectangle([left, 200, left + 9, 219], fill="red")
    file = io.BytesIO()
    image.save(file, "PNG")
    vector, projection = image_vector(file.getvalue()), QueryProjection.fit(["What?"])

    def named(question: str) -> tuple[float, float, float]:
        features = extract(vector, question, projection)
        values = dict(zip(features.names, features.values.tolist(), strict=True))
        names = ("named.height", "named.count", "named.difference")
        return tuple(values[name] for name in names)

    high, low = pytest.approx(100, abs=4), pytest.approx(20, abs=4)
    assert named("How high is the blue thing?") == (high, 1, 336)
    assert named("How many RED things are there?") == (low, 3, 336)
    assert named("Is the red thing below the blue one?") == (low, 1, pytest.approx(80, abs=4))
    assert named("Is there a green thing?") == (0, 0, 336)
    assert named("How many things are there?") == (336, -1, 336)
