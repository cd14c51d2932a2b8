"""What labels say: of what was served, and of every threshold, whatever was served."""

from __future__ import annotations

import pytest

from predictor.record_store import LABELS
from predictor.regret import Estimate, RegretLedger, Served
from tests.predictor.test_retrain import label

# At price 5 the coarsest scale is chosen, at 0.05 the one of 36 tokens, which agrees.
ROW = {
    "predictor": "p",
    "scale": 1,
    "agrees": [0.0, 0.0, 1.0, 1.0, 1.0],
    "p_success": [0.9, 0.9, 0.97, 0.97, 0.97],
    "target": "agreement",
    "certified_bounds": [0.01, 0.05],
    "certified_prices": [0.05, 5.0],
}


def ledger(*rows: dict[str, object]) -> RegretLedger:
    made = RegretLedger()
    table, broken = LABELS.decode([label(at, **row) for at, row in enumerate(rows)])
    assert broken == []
    made.add(table)
    return made


def test_every_threshold_is_judged_whatever_was_served() -> None:
    found = ledger(*[ROW] * 40)
    thresholds = found.thresholds()["p"]
    assert {bound: (e.regret, e.labels, e.bound) for bound, e in thresholds.items()} == {
        0.01: (0.0, 40, pytest.approx(0.01)),
        0.05: (1.0, 40, pytest.approx(0.05)),
    }
    assert thresholds[0.05].is_broken
    assert not thresholds[0.01].is_broken
    lows = found.lows()["p"]
    assert lows[0.01] == 0.0
    assert lows[0.05] > 0.5


def test_what_was_served_is_told_apart_by_what_it_was_tightened_to() -> None:
    tightened = ROW | {"tightened_to": 0.01, "scale": 36}
    found = ledger(*[ROW] * 10, *[tightened] * 20).estimates()
    assert {served: (e.regret, e.labels) for served, e in found.items()} == {
        Served("p"): (1.0, 10),
        Served("p", 0.01): (0.0, 20),
    }


@pytest.mark.parametrize(
    "change",
    [
        {"target": "correctness"},
        {"target": None, "certified_bounds": None, "certified_prices": None},
        {"predictor": None, "p_success": None, "target": None},
        {"stratum": "threshold"},
    ],
)
def test_labels_that_cannot_judge_a_promise_do_not(change: dict[str, object]) -> None:
    """Of correctness they say nothing: two answers may differ and both be right."""
    found = ledger(*[ROW | change] * 40)
    assert found.thresholds() == found.lows() == {}


def test_of_many_predictors_the_latest_are_kept() -> None:
    found = ledger(*[ROW | {"predictor": f"p{at}"} for at in range(40)])
    assert list(found.thresholds()) == [f"p{at}" for at in range(24, 40)]
    assert len(found.estimates()) == 16
    assert isinstance(found.estimates()[Served("p39")], Estimate)
