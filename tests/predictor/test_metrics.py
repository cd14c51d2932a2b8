from __future__ import annotations

import pytest

from predictor.metrics import exact_match


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("Red.", ["red"]),
        ("a red circle", ["the red  circle"]),
        ("Three", ["3"]),
        ("3.0", ["3"]),
        ("$1,250.50", ["1250.5"]),
        ("12%", ["12%"]),
        ("no", ["yes", "no"]),
        ("12:30", ["12:30"]),
        ("-4", ["-4.0"]),
        ("yes,", ["Yes"]),
    ],
)
def test_what_counts_as_equal(answer: str, accepted: list[str]) -> None:
    assert exact_match(answer, accepted) == 1.0


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("red", ["dark red"]),
        ("31", ["3"]),
        ("1.2", ["12"]),
        ("4", ["-4"]),
        ("", ["red"]),
        ("12:30", ["1230"]),
        ("red", []),
        ("nan", ["inf"]),
    ],
)
def test_what_does_not(answer: str, accepted: list[str]) -> None:
    assert exact_match(answer, accepted) == 0.0
