"""Ways of choosing a scale, ours and those it must be compared with.

Every policy is a sweep: what it chooses for each of N samples at each of T settings, from cheap to
dear or the other way. All are given the same chance: whatever they know about a sample, their
settings are prices of tokens, and what they believe comes from the training part alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from predictor.calibration import PRICES
from predictor.selection import select_many

_BINS = 8
_FEWEST = 20  # training samples that make a bin's accuracies worth believing

Floats = NDArray[np.float64]
Chosen = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One way of choosing.

    Args:
        name: as in choices.parquet.
        label: as people read it.
        chosen: N×T indices into the ladder: the scale whose answer is given.
        first: T indices of the scale a cascade starts with; it pays for every scale from there to
            the chosen one. None for policies that look once.
        p_success: N×S, what the policy believes; None if it has no probability.
    """

    name: str
    label: str
    chosen: Chosen
    first: Chosen | None = None
    p_success: Floats | None = None

    def of(self, rows: NDArray[np.bool_]) -> Policy:
        """What it chooses for some of the samples."""
        p_success = None if self.p_success is None else self.p_success[rows]
        return replace(self, chosen=self.chosen[rows], p_success=p_success)

    def paid(self, cost: Floats) -> Floats:
        """N×T: what is paid, from the N×S cost of each scale."""
        if self.first is None:
            return np.take_along_axis(cost, self.chosen, axis=1)
        so_far = np.pad(cost.cumsum(axis=1), ((0, 0), (1, 0)))
        paid: Floats = np.take_along_axis(so_far, self.chosen + 1, axis=1) - so_far[:, self.first]
        return paid


def by_probability(name: str, label: str, p_success: Floats, shares: Floats) -> Policy:
    """The selection rule at every price."""
    return Policy(name, label, select_many(p_success, shares, PRICES), p_success=p_success)


def by_key(
    name: str,
    label: str,
    known: tuple[NDArray[np.object_], NDArray[np.bool_]],
    keys: NDArray[np.object_],
    shares: Floats,
) -> Policy:
    """Knows nothing of a sample but a key, and for each key the accuracies in training.

    A key that training did not have, or hardly had, gets the finest scale.

    Args:
        known: keys of the training samples and their M×S successes.
    """
    known_keys, success = known
    cost = shares.mean(axis=0)
    finest = success.shape[1] - 1
    chosen = np.full((len(keys), len(PRICES)), finest, dtype=np.intp)
    for key in set(keys.tolist()):
        there = known_keys == key
        if there.sum() >= _FEWEST:
            worth = success[there].mean(axis=0) - PRICES[:, None] * cost
            chosen[keys == key] = worth.argmax(axis=1)
    return Policy(name, label, chosen)


def binned(known: Floats, values: Floats) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Numbers as keys: the eighth of the training samples that they fall into."""
    edges = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1]))
    return np.searchsorted(edges, known).astype(object), np.searchsorted(edges, values).astype(
        object
    )


def at_random(policy: Policy, *, seed: int = 0) -> Policy:
    """The same scales as often, dealt to samples at random."""
    order = np.random.default_rng(seed).permutation(len(policy.chosen))
    return Policy("random", "the router's scales dealt at random", policy.chosen[order])


def cascade_by_agreement(answers: NDArray[np.object_]) -> Policy:
    """Answers at a scale and the next finer ones until two answers in a row are the same.

    Args:
        answers: N×S texts.
    """
    scales = answers.shape[1]
    same = np.ones((len(answers), scales), dtype=bool)  # after the last there is nothing to try
    same[:, 1:-1] = answers[:, 1:-1] == answers[:, :-2]
    columns = [
        np.minimum(first + 1 + same[:, first + 1 :].argmax(axis=1), scales - 1)
        for first in range(scales - 1)
    ]
    columns.append(np.full(len(answers), scales - 1))
    return Policy(
        "cascade_agreement",
        "cascade until two answers agree",
        np.stack(columns, axis=1),
        first=np.arange(scales),
    )


def cascade_by_confidence(confidence: Floats) -> Policy:
    """Starts at the coarsest scale and goes on while its answer is less probable than a threshold.

    Args:
        confidence: N×S probabilities of answers in [0, 1].
    """
    thresholds = np.linspace(0, 1, 61)
    enough = confidence[:, None, :] >= thresholds[:, None]
    enough[..., -1] = True
    return Policy(
        "cascade_confidence",
        "cascade by confidence",
        enough.argmax(axis=2),
        first=np.zeros(len(thresholds), dtype=np.intp),
    )
