from __future__ import annotations

import numpy as np
import pytest

from predictor.frontier import Curve, allocation
from predictor.judgement import same_picture, saved_at

RIGHT = np.array(
    [
        [True, True, True],  # needs the coarsest
        [False, False, True],  # the finest
        [False, True, True],  # the middle
        [False, False, False],  # nothing helps
    ]
)
IMAGES = np.array(["a", "a", "b", "b"], dtype=object)


def test_what_was_given_against_what_was_needed() -> None:
    found = allocation(RIGHT, np.array([0, 1, 2, 1]))
    assert found["matrix"] == [[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert (found["exact"], found["over"], found["under"], found["wasted"]) == (0.25,) * 4


def test_questions_about_one_picture_are_compared_in_pairs() -> None:
    rightly = same_picture(IMAGES, RIGHT, np.array([0, 2, 1, 1]))
    assert (rightly["pairs"], rightly["different"]) == (2, 1)
    assert (rightly["rightly"], rightly["wrongly"], rightly["needs_equal"]) == (1, 0, 0)
    wrongly = same_picture(IMAGES, RIGHT, np.array([2, 0, 0, 1]))
    assert (wrongly["different"], wrongly["rightly"], wrongly["wrongly"]) == (2, 0, 2)
    alike = same_picture(IMAGES, np.ones_like(RIGHT), np.array([2, 0, 0, 0]))
    assert (alike["different"], alike["needs_equal"]) == (1, 1)


@pytest.mark.parametrize(
    ("accuracy", "tokens"),
    # The fall from 10 to 20 tokens is no help: from 0.3 at 20 it goes up to 0.6 at 100.
    [(0.1, 1.0), (0.25, 5.5), (0.3, 10.0), (0.45, 60.0), (0.6, 100.0), (0.7, None)],
)
def test_tokens_for_an_accuracy(accuracy: float, tokens: float | None) -> None:
    curve = Curve(np.array([1.0, 10.0, 20.0, 100.0]), np.array([0.2, 0.3, 0.25, 0.6]))
    assert saved_at(curve, accuracy) == (None if tokens is None else pytest.approx(tokens))
