"""The features of an (image, question) pair: what they are called, which version, their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from predictor import image_features, query_features
from predictor.colour_names import COLOURS, named_colours
from predictor.query_features import QueryProjection, QuestionFeatures

# Features of different versions must never meet: a model trained on one is refused with the other.
VERSION = f"{image_features.VERSION}+{query_features.VERSION}+cross-2"

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
# Measured for each of the dozen colours; a model sees only those that the question names.
_PER_COLOUR = ("colour.", "colour_regions.")
_EXTENTS = ("rows", "tall", "wide")
_NAMED = (
    *(f"named.{extent}" for extent in (*_EXTENTS, "height", "count")),
    *(f"named.cover_{grid}" for grid in image_features.GRIDS),
    *(f"named.{name}" for name in ("colours", "difference", "apart", "off_centre")),
)


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
    shown = tuple(image_names()[at] for at in _shown())
    return (*shown, *hand_made, *_CROSSES, *_NAMED, *projected)


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
    named = named_colours(question.lower())
    return _assembled(
        image, query_features.query_features(question), named, projection.apply(question)
    )


def extract_recorded(
    image: NDArray[np.float32], asks: QuestionFeatures, projection: QueryProjection
) -> FeatureVector:
    """The same from what a record keeps of the question, value by value."""
    query = dict(zip(query_features.query_features(""), asks.values, strict=True))
    named = {COLOURS.index(colour) for colour in asks.colours}
    counts = dict(zip(asks.buckets, asks.counts, strict=True))
    return _assembled(image, query, named, projection.apply_counts(counts))


def _assembled(
    image: NDArray[np.float32],
    query: Mapping[str, float],
    colours: Iterable[int],
    projected: NDArray[np.float64],
) -> FeatureVector:
    at = _positions()
    crosses = [
        image[at[measured]] if any(query[name] for name in asked) else image_features.MODEL_SIDE
        for asked, measured in _CROSSES.values()
    ]
    named = _named_colours(image, colours)
    values = np.concatenate((image[_shown()], [*query.values(), *crosses, *named], projected))
    return FeatureVector(feature_names(len(projected)), VERSION, values.astype(np.float32))


@cache
def _positions() -> dict[str, int]:
    return {name: at for at, name in enumerate(image_names())}


@cache
def _shown() -> NDArray[np.intp]:
    """Positions of the image features that a model sees whatever the question."""
    shown = [at for at, name in enumerate(image_names()) if not name.startswith(_PER_COLOUR)]
    return np.array(shown, dtype=np.intp)


@cache
def _colour_positions() -> NDArray[np.intp]:
    """Colours × what `_named_colours` reads of each: extents, height, count, covers, place."""
    at = _positions()
    covers = [f"cover_{grid}" for grid in image_features.GRIDS]
    return np.array(
        [
            [
                *(at[f"colour.{colour}_{extent}"] for extent in _EXTENTS),
                *(at[f"colour_regions.{colour}_{name}"] for name in ("height", "count")),
                *(at[f"colour.{colour}_{name}"] for name in (*covers, "y", "x")),
            ]
            for colour in COLOURS
        ]
    )


def _named_colours(image: NDArray[np.float32], colours: Iterable[int]) -> list[float]:
    """What is known of the colours that a question names, in the order of `_NAMED`.

    Of several colours the smallest value counts, for the smallest must be seen; two can be compared
    by the difference of their heights and the distance of their middles along the axis on which
    they lie farther apart. Without a colour, or a pair, there is nothing small to be seen: lengths
    are the picture's, covers and distances 1, and the number is 0.
    """
    named = sorted(colours)
    covers = len(image_features.GRIDS)
    if not named:
        side = float(image_features.MODEL_SIDE)
        return [side] * 4 + [-1.0] + [1.0] * covers + [0.0, side, 1.0, 0.5]
    values = image[_colour_positions()[named]].astype(np.float64)
    measured, places = values[:, :-2], values[:, -2:]
    difference, apart = float(image_features.MODEL_SIDE), 1.0
    if len(named) > 1:
        difference = float(np.ptp(values[:, 0]))
        apart = float(np.ptp(places, axis=0).max())
    off_centre = float(np.abs(places - 0.5).min())
    return [*measured.min(axis=0).tolist(), float(len(named)), difference, apart, off_centre]
