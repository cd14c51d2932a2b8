from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit

from predictor.calibration import (
    BetaCalibration,
    Thresholds,
    certify,
    expected_calibration_error,
    hoeffding_bentkus,
    per_image,
    regret_losses,
    reliability,
)

SHARES = np.array([1, 9, 36, 144, 576]) / 576


def test_calibration_mends_overconfidence_scale_by_scale() -> None:
    rng = np.random.default_rng(0)
    true = expit(rng.normal(size=(8000, 2)) * 1.5)
    success = rng.random(true.shape) < true
    raw = np.stack([expit(3 * logit(true[:, 0])), expit(logit(true[:, 1]) + 1)], axis=1)

    calibrated = BetaCalibration.fit(raw[:4000], success[:4000]).apply(raw[4000:])

    assert expected_calibration_error(raw[4000:], success[4000:]) > 0.08
    assert expected_calibration_error(calibrated, success[4000:]) < 0.03
    assert np.abs(calibrated - true[4000:]).mean() < 0.02


def test_a_scale_that_always_succeeds_stays_short_of_certainty() -> None:
    raw = np.random.default_rng(0).uniform(0.9, 1, (500, 1))
    calibrated = BetaCalibration.fit(raw, np.ones((500, 1), bool)).apply(np.array([[0.0], [1.0]]))
    assert np.isfinite(calibrated).all()
    assert 0.9 < calibrated.max() < 1


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_calibration_keeps_the_order_of_probabilities(p: list[float]) -> None:
    calibration = BetaCalibration(np.array([[0.7, 1.8, -0.3]]))
    ascending = calibration.apply(np.sort(np.array(p))[:, None])
    assert (np.diff(ascending[:, 0]) >= 0).all()
    assert ((ascending >= 0) & (ascending <= 1)).all()


def test_the_identity_needs_evidence_to_be_left() -> None:
    nothing = np.empty((0, 1))
    untouched = BetaCalibration.fit(nothing, nothing.astype(bool))
    np.testing.assert_allclose(untouched.coefficients, [[1, 1, 0]], atol=1e-6)


def test_p_values_by_hand() -> None:
    # No loss in n images: Hoeffding's term is (1 - bound)^n.
    assert hoeffding_bentkus(0.0, 300, 0.01) == pytest.approx(0.99**300)
    # Three losses in 50 at 0.2: e·P(Bin(50, 0.2) ≤ 3) = e·0.005656; Hoeffding's term is larger.
    assert hoeffding_bentkus(3 / 50, 50, 0.2) == pytest.approx(np.e * 0.0056562, rel=1e-3)
    assert hoeffding_bentkus(0.2, 50, 0.2) == hoeffding_bentkus(0.5, 50, 0.2) == 1.0
    assert hoeffding_bentkus(0.0, 0, 0.2) == 1.0


def test_p_values_are_valid() -> None:
    """At the border of the hypothesis, a p-value below u comes with chance at most u."""
    rng = np.random.default_rng(1)
    for bound, count in ((0.02, 200), (0.1, 80), (0.3, 30)):
        means = rng.binomial(count, bound, size=4000) / count
        p_values = np.array([hoeffding_bentkus(mean, count, bound) for mean in means])
        for level in (0.05, 0.1, 0.3):
            assert (p_values <= level).mean() <= level


def test_losses_are_averaged_per_image() -> None:
    losses = np.array([[True, False], [False, False], [True, True]])
    images = np.array(["b", "b", "a"], dtype=object)
    assert per_image(losses, images).tolist() == [[1.0, 1.0], [0.5, 0.0]]


def test_regret_counts_only_what_the_finest_would_have_got() -> None:
    p = np.array([[0.9, 0.9], [0.1, 0.9]])
    success = np.array([[False, True], [False, False]])
    losses = regret_losses(p, success, np.array([0.5, 1.0]), np.array([0.1, 3.0]))
    assert losses.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(
    ("bound", "price"), [(0.005, None), (0.01, None), (0.05, 0.1), (0.07, 0.1), (0.5, 0.3)]
)
def test_between_grid_points_the_stricter_holds(bound: float, price: float | None) -> None:
    assert Thresholds((0.01, 0.05, 0.1), (None, 0.1, 0.3)).at(bound) == price


def test_too_few_images_certify_nothing() -> None:
    p, success, images = population(10, seed=0)
    assert certify(p, success, images, SHARES, bounds=(0.05,)).prices == (None,)


def test_looser_bounds_never_get_stricter_prices() -> None:
    certified = certify(*population(600, seed=0), SHARES).prices
    held = [-1.0 if price is None else price for price in certified]
    assert held == sorted(held)
    assert held[0] == -1.0  # no sample of this size can promise a quarter of a per cent
    assert held[-1] > 0.2


def population(
    images: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.object_]]:
    """Probabilities, outcomes and image names: three questions per image that share its luck."""
    rng = np.random.default_rng(seed)
    needed = np.repeat(rng.normal(2, 2, images), 3) + rng.normal(0, 1, 3 * images)
    luck = np.repeat(rng.normal(0, 1.5, images), 3)
    sharpness = np.arange(5) * 1.4 - needed[:, None]
    success = sharpness + luck[:, None] + rng.normal(0, 0.5, (3 * images, 5)) > 0
    return expit(1.3 * sharpness), success, np.repeat(np.arange(images), 3).astype(object)


def test_reliability_over_bins_of_equal_count() -> None:
    p = np.linspace(0, 1, 1000)[:, None]
    bins = reliability(p, np.random.default_rng(0).random((1000, 1)) < p, bins=4)
    assert [each.count for each in bins] == [250] * 4
    assert [each.predicted for each in bins] == pytest.approx(
        [0.125, 0.375, 0.625, 0.875], abs=0.01
    )
    assert all(abs(each.observed - each.predicted) < 0.1 for each in bins)
