"""How much of an oracle over scales is luck: the noise null of a data set.

"Right at any of five scales" rewards five guesses. The null gives one scale as many guesses, on
pictures that hardly differ; only what the scales reach beyond that is due to looking at more or
fewer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb

from predictor.clustered import Clusters, Estimate, members
from predictor.errors import OutcomesError
from predictor.null_table import NullTable
from predictor.records import CORRECT_FROM, OutcomeTable


@dataclass(frozen=True, slots=True)
class Luck:
    """One scale asked again against several scales asked once, about the same samples.

    Args:
        single_run: mean accuracy of one run at the null's scale.
        any_run: right in at least one of `NoiseNull.compared` runs.
        any_scale: right at one scale at least.
        beyond_luck: any_scale − any_run, paired.
    """

    samples: int
    images: int
    single_run: Estimate
    any_run: Estimate
    any_scale: Estimate
    beyond_luck: Estimate


@dataclass(frozen=True, slots=True)
class NoiseNull:
    """The noise null beside the scales.

    Args:
        scale: the scale that was asked several times.
        runs: how often it was.
        compared: runs that stand against the scales, as many as there are scales where possible.
        missing: analysed samples that are not in the null.
        any_of_runs: expected share right in at least one of 1, 2, … `runs` runs.
    """

    scale: int
    runs: int
    compared: int
    missing: int
    any_of_runs: tuple[float, ...]
    overall: Luck
    groups: dict[str, Luck]


def noise_null(table: OutcomeTable, success: NDArray[np.bool_], null: NullTable) -> NoiseNull:
    """Compare the null with the scales on the samples that both hold.

    Args:
        success: N×S correctness of `table`.

    Raises:
        OutcomesError: a null of another checkpoint, or without any of these samples or any run.
    """
    if null.source != table.source:
        raise OutcomesError(
            f"The noise null was answered by {null.source.model}, or other weights of it, and the "
            f"outcomes by {table.source.model}; label both with one checkpoint."
        )
    _, ours, theirs = np.intersect1d(table.sample, null.sample, return_indices=True)
    runs = null.correct.shape[1]
    if not len(ours) or not runs:
        raise OutcomesError("The noise null holds none of the analysed samples.")
    compared = min(runs, success.shape[1])
    right = (null.correct[theirs] >= CORRECT_FROM).sum(axis=1)
    single = any_of(right, runs, 1)
    any_run = any_of(right, runs, compared)
    any_scale = np.asarray(success[ours].any(axis=1), np.float64)
    image, group = table.image[ours], table.group[ours]

    def luck(rows: NDArray[np.bool_]) -> Luck:
        pictures = Clusters.of(image[rows])
        return Luck(
            samples=int(rows.sum()),
            images=pictures.count,
            single_run=pictures.share(single[rows]),
            any_run=pictures.share(any_run[rows]),
            any_scale=pictures.share(any_scale[rows]),
            beyond_luck=pictures.difference(any_scale[rows] - any_run[rows]),
        )

    return NoiseNull(
        scale=null.scale,
        runs=runs,
        compared=compared,
        missing=len(table) - len(ours),
        any_of_runs=tuple(float(any_of(right, runs, m).mean()) for m in range(1, runs + 1)),
        overall=luck(np.ones(len(ours), bool)),
        groups={name: luck(rows) for name, rows in members(group).items()},
    )


def any_of(right: NDArray[np.int64], runs: int, drawn: int) -> NDArray[np.float64]:
    """Chance that at least one of `drawn` runs, of `runs` of which `right` were right, is right.

    The estimator of pass@k (Chen et al., arXiv 2107.03374).
    """
    chance: NDArray[np.float64] = 1 - comb(runs - right, drawn) / comb(runs, drawn)
    return chance
