"""Population stability: what it is, of whatever values, and that chance alone is no shift."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from predictor.drift import Reference, kind_of, reference_names, shifts

NAMES = ("luma.mean", "query.words", "score.1")


def numbers(count: int, seed: int, mean: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(mean, 1.0, (count, len(NAMES))).astype(np.float32)


def test_the_same_traffic_has_not_moved_and_other_traffic_has() -> None:
    reference = Reference.of(NAMES, numbers(3_000, 0))
    assert reference.counts.sum(axis=1).tolist() == [3_000] * 3
    assert reference.stability(numbers(500, 1)).max() < 0.1
    moved = numbers(500, 2)
    moved[:, 1] += 1.0
    psi = reference.stability(moved)
    assert psi[1] > 0.5
    assert max(psi[0], psi[2]) < 0.1


def test_it_is_the_index_by_its_definition() -> None:
    """A feature that is set in 10% of the reference and in half of the traffic."""
    before = np.array([[1.0]] * 100 + [[0.0]] * 900, dtype=np.float32)
    live = np.array([[1.0], [0.0]] * 500, dtype=np.float32)
    psi = Reference.of(("query.about_text",), before).stability(live)
    expected = (0.5 - 0.1) * log(0.5 / 0.1) + (0.5 - 0.9) * log(0.5 / 0.9)
    assert psi == pytest.approx([expected], rel=0.01)


def test_what_was_always_the_same_moves_when_it_changes() -> None:
    reference = Reference.of(("pie",), np.zeros((1_000, 1), np.float32))
    assert reference.stability(np.zeros((300, 1), np.float32)) == pytest.approx([0.0], abs=0.01)
    assert reference.stability(np.full((300, 1), 2.0, np.float32))[0] > 1


def test_the_largest_shift_of_each_kind_is_named() -> None:
    names = reference_names(("luma.mean", "luma.high", "query.words", "named.rows"), (1, 576))
    assert [kind_of(name) for name in names] == [
        *("picture", "picture", "question", "question", "score", "score"),
    ]
    rng = np.random.default_rng(3)
    before = rng.random((2_000, len(names)), dtype=np.float32)
    live = rng.random((400, len(names)), dtype=np.float32)
    live[:, 1] *= 0.5
    live[:, 3] **= 3
    live[:, 5] = 1.0
    found = shifts(Reference.of(names, before), live)
    assert {kind: shift.name for kind, shift in found.items()} == {
        "picture": "luma.high",
        "question": "named.rows",
        "score": "score.576",
    }
    assert all(shift.psi > 0.25 for shift in found.values())
