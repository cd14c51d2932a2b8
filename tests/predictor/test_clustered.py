"""Intervals against textbook values, limits that are known, and coverage."""

from __future__ import annotations

import numpy as np
import pytest

from predictor.clustered import Clusters, Estimate, gap, members


def clusters(*sizes: int) -> Clusters:
    return Clusters.of([f"{at}" for at, size in enumerate(sizes) for _ in range(size)])


def test_many_independent_samples_get_wilsons_interval() -> None:
    """81 of 263 is Newcombe's example (1998): 0.2553 to 0.3662 by Wilson's score."""
    found = clusters(*[1] * 263).share([1] * 81 + [0] * 182)
    assert found.value == pytest.approx(81 / 263)
    # One degree of freedom and t for z make it a hair wider.
    assert (found.low, found.high) == (
        pytest.approx(0.2553, abs=6e-4),
        pytest.approx(0.3662, abs=6e-4),
    )
    assert found.low < 0.2553 and found.high > 0.3662


def test_questions_that_say_the_same_count_once() -> None:
    """Five times the questions about the same pictures is no more evidence."""
    right = np.array([1, 0, 1, 1, 0, 1, 0, 1])
    once = clusters(*[1] * 8).share(right)
    repeated = clusters(*[5] * 8).share(np.repeat(right, 5))
    assert repeated == once


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_unanimous_answers_still_leave_room_for_doubt(right: float) -> None:
    """0 of n by Wilson is t²/(n + t²) with n the pictures, here t(3) = 3.18245."""
    found = clusters(2, 2, 2, 2).share(np.full(8, right))
    room = 3.18245**2 / (4 + 3.18245**2)
    low, high = (0.0, room) if right == 0 else (1 - room, 1.0)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


def test_one_picture_tells_nothing_about_others() -> None:
    alone = clusters(6)
    assert alone.share([1, 0, 1, 1, 1, 0]) == Estimate(4 / 6)
    assert alone.difference([1, 0, -1, 1, 0, 0]) == Estimate(pytest.approx(1 / 6))


def test_pictures_count_the_same_however_much_is_asked_about_them() -> None:
    crowded = clusters(8, 1, 1, 1)
    values = [1.0] * 8 + [0.0] * 3
    found = crowded.share_by_picture(values)
    assert found == clusters(1, 1, 1, 1).share([1, 0, 0, 0])
    assert found.value == 0.25
    assert crowded.share(values).value == pytest.approx(8 / 11)
    # With as many questions about each picture the two are one.
    even, right = clusters(*[2] * 6), [1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0]
    same, other = even.share(right), even.share_by_picture(right)
    assert (other.low, other.high) == (pytest.approx(same.low), pytest.approx(same.high))
    assert clusters(3).share_by_picture([1, 0, 0]) == Estimate(pytest.approx(1 / 3))


def test_a_paired_difference_by_hand() -> None:
    """Picture sums 1, 0, -1 and 2 around a mean of 1/4 per sample, two samples each.

    Residuals 0.5, -0.5, -1.5, 1.5: squares 5, variance 4/3 · 5 / 64, t(3) = 3.18245.
    """
    found = clusters(2, 2, 2, 2).difference([1, 0, 1, -1, 0, -1, 1, 1])
    reach = 3.18245 * (4 / 3 * 5 / 64) ** 0.5
    assert found.value == 0.25
    assert found.low == pytest.approx(0.25 - reach, abs=1e-5)
    assert found.high == 1.0  # 1.277, and no difference is more than 1


def test_no_difference_anywhere_is_no_bound() -> None:
    assert not clusters(1, 1, 1).difference([0, 0, 0]).known


def test_a_gap_is_newcombes_hybrid() -> None:
    """56/70 and 48/80, his example a: 0.0524 to 0.3339 by the method of square-and-add."""
    one, other = Estimate(56 / 70, 0.6918, 0.8776), Estimate(48 / 80, 0.4904, 0.7004)
    found = gap(one, other)
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == (
        pytest.approx(0.0524, abs=2e-3),
        pytest.approx(0.3339, abs=2e-3),
    )
    assert found.excludes(0) and not found.excludes(0.1)
    assert not gap(one, Estimate(0.5)).known


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Those that take questions for independent do not."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(1000):
        picture = np.repeat(np.arange(40), rng.integers(1, 6, 40))
        chances = rng.beta(2.8, 1.2, 40)
        right = rng.random(len(picture)) < chances[picture]
        found = Clusters(picture, 40).share(right)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0.7 <= found.high
        independent = Clusters(np.arange(len(picture)), len(picture)).share(right)
        assert independent.low is not None and independent.high is not None
        naive += independent.low <= 0.7 <= independent.high
    assert 0.93 <= covered / 1000 <= 0.97
    assert naive / 1000 < 0.92


def test_members_by_name() -> None:
    found = members(np.array(["b", "a", "b"], dtype=object))
    assert list(found) == ["a", "b"]
    assert found["b"].tolist() == [True, False, True]
