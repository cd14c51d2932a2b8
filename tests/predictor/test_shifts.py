from __future__ import annotations

import io

import numpy as np
from PIL import Image

from predictor.shifts import OFFSETS, lossless, shifted


def picture(width: int, height: int) -> Image.Image:
    """Every pixel different: red counts columns, green rows."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0], axis=-1).astype(np.uint8))


def test_offsets_are_all_different_and_small() -> None:
    assert OFFSETS[0] == (0, 0)
    assert len(set(OFFSETS)) == len(OFFSETS) == 25
    assert max(abs(step) for offset in OFFSETS for step in offset) == 2
    assert {max(map(abs, offset)) for offset in OFFSETS[1:5]} == {1, 2}  # a default null has both


def test_edges_are_repeated_where_the_picture_leaves_a_gap() -> None:
    pixels = np.asarray(shifted(picture(5, 4), OFFSETS.index((1, -2)), 336))
    assert pixels.shape == (4, 5, 3)
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 2, 3]  # one to the right
    assert pixels[:, 0, 1].tolist() == [2, 3, 3, 3]  # two up


def test_a_larger_picture_moves_by_as_much_as_the_model_sees() -> None:
    pixels = np.asarray(shifted(picture(60, 20), OFFSETS.index((1, 0)), 20))
    assert pixels[0, :5, 0].tolist() == [0, 0, 0, 0, 1]


def test_run_zero_is_the_picture_and_copies_are_exact() -> None:
    original = picture(7, 5)
    assert (np.asarray(shifted(original, 0, 336)) == np.asarray(original)).all()
    with Image.open(io.BytesIO(lossless(original))) as copy:
        assert (np.asarray(copy) == np.asarray(original)).all()
