"""Which threshold stands for a promise, after what labels say of each."""

from __future__ import annotations

import itertools

import pytest

from predictor.tightening import Standing, standing

CERTIFIED = ((0.01, 0.1), (0.02, 0.2), (0.05, 0.5), (0.1, 1.0))


@pytest.mark.parametrize(
    ("promise", "lows", "expected"),
    [
        (0.05, {}, Standing(0.5)),
        (0.05, {0.05: 0.05}, Standing(0.5)),  # not above it
        (0.07, {0.05: 0.06}, Standing(0.5)),  # above its own bound, not above what was promised
        (0.05, {0.05: 0.051}, Standing(0.2, 0.02)),
        (0.05, {0.05: 0.2, 0.02: 0.1}, Standing(0.1, 0.01)),
        (0.05, {0.05: 0.2, 0.02: 0.1, 0.01: 0.06}, Standing(None, 0.0)),
        (0.005, {0.01: 0.5}, Standing(None)),  # so strict a promise never had a price
        (0.1, {0.05: 0.2}, Standing(1.0)),
    ],
)
def test_the_loosest_that_nothing_speaks_against(
    promise: float, lows: dict[float, float], expected: Standing
) -> None:
    assert standing(CERTIFIED, lows, promise) == expected


def test_more_evidence_never_loosens_and_a_looser_promise_is_never_stricter() -> None:
    levels = (0.0, 0.015, 0.03, 0.06, 0.2)
    bounds = [bound for bound, _ in CERTIFIED]
    for lows in itertools.product(levels, repeat=3):
        known = dict(zip(bounds, lows, strict=False))
        prices = [standing(CERTIFIED, known, promise).price or 0.0 for promise in levels]
        assert prices == sorted(prices)
        for bound, low in known.items():
            more = known | {bound: low + 0.05}
            for promise in levels:
                now = standing(CERTIFIED, known, promise).price or 0.0
                assert (standing(CERTIFIED, more, promise).price or 0.0) <= now
