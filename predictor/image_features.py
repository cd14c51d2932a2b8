"""What a picture would lose at each scale, measured on the model's own view of it.

The model sees the picture padded to a square of 336 px and then averages cells of it, so that view
is the working picture here: lengths are in *model pixels* (1/336 of the longer side), whatever was
uploaded, and the time does not grow with the upload beyond its decoding, which a JPEG's draft mode
keeps short.

Everything is a pure function of pixels. Three ideas carry the weight: the energy that averaging
over each grid would destroy; the heights of small high-contrast components, which for text are
glyph heights; and the number and size of coloured regions, which is what counting and naming
depend on.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import log2

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from m3_backend.errors import InvalidImageError
from m3_backend.preprocess import MAX_PIXELS, decode_image
from predictor.colour_names import COLOURS, colour_codes, name_of_code

VERSION = "image-2"

MODEL_SIDE = 336  # the vision tower's input side, in pixels
FINEST_GRID = 24  # cells per side of its patch grid
GRIDS = (1, 3, 6, 12, 24)  # cells per side whose residual energy is measured

_JPEG = b"\xff\xd8\xff"
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

_INK_CONTRAST = 28.0  # grey levels that set a stroke apart from what surrounds it
_EDGE_CONTRAST = 20.0  # grey levels between neighbours that make an edge
_REGION_CONTRAST = 24.0  # distance from the background, in grey levels, that makes a region
_BLOCK = 21  # pixels a side of the blocks in which the strongest contrast is sought

_BLOCKS = MODEL_SIDE // _BLOCK
_REGION_LEAST = 4  # pixels at half resolution
_RUN_BOUNDS = (1, 2, 4, 8, 16)
_GLYPH_BOUNDS = (4, 7, 11, 17, 26, 41, 65, 120)
_GLYPH_LEAST = 3
_COLOUR_LEAST = 2  # pixels of a row at half resolution that make a colour present in it
_COLOUR_SHARE = 0.003  # of the picture that makes a colour one of its colours
_PLANES = ("luma", "blue", "red")
_NEAREST = Image.Resampling.NEAREST
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)

_Plane = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The model's view of a picture, without the padding.

    Args:
        luma: height×width grey levels in [0, 255], the longer side 336.
        half: luma, blue and red difference at half that resolution, 3×height×width in [0, 255]; the
            differences are centred on 128.
        width, height: of the original as displayed, in its own pixels.
        size_bytes: of the encoded file.
    """

    luma: _Plane
    half: _Plane
    width: int
    height: int
    size_bytes: int


def open_view(data: bytes) -> View:
    """Decode an encoded image cheaply into the model's view.

    Raises:
        InvalidImageError: another format than the model accepts, damaged or too large.
    """
    if data.startswith(_JPEG):
        return _draft_view(data)
    image = decode_image(data)
    luma, half = _planes(image, _fitted(*image.size, MODEL_SIDE))
    return View(luma, half, *image.size, len(data))


def _draft_view(data: bytes) -> View:
    """A JPEG's view from the smallest scale its decoder can give that still covers it."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InvalidImageError(f"The image has more than {MAX_PIXELS} pixels.")
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
            size = _fitted(width, height, MODEL_SIDE)
            image.draft("YCbCr", size)
            image.load()
            luma, half = _planes(image, size, orientation)
    except InvalidImageError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise InvalidImageError("The JPEG cannot be decoded; send a complete file.") from error
    if orientation in _SIDEWAYS:
        width, height = height, width
    return View(luma, half, width, height, len(data))


def _fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """The size with its longer side at `side`."""
    longer = max(width, height)
    return max(round(side * width / longer), 1), max(round(side * height / longer), 1)


def _planes(
    image: Image.Image, size: tuple[int, int], orientation: int = 1
) -> tuple[_Plane, _Plane]:
    """Luma at `size` and all three planes at half of it, turned upright."""
    if image.mode != "YCbCr":
        image = image.convert("RGB").resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        image = image.convert("YCbCr")
    luma = image.getchannel(0).resize(size, Image.Resampling.BILINEAR)
    half = image.resize(_fitted(*size, MODEL_SIDE // 2), Image.Resampling.BOX)
    if orientation in _UPRIGHT:
        luma, half = luma.transpose(_UPRIGHT[orientation]), half.transpose(_UPRIGHT[orientation])
    planes = np.moveaxis(np.asarray(half), -1, 0)
    return np.asarray(luma, dtype=np.float32), np.ascontiguousarray(planes, dtype=np.float32)


def image_features(data: bytes) -> dict[str, float]:
    """Every image feature by name, in a fixed order.

    Raises:
        InvalidImageError: as `open_view`.
    """
    return describe(open_view(data))


def describe(view: View) -> dict[str, float]:
    """Every feature of a view, by name, in a fixed order."""
    ink = _ink(view)
    codes = colour_codes(view.half)
    return (
        _file(view)
        | _residuals("luma", view.luma[None])
        | _residuals("chroma", view.half[1:])
        | _edges(view.luma)
        | _strokes(ink)
        | _glyphs(ink)
        | _colours(view, codes)
        | _regions(view.half, codes)
        | _named_colours(view.half, codes)
    )


def _file(view: View) -> dict[str, float]:
    pixels = view.width * view.height
    return {
        "file.log_pixels": log2(pixels),
        "file.aspect": log2(view.width / view.height),
        "file.bytes_per_pixel": view.size_bytes / pixels,
        "file.bytes_per_model_pixel": view.size_bytes / view.luma.size,
    }


def _residuals(name: str, planes: _Plane) -> dict[str, float]:
    """Energy within the cells of each grid: what is lost when a cell becomes its mean.

    Standard deviations in grey levels: of the whole picture, of the worst cell, and of the cells
    at the upper quantiles. Sums over the 24×24 cells of the padded square give all coarser grids.
    """
    side = max(planes.shape[1:])
    rows, columns = (_padding(length, side) for length in planes.shape[1:])
    padded = np.zeros((len(planes), side, side), dtype=np.float32)
    padded[:, rows, columns] = planes - planes.mean((1, 2), keepdims=True)
    inside = np.zeros((1, side, side), dtype=np.float32)
    inside[:, rows, columns] = 1
    first, second, count = (_cell_sums(plane) for plane in (padded, padded * padded, inside))

    features = {}
    for grid in GRIDS:
        pixels = _coarser(count, grid)[0]
        energy = _coarser(second, grid) - _coarser(first, grid) ** 2 / np.maximum(pixels, 1)
        energy = np.maximum(energy, 0).sum(0)
        held = pixels > 0
        spread = np.sort(np.sqrt(energy[held] / pixels[held]))
        features[f"{name}.lost_{grid}"] = float(np.sqrt(energy.sum() / pixels.sum()))
        features[f"{name}.lost_{grid}_max"] = float(spread[-1])
        if grid > 1:  # a single cell has no distribution
            features[f"{name}.lost_{grid}_q75"] = _quantile(spread, 0.75)
            features[f"{name}.lost_{grid}_q95"] = _quantile(spread, 0.95)
    return features


def _padding(length: int, side: int) -> slice:
    """Where `length` pixels lie when centred in `side`."""
    start = (side - length) // 2
    return slice(start, start + length)


def _cell_sums(planes: _Plane) -> NDArray[np.float64]:
    """Sums over the cells of the finest grid: planes×side×side → planes×24×24."""
    cell = planes.shape[-1] // FINEST_GRID
    by_row = planes.reshape(len(planes), FINEST_GRID, cell, -1).sum(2)
    by_cell = by_row.reshape(len(planes), FINEST_GRID, FINEST_GRID, cell)
    sums: NDArray[np.float64] = by_cell.sum(3, dtype=np.float64)
    return sums


def _coarser(sums: NDArray[np.float64], grid: int) -> NDArray[np.float64]:
    """Sums over `grid`×`grid` cells from sums over 24×24."""
    step = FINEST_GRID // grid
    coarser: NDArray[np.float64] = sums.reshape(-1, grid, step, grid, step).sum((2, 4))
    return coarser


def _quantile(ascending: NDArray[np.generic], share: float) -> float:
    """The element that far through sorted values; np.quantile costs ten times as much."""
    return float(ascending[round(share * (len(ascending) - 1))])


def _halved(plane: _Plane) -> _Plane:
    rows, columns = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    even = plane[:rows:2] + plane[1:rows:2]
    return (even[:, :columns:2] + even[:, 1:columns:2]) * np.float32(0.25)


def _edges(luma: _Plane) -> dict[str, float]:
    """Share of edge and corner pixels and mean contrast, at three resolutions."""
    features: dict[str, float] = {}
    plane = luma
    for level in ("full", "half", "quarter"):
        if min(plane.shape) < 2:  # a sliver of a picture has no neighbours left
            features |= dict.fromkeys(
                (f"edges.{level}", f"corners.{level}", f"contrast.{level}"), 0.0
            )
            continue
        across = np.abs(plane[:-1, 1:] - plane[:-1, :-1])
        down = np.abs(plane[1:, :-1] - plane[:-1, :-1])
        strongest = np.maximum(across, down)
        features[f"edges.{level}"] = float(np.mean(strongest > _EDGE_CONTRAST))
        features[f"corners.{level}"] = float(np.mean(np.minimum(across, down) > _EDGE_CONTRAST))
        features[f"contrast.{level}"] = float(strongest.mean())
        plane = _halved(plane)
    return features


def _ink(view: View) -> NDArray[np.bool_]:
    """Pixels that stand out in luma or colour from their surroundings of about 40 px.

    Beside a stroke its ground stands out too, by the stroke's share of the surroundings, so half of
    the strongest contrast nearby is asked for. That holds for dark on light, light on dark and both
    in one picture.
    """
    contrast = np.abs(view.luma - _surroundings(view.luma, 8))
    rows, columns = contrast.shape
    blue, red = (np.abs(plane - _surroundings(plane, 4)) for plane in view.half[1:])
    colour = Image.fromarray(np.maximum(blue, red)).resize((columns, rows), _NEAREST)
    contrast = np.maximum(contrast, np.asarray(colour))
    padded = np.zeros((MODEL_SIDE, MODEL_SIDE), dtype=np.float32)
    padded[:rows, :columns] = contrast
    by_row = padded.reshape(_BLOCKS, _BLOCK, MODEL_SIDE).max(1)  # one axis at a time is faster
    strongest = by_row.reshape(_BLOCKS, _BLOCKS, _BLOCK).max(2)
    nearby = ndimage.maximum_filter(strongest, size=3).repeat(_BLOCK, 0).repeat(_BLOCK, 1)
    ink: NDArray[np.bool_] = contrast > np.maximum(nearby[:rows, :columns] / 2, _INK_CONTRAST)
    return ink


def _surroundings(plane: _Plane, step: int) -> _Plane:
    """The mean over five cells of `step` pixels around each pixel, to the nearest level."""
    grey = Image.fromarray(plane.astype(np.uint8))
    cell = min(step, grey.width), min(step, grey.height)
    coarse = grey.reduce(cell).filter(ImageFilter.BoxBlur(2))
    return np.asarray(coarse.resize(grey.size, Image.Resampling.BILINEAR), dtype=np.float32)


def _strokes(ink: NDArray[np.bool_]) -> dict[str, float]:
    """How long the runs of ink are, along rows and columns: text has many, short and alike."""
    features = {"ink.share": float(ink.mean())}
    for name, lines in (("rows", ink), ("columns", ink.T)):
        framed = np.zeros((lines.shape[0], lines.shape[1] + 1), dtype=bool)
        framed[:, :-1] = lines
        flat = framed.ravel()
        turns = np.flatnonzero(np.diff(flat, prepend=False))
        lengths = turns[1::2] - turns[::2]
        shares = _counts_up_to(lengths, _RUN_BOUNDS) / max(len(lengths), 1)
        features[f"runs.{name}_per_line"] = len(lengths) / len(lines)
        for bound, share in zip(_RUN_BOUNDS, shares, strict=True):
            features[f"runs.{name}_up_to_{bound}"] = float(share)
    return features


def _counts_up_to(values: NDArray[np.int64], bounds: tuple[int, ...]) -> NDArray[np.int64]:
    """How many non-negative whole numbers are at most each bound."""
    cumulative = np.cumsum(np.bincount(values, minlength=bounds[-1] + 1))
    return cumulative[list(bounds)]


def _glyphs(ink: NDArray[np.bool_]) -> dict[str, float]:
    """Heights in model pixels of the components of ink that could be glyphs.

    A glyph is at least 3 px high, not longer than a few of its heights, and not solid. Without any
    the heights are those of the picture itself: there is nothing small to read.
    """
    found = _components(ink)
    height, width, area = found.height, found.width, found.area
    is_glyph = (
        (height >= _GLYPH_LEAST)
        & (height <= _GLYPH_BOUNDS[-1])
        & (width <= 4 * height)
        & (height <= 12 * width)
        & (area >= 4)
        & (area <= 0.95 * height * width)
    )
    heights = np.sort(height[is_glyph])
    features = {
        "glyphs.count": float(len(heights)),
        "glyphs.share": len(heights) / max(len(height), 1),
    }
    for bound, count in zip(_GLYPH_BOUNDS, _counts_up_to(heights, _GLYPH_BOUNDS), strict=True):
        features[f"glyphs.up_to_{bound}"] = float(count)
    if not len(heights):
        heights = np.array([MODEL_SIDE])
    for share in _QUANTILES:
        features[f"glyphs.height_q{round(100 * share)}"] = _quantile(heights, share)
    return features


@dataclass(frozen=True, slots=True, eq=False)
class _Components:
    """The 8-connected components of a mask, sizes in its pixels.

    Args:
        owner: for each pixel of the mask, in reading order, the component it belongs to.
    """

    height: NDArray[np.int64]
    width: NDArray[np.int64]
    area: NDArray[np.int64]
    owner: NDArray[np.int64]


def _components(mask: NDArray[np.bool_]) -> _Components:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=np.int8))
    at = np.flatnonzero(mask)
    owner = labels.ravel()[at].astype(np.int64) - 1
    rows, columns = np.divmod(at, mask.shape[1])
    # Pixels come row by row: of several assignments to one place numpy keeps the last.
    bottom, top = np.zeros((2, count), dtype=np.int64)
    bottom[owner] = rows
    top[owner[::-1]] = rows[::-1]
    left, right = np.full(count, mask.shape[1]), np.zeros(count, dtype=np.int64)
    np.minimum.at(left, owner, columns)
    np.maximum.at(right, owner, columns)
    area = np.bincount(owner, minlength=count)
    return _Components(bottom - top + 1, right - left + 1, area, owner)


def _colours(view: View, codes: NDArray[np.int16]) -> dict[str, float]:
    """How many colours there are, and how evenly they share the picture."""
    shares = np.bincount(codes.ravel()) / codes.size
    shares = np.sort(shares[shares > 0])[::-1]
    greys = np.bincount(view.luma.astype(np.uint8).ravel() >> 2) / view.luma.size
    return {
        "colours.count": float(len(shares)),
        "colours.over_1_percent": float((shares > 0.01).sum()),
        "colours.first": float(shares[0]),
        "colours.second": float(shares[1]) if len(shares) > 1 else 0.0,
        "colours.entropy": _entropy(shares),
        "luma.entropy": _entropy(greys[greys > 0]),
        "luma.mean": float(view.luma.mean()),
        "chroma.mean": float(np.abs(view.half[1:] - 128).mean()),
    }


def _entropy(shares: NDArray[np.float64]) -> float:
    """In bits."""
    return float(-(shares * np.log2(shares)).sum())


def _regions(half: _Plane, codes: NDArray[np.int16]) -> dict[str, float]:
    """Number and size, in model pixels, of the regions that differ from the commonest colour.

    For each colour name, also the number of regions of that colour and how high the taller ones
    are; zero where there are none.
    """
    ground = codes == np.bincount(codes.ravel()).argmax()
    typical = np.array([plane[ground].mean() for plane in half], dtype=np.float32)
    mask = np.abs(half - typical[:, None, None]).max(0) > _REGION_CONTRAST
    found = _components(mask)
    solid = found.area >= _REGION_LEAST
    sides = np.sort(2 * np.sqrt(found.height[solid] * found.width[solid]))
    features = {
        "regions.count": float(len(sides)),
        "regions.share": float(found.area.sum() / codes.size),
    }
    if not len(sides):
        sides = np.array([float(MODEL_SIDE)])
    features["regions.side_min"] = float(sides[0])
    features["regions.side_max"] = float(sides[-1])
    for share in _QUANTILES:
        features[f"regions.side_q{round(100 * share)}"] = _quantile(sides, share)

    votes = found.owner * len(COLOURS) + name_of_code()[codes[mask]]
    names = np.bincount(votes, minlength=len(solid) * len(COLOURS))
    name = names.reshape(len(solid), len(COLOURS)).argmax(axis=1)
    for index, colour in enumerate(COLOURS):
        heights = np.sort(2 * found.height[solid & (name == index)])
        taller = _quantile(heights, 0.75) if len(heights) else 0.0
        features[f"colour_regions.{colour}_count"] = float(len(heights))
        features[f"colour_regions.{colour}_height"] = taller
    return features


def _named_colours(half: _Plane, codes: NDArray[np.int16]) -> dict[str, float]:
    """Where each of the named colours is, and how much of a cell of each grid it fills at best.

    A colour that fills a cell survives the averaging over it; one that fills a tenth is gone.
    Lengths are in model pixels, places in shares of the side; where a colour does not occur its
    lengths are 0 and its place is the middle. `ground` is the commonest name, `ink` the next.
    """
    names = name_of_code()[codes].astype(np.intp)
    kinds = len(COLOURS)
    height, width = names.shape
    row, column = np.arange(height)[:, None], np.arange(width)
    by_row = np.bincount((row * kinds + names).ravel(), minlength=height * kinds)
    by_column = np.bincount((column * kinds + names).ravel(), minlength=width * kinds)
    by_row, by_column = by_row.reshape(height, kinds), by_column.reshape(width, kinds)
    pixels = by_row.sum(0)
    covers = _best_covers(names)
    middles, spreads = zip(*(_place(counts) for counts in (by_row, by_column)), strict=True)
    runs = 2 * _longest_runs(by_row >= _COLOUR_LEAST)

    features = {}
    for index, colour in enumerate(COLOURS):
        for grid, cover in zip(GRIDS, covers[index], strict=True):
            features[f"colour.{colour}_cover_{grid}"] = float(cover)
        features[f"colour.{colour}_rows"] = float(runs[index])
        features[f"colour.{colour}_tall"] = float(spreads[0][index])
        features[f"colour.{colour}_wide"] = float(spreads[1][index])
        features[f"colour.{colour}_y"] = float(middles[0][index])
        features[f"colour.{colour}_x"] = float(middles[1][index])

    order = np.argsort(-pixels, kind="stable")
    ground, ink = order[0], order[1]
    shades = [_mean_shade(half, names == index) for index in (ground, ink)]
    features |= _shade("ground", shades[0]) | _shade("ink", shades[1])
    features["ground.average_distance"] = _distance(half.mean((1, 2)), shades[0])
    features["ink.distance"] = _distance(*shades)
    features["ink.share"] = pixels[ink] / names.size
    features["ink.rows"] = float(runs[ink])
    for grid, cover in zip(GRIDS, covers[ink], strict=True):
        features[f"ink.cover_{grid}"] = float(cover)
    present = np.sort(runs[(pixels > _COLOUR_SHARE * names.size) & (np.arange(kinds) != ground)])
    features["colours.named"] = float(len(present))
    features["colours.lead"] = float(present[-1] - present[-2]) if len(present) > 1 else 0.0
    features["colours.trail"] = float(present[1] - present[0]) if len(present) > 1 else 0.0
    return features


def _best_covers(names: NDArray[np.intp]) -> NDArray[np.float64]:
    """Colours × grids: the largest share of any cell of the padded square that a colour fills."""
    side, kinds = max(names.shape), len(COLOURS)
    cell = side // FINEST_GRID
    row, column = ((np.arange(length) + (side - length) // 2) // cell for length in names.shape)
    where = (row[:, None] * FINEST_GRID + column) * kinds + names
    counts = np.bincount(where.ravel(), minlength=FINEST_GRID**2 * kinds).astype(np.float64)
    counts = counts.reshape(FINEST_GRID, FINEST_GRID, kinds).transpose(2, 0, 1)
    areas = [(side // grid) ** 2 for grid in GRIDS]
    best = [
        _coarser(counts, grid).max((1, 2)) / area for grid, area in zip(GRIDS, areas, strict=True)
    ]
    return np.stack(best, axis=1)


def _place(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean place in [0, 1] and extent in model pixels of each colour along an axis.

    The extent is that of an even spread with the same standard deviation: unlike the distance
    between the first and the last pixel, a stray one does not change it.

    Args:
        counts: places × colours.
    """
    place = np.arange(len(counts)) + 0.5
    total = np.maximum(counts.sum(0), 1)
    middle = place @ counts / total
    variance = np.maximum(place**2 @ counts / total - middle**2, 0)
    absent = counts.sum(0) == 0
    return np.where(absent, 0.5, middle / len(counts)), np.where(
        absent, 0.0, 2 * np.sqrt(12 * variance)
    )


def _longest_runs(present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each column, the most rows in a row that are true."""
    row = np.arange(len(present))[:, None]
    before = np.maximum.accumulate(np.where(present, -1, row), axis=0)
    runs: NDArray[np.int64] = np.where(present, row - before, 0).max(axis=0)
    return runs


def _mean_shade(half: _Plane, where: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean luma, blue and red difference of some pixels; mid-grey if there are none."""
    if not where.any():
        return np.full(3, 128.0)
    return np.array([plane[where].mean() for plane in half], dtype=np.float64)


def _shade(name: str, shade: NDArray[np.float64]) -> dict[str, float]:
    return {f"{name}.{part}": float(value) for part, value in zip(_PLANES, shade, strict=True)}


def _distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """In grey levels."""
    return float(np.sqrt(((one - other) ** 2).sum()))
