"""How far traffic has moved from what a predictor was certified on: population stability (PSI).

Σ (live − reference) · ln(live / reference) over the bins of one number, 0 for equal shares. By the
usual reading up to 0.1 is nothing and from 0.25 on a shift. The reference are the samples that its
prices were certified on: the promise is about traffic like those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

BINS = 10
_SCORE = "score."
_ROWS = 1_000  # compared with all edges at once

Kind = Literal["picture", "question", "score"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """How C numbers were distributed: what a predictor sees and what it says.

    Args:
        names: C.
        edges: C×(BINS − 1), where bins end, ascending; infinite where there are fewer.
        counts: C×BINS samples.
    """

    names: tuple[str, ...]
    edges: NDArray[np.float32]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, names: Sequence[str], values: NDArray[np.float32]) -> Reference:
        """Of N×C values: bins of about equal shares, fewer where values are few."""
        inner = np.arange(1, BINS) / BINS
        # Edges are values that occur, so that a number with two values has two bins.
        quantiles = np.quantile(values, inner, axis=0, method="inverted_cdf").T
        edges = np.full(quantiles.shape, np.inf, dtype=np.float32)
        for row, found in zip(edges, quantiles, strict=True):
            unique = np.unique(found)
            row[: len(unique)] = unique
        return cls(tuple(names), edges, _counts(values, edges))

    def stability(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """C indices of N×C values. Half a sample more in every bin keeps empty ones finite."""
        used = np.isfinite(self.edges).sum(axis=1) + 1
        there = np.arange(BINS) < used[:, None]
        live, before = (
            np.where(there, counts + 0.5, 1.0) / (counts.sum(axis=1) + 0.5 * used)[:, None]
            for counts in (_counts(values, self.edges), self.counts)
        )
        parts: NDArray[np.float64] = np.where(there, (live - before) * np.log(live / before), 0.0)
        index: NDArray[np.float64] = parts.sum(axis=1)
        return index


def reference_names(features: Sequence[str], scales: Sequence[int]) -> tuple[str, ...]:
    """What is compared: features, then the predicted success of every scale."""
    return (*features, *(f"{_SCORE}{scale}" for scale in scales))


def kind_of(name: str) -> Kind:
    """What a number is about; what a question asks of a picture counts to the question."""
    if name.startswith(_SCORE):
        return "score"
    return "question" if name.startswith(("query.", "cross.", "named.")) else "picture"


@dataclass(frozen=True, slots=True)
class Shift:
    """The number of one kind that moved most, and its index."""

    name: str
    psi: float


def shifts(reference: Reference, values: NDArray[np.float32]) -> dict[Kind, Shift]:
    """What moved most, by kind, in N×C values."""
    found: dict[Kind, Shift] = {}
    for name, psi in zip(reference.names, reference.stability(values).tolist(), strict=True):
        kind = kind_of(name)
        if kind not in found or psi > found[kind].psi:
            found[kind] = Shift(name, psi)
    return found


def _counts(values: NDArray[np.float32], edges: NDArray[np.float32]) -> NDArray[np.int64]:
    """C×BINS, how many of N×C values lie in each bin (its upper edge included)."""
    counts = np.zeros((len(edges), BINS), dtype=np.int64)
    columns = np.arange(len(edges))
    for start in range(0, len(values), _ROWS):
        part = values[start : start + _ROWS]
        bins = (part[:, :, None] > edges).sum(axis=2)
        np.add.at(counts, (np.broadcast_to(columns, bins.shape), bins), 1)
    return counts
