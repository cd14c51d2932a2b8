"""How long a line is in seconds, and how the pace behind that is learned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_backend.pace import EMPTY, AnswerLength, Line, Pace, wait_s

lines = st.builds(Line, st.integers(1, 50), st.floats(0, 1e5), st.floats(0, 1e5))


def test_only_those_who_find_no_slot_wait_for_answers() -> None:
    line = Line(4, 400.0, 1000.0)
    assert wait_s(line, free_slots=4, pace=1.0) == pytest.approx(0.4)
    assert wait_s(line, free_slots=1, pace=1.0) == pytest.approx(0.4 + 0.75)
    assert wait_s(line, free_slots=0, pace=2.0) == pytest.approx(0.7)
    assert wait_s(EMPTY, free_slots=0, pace=1.0) == 0.0


@given(lines, lines, st.integers(0, 60), st.integers(0, 60), st.floats(0.01, 100))
def test_a_longer_line_and_fewer_slots_never_shorten_the_wait(
    line: Line, more: Line, free: int, fewer: int, pace: float
) -> None:
    few, many = sorted((free, fewer))
    assert wait_s(line, few, pace) >= wait_s(line, many, pace)
    assert wait_s(line + more, 0, pace) >= wait_s(line, 0, pace)


def test_nobody_is_left_when_as_many_have_gone() -> None:
    assert Line(2, 300.0, 1.0) - Line(2, 299.0, 1.0) == EMPTY
    assert Line(3, 300.0, 9.0) - Line(1, 100.0, 3.0) == Line(2, 200.0, 6.0)


def test_the_estimates_hold_until_something_was_measured() -> None:
    assert Pace().value == 1.0


@pytest.mark.parametrize("true", [0.2, 7.0])
def test_the_pace_is_learned_within_seconds_and_follows(true: float) -> None:
    pace = Pace()
    for _ in range(30):
        pace.observe(0.1, true * 100)
    assert pace.value == pytest.approx(true, rel=0.5)
    for _ in range(300):
        pace.observe(0.1, 3 * 100)
    assert pace.value == pytest.approx(3, rel=0.05)


def test_a_stall_and_a_burst_stay_within_reason() -> None:
    stalled, burst = Pace(), Pace()
    stalled.observe(3600.0, 0.0)
    assert 0 < stalled.value < 0.1
    burst.observe(0.0, 1e12)
    assert burst.value <= 1000.0


def test_answers_are_as_long_as_the_last_ones() -> None:
    answers = AnswerLength()
    answers.saw(4)
    answers.saw(8)
    assert answers.mean == pytest.approx(6)
    for _ in range(500):
        answers.saw(100)
    assert answers.mean == pytest.approx(100, rel=0.01)
