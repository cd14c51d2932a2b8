"""What speaks for a candidate and what against it, on samples made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from predictor.calibration import Thresholds
from predictor.gate import Contestant, HeldOut, Tolerances, decide, standing

TOKENS = np.array([1.0, 9.0, 36.0, 144.0, 576.0])
CERTIFIED = Thresholds((0.05,), (0.1,))


def held_out(count: int = 2_000, seed: int = 0) -> HeldOut:
    """Half of the questions are answered at any scale, the others only at the two finest."""
    rng = np.random.default_rng(seed)
    hard = rng.random(count) < 0.5
    success = np.where(hard[:, None], [False, False, False, True, True], [True] * 5)
    return HeldOut(
        success=success,
        tokens=np.tile(TOKENS, (count, 1)),
        images=np.array([str(n // 2) for n in range(count)], dtype=object),
        groups=np.where(hard, "hard", "easy").astype(object),
        weights=np.ones(count),
    )


def knows(samples: HeldOut, share: float = 1.0, seed: int = 1) -> Contestant:
    """One that knows what happens in this share of the samples, and else nothing but the mean."""
    rng = np.random.default_rng(seed)
    known = rng.random(len(samples.success)) < share
    mean = np.broadcast_to(samples.success.mean(axis=0), samples.success.shape)
    p = np.where(known[:, None], np.where(samples.success, 0.995, 0.005), mean)
    return Contestant(np.clip(p, 0.005, 0.995), CERTIFIED)


def test_one_that_knows_more_is_better() -> None:
    samples = held_out()
    verdict = decide(knows(samples), knows(samples, 0.3), samples, bound=0.05)
    assert verdict.better, verdict.refused
    assert verdict.gain > 0.3
    assert verdict.confidence == 1.0


def test_one_that_knows_as_much_is_not() -> None:
    samples = held_out()
    verdict = decide(knows(samples, 0.6), knows(samples, 0.6), samples, bound=0.05)
    assert verdict.gain == 0
    [reason] = verdict.refused
    assert "not better" in reason


def test_what_may_be_chance_is_no_gain() -> None:
    """On a few images, the same two as above; so much is asked for that luck does not do."""
    samples = held_out(40)
    verdict = decide(knows(samples, 0.6, seed=2), knows(samples, 0.6, seed=4), samples, bound=0.05)
    assert verdict.confidence < 0.95
    assert not verdict.better


def test_nothing_certified_is_refused() -> None:
    samples = held_out()
    unsure = replace(knows(samples), thresholds=Thresholds((0.05,), (None,)))
    verdict = decide(unsure, None, samples, bound=0.05)
    assert any("no price is certified" in reason for reason in verdict.refused)


def test_regret_above_the_bound_at_its_own_price_is_refused() -> None:
    samples = held_out()
    loose = replace(knows(samples, 0.3), thresholds=Thresholds((0.05,), (50.0,)))
    verdict = decide(loose, None, samples, bound=0.05)
    assert any("at its own price" in reason for reason in verdict.refused)


def test_a_worse_calibration_is_refused() -> None:
    samples = held_out()
    sure = knows(samples)
    off = replace(sure, p_success=0.3 + 0.4 * sure.p_success)
    verdict = decide(off, sure, samples, bound=0.05)
    assert any(reason.startswith("calibration error") for reason in verdict.refused)


def test_a_group_that_pays_for_the_others_is_refused() -> None:
    samples = held_out()
    rare = np.zeros(len(samples.success), dtype=bool)
    rare[:80] = True
    samples = replace(
        samples,
        groups=np.where(rare, "rare", "common").astype(object),
        success=np.where(rare[:, None], [False] * 4 + [True], samples.success),
    )
    good = knows(samples)
    blind = replace(good, p_success=np.where(rare[:, None], 0.99, good.p_success))
    worse = knows(samples, 0.3)
    verdict = decide(blind, worse, samples, bound=0.05)
    assert any("questions about rare" in reason for reason in verdict.refused)
    tolerant = Tolerances(group_regret=1.0, calibration_error=1.0)
    assert decide(blind, worse, samples, bound=0.05, tolerances=tolerant).better


def test_weights_make_a_biased_draw_the_traffic_again() -> None:
    """Hard questions were drawn ten times as often."""
    samples = held_out(4_000)
    hard = samples.groups == "hard"
    drawn = hard | (np.random.default_rng(3).random(len(hard)) < 0.1)
    biased = HeldOut(
        samples.success[drawn],
        samples.tokens[drawn],
        samples.images[drawn],
        samples.groups[drawn],
        np.where(hard, 1.0, 10.0)[drawn],
    )
    whole = standing(knows(samples, 0.5), samples, 0.05)
    estimated = standing(knows(biased, 0.5), biased, 0.05)
    assert estimated.tokens_at_regret == pytest.approx(whole.tokens_at_regret, rel=0.1)


def unequal(count: int = 2_000) -> HeldOut:
    """A third of the questions each needs 1, 36 and 576 tokens; some of the last fail there too."""
    rng = np.random.default_rng(3)
    kind = rng.integers(0, 3, count)
    rows = np.array(
        [[True] * 5, [False, False, True, True, True], [False, False, False, False, True]]
    )
    return HeldOut(
        success=rows[kind],
        tokens=np.tile(TOKENS, (count, 1)),
        images=np.array([str(n // 2) for n in range(count)], dtype=object),
        groups=np.full(count, "all", dtype=object),
        weights=np.ones(count),
    )


def tells_apart(samples: HeldOut, *, coarse: bool) -> Contestant:
    """Knows who needs the finest scale, and perhaps also who needs more than the coarsest.

    About one in twenty it is wrong, so that a bound of nothing is kept by the finest scale only.
    """
    p = samples.success.astype(float)
    if not coarse:
        easy = p[:, 2] == 1
        p[easy] = p[easy].mean(axis=0)
    p[::20] = 1.0
    return Contestant(np.clip(p, 0.005, 0.995), Thresholds((0.0,), (1e-4,)))


def test_one_that_closes_more_of_the_oracle_gap_is_better_though_no_cheaper_at_the_bound() -> None:
    samples = unequal()
    new, old = tells_apart(samples, coarse=True), tells_apart(samples, coarse=False)
    verdict = decide(new, old, samples, bound=0.0)
    assert verdict.gain == 0
    assert verdict.gap_gain > 0.05
    assert verdict.gap_confidence == 1.0
    assert verdict.better, verdict.refused
    assert "of the oracle gap closed" in verdict.won
    backwards = decide(old, new, samples, bound=0.0)
    assert backwards.gap_gain < 0
    assert not backwards.better


def test_without_a_predictor_no_gap_is_closed() -> None:
    samples = held_out()
    verdict = decide(knows(samples), None, samples, bound=0.05)
    assert verdict.candidate.gap_closed is not None
    assert verdict.gap_gain == pytest.approx(verdict.candidate.gap_closed)


def test_what_is_dearer_at_the_bound_is_not_won_by_the_gap() -> None:
    samples = held_out()
    new, old = knows(samples), knows(samples, 0.3)
    reckless = Tolerances(gain=1.0, tokens=-1.0)  # nothing is cheap enough
    verdict = decide(new, old, samples, bound=0.05, tolerances=reckless)
    assert verdict.gap_gain > 0.1
    assert verdict.won == ""
    assert any(reason.startswith("not better") for reason in verdict.refused)
