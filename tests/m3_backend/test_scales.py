"""Ladders, refusals that name what is valid, and errors that survive the trip between processes."""

from __future__ import annotations

import pickle

import pytest

from m3_backend.errors import InvalidScaleError, OverloadedError
from m3_backend.scales import ScaleLadder, parse_scales


def test_the_ladder_of_m3() -> None:
    ladder = ScaleLadder()
    assert (ladder.coarsest, ladder.finest, len(ladder)) == (1, 576, 5)
    assert [ladder.side(scale) for scale in ladder.scales] == [1, 3, 6, 12, 24]
    assert ladder.finer(9) == (36, 144, 576)
    assert 36 in ladder and 100 not in ladder


def test_what_cannot_be_pooled_to_is_not_called_finer() -> None:
    assert ScaleLadder((9, 16, 36, 64)).finer(9) == (36,)


@pytest.mark.parametrize("scales", [(), (2,), (25,), (9, 9), (36, 9), (0,), (-1,), (1024,)])
def test_ladders_that_do_not_fit_the_grid_are_refused(scales: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        ScaleLadder(scales)


def test_a_scale_is_never_rounded() -> None:
    with pytest.raises(InvalidScaleError) as caught:
        ScaleLadder().require(100, param="m3.scale")
    assert "1, 9, 36, 144, 576" in caught.value.message
    assert (caught.value.status, caught.value.param) == (400, "m3.scale")


def test_scales_in_a_config_may_stand_in_any_order() -> None:
    assert parse_scales([576, 1, 36, 9, 144, 1], 24) == ScaleLadder()


def test_errors_survive_pickling() -> None:
    for error in (OverloadedError("later", retry_after_s=3), InvalidScaleError(7, (1, 9))):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert copy.__dict__ == error.__dict__
        assert str(copy) == str(error)
