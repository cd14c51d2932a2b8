from __future__ import annotations

import numpy as np
import pytest

from predictor import calibration
from predictor.calibration import PRICES, per_image, regret_losses
from predictor.guarantee import repeat_certification
from tests.predictor.test_calibration import SHARES, population

BOUNDS = (0.02, 0.05, 0.1, 0.2)


@pytest.mark.parametrize("target", ["agreement", "correctness"])
def test_the_promise_holds_over_repeated_splits(target: str) -> None:
    """Regret on fresh pictures exceeds its bound in at most 5% of splits, whatever the bound.

    200 splits; 16 failures are what a rate of 5% exceeds with chance 2.4%.
    """
    p, success, images = population(1500, seed=5)
    if target == "agreement":
        success = success == success[:, -1:]
    losses = per_image(regret_losses(p, success, SHARES, PRICES), images)
    trials = repeat_certification(losses, BOUNDS, seed=6)
    assert [trial.bound for trial in trials] == list(BOUNDS)
    assert all(trial.exceeded <= 16 for trial in trials)
    assert trials[2].promised > 150  # the guarantee is not kept by promising nothing
    assert trials[0].mean_regret < trials[3].mean_regret < 0.2


def test_regret_above_the_bound_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that rejects too readily promises what the data does not hold."""
    p, success, images = population(300, seed=5)
    losses = per_image(regret_losses(p, success, SHARES, PRICES), images)
    monkeypatch.setattr(calibration, "hoeffding_bentkus", lambda risk, count, bound: risk > bound)
    trials = repeat_certification(losses, BOUNDS, splits=100)
    assert all(trial.exceeded > 16 for trial in trials)


def test_without_a_promise_there_is_no_regret() -> None:
    trial = repeat_certification(np.ones((50, len(PRICES))), (0.01,), splits=5)[0]
    assert (trial.promised, trial.exceeded, trial.mean_regret, trial.mean_price) == (0, 0, 0, None)
