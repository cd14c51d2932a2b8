"""The features of an (image, question) pair: what they are called, which version, their values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from predictor import image_features, query_features
from predictor.colour_names import COLOURS, named_colours
from predictor.query_features import QueryProjection

# Features of different versions must never meet: a model trained on one is refused with the other.
VERSION = f"{image_features.VERSION}+{query_features.VERSION}+cross-1"

# What a question asks for decides whose size matters. Where it does not ask, the value is the
# largest there is: nothing small is wanted.
_CROSSES = {
    "cross.text_height": (("query.about_text", "query.about_amount"), "glyphs.height_q25"),
    "cross.text_height_low": (("query.about_text", "query.about_amount"), "glyphs.height_q10"),
    "cross.object_side": (
        ("query.about_shape", "query.about_colour", "query.form_how_many"),
        "regions.side_q25",
    ),
    "cross.object_side_low": (
        ("query.about_shape", "query.about_colour", "query.form_how_many"),
        "regions.side_min",
    ),
}
_NAMED = ("cross.named_height", "cross.named_count", "cross.named_difference")


@dataclass(frozen=True, slots=True, eq=False)
class FeatureVector:
    """Named numbers about one image and one question, in the order a model was trained on.

    Args:
        names: F names; the prefix before the first dot is the group.
        version: of the code that computed them.
        values: F finite float32 values.
    """

    names: tuple[str, ...]
    version: str
    values: NDArray[np.float32]


@cache
def image_names() -> tuple[str, ...]:
    """Names of the image features, in order."""
    side = image_features.MODEL_SIDE
    blank = image_features.View(
        luma=np.zeros((side, side), np.float32),
        half=np.zeros((3, side // 2, side // 2), np.float32),
        width=side,
        height=side,
        size_bytes=1,
    )
    return tuple(image_features.describe(blank))


@cache
def feature_names(directions: int) -> tuple[str, ...]:
    """Names of all features, in order, for a query projection to that many directions."""
    projected = tuple(f"query.direction_{k}" for k in range(directions))
    hand_made = tuple(query_features.query_features(""))
    return (*image_names(), *hand_made, *_CROSSES, *_NAMED, *projected)


def image_vector(data: bytes) -> NDArray[np.float32]:
    """The features of an encoded image, in the order of `image_names`; worth caching by digest.

    Raises:
        InvalidImageError: the bytes do not decode.
    """
    values = image_features.image_features(data).values()
    return np.fromiter(values, dtype=np.float32, count=len(values))


def extract(
    image: NDArray[np.float32], question: str, projection: QueryProjection
) -> FeatureVector:
    """All features of a question about an image whose `image_vector` is known."""
    query = query_features.query_features(question)
    at = _positions()
    crosses = [
        image[at[measured]] if any(query[name] for name in asked) else image_features.MODEL_SIDE
        for asked, measured in _CROSSES.values()
    ]
    named = _named_colour_regions(image, question)
    values = np.concatenate(
        (image, [*query.values(), *crosses, *named], projection.apply(question))
    )
    return FeatureVector(feature_names(projection.size), VERSION, values.astype(np.float32))


@cache
def _positions() -> dict[str, int]:
    return {name: at for at, name in enumerate(image_names())}


def _named_colour_regions(image: NDArray[np.float32], question: str) -> tuple[float, float, float]:
    """Height and number of the regions in the colours that the question names.

    Of several colours the one with the smallest regions counts, and the difference between their
    heights is what has to be seen to compare them. Without a colour the heights are that of the
    picture and the number is -1.
    """
    named = named_colours(question.lower())
    if not named:
        return image_features.MODEL_SIDE, -1, image_features.MODEL_SIDE
    at = _positions()
    heights = [image[at[f"colour_regions.{COLOURS[each]}_height"]] for each in named]
    counts = [image[at[f"colour_regions.{COLOURS[each]}_count"]] for each in named]
    compared = max(heights) - min(heights) if len(named) > 1 else image_features.MODEL_SIDE
    return min(heights), min(counts), compared
