"""What routing costs in answers, estimated from labels of the traffic while it goes on.

Of the uniform stratum only, which is drawn whatever was decided: its mean is the traffic's, as far
as its draws were executed; `m3_shadow_draws_total` says at which loads they were not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from predictor.confidence import ConfidenceSequence
from predictor.label_records import UNIFORM
from predictor.record_store import LABELS, RecordStore, Seen
from predictor.records import AGREES_FROM

COLUMNS = ("request_id", "at", "stratum", "predictor", "bound", "scale", "scales", "agrees")
NONE = "none"
_MOST_VERSIONS = 8


@dataclass(frozen=True, slots=True)
class Estimate:
    """Agreement regret of one predictor's decisions.

    Args:
        labels: that it is estimated from.
        low, high: 95% confidence sequence: right at all times at once.
        bound: mean of the bounds that the choices were made at.
    """

    regret: float
    low: float
    high: float
    labels: int
    bound: float

    @property
    def is_broken(self) -> bool:
        """Whether the bound is exceeded, with confidence."""
        return self.low > self.bound


class RegretLedger:
    """Estimates by predictor, of labels in the order in which they come; each counts once."""

    def __init__(self) -> None:
        self._seen = Seen()
        self._sequences: dict[str, ConfidenceSequence] = {}
        self._bounds: dict[str, float] = {}

    def read(self, store: RecordStore, since: datetime | None = None) -> None:
        """Takes in what the labels in files say, whoever wrote them."""
        for table in store.read(LABELS, columns=COLUMNS, since=since):
            self.add(table)

    def add(self, labels: pa.Table) -> None:
        """Takes in labels with at least COLUMNS."""
        if not len(labels):
            return
        new = self._seen.first(labels["request_id"])
        for row in labels.filter(pa.array(new)).select(COLUMNS).to_pylist():
            if row["stratum"] == UNIFORM:
                self._count(row["predictor"] or NONE, row)

    def estimates(self) -> dict[str, Estimate]:
        """By the version of the predictor, `none` without one; the latest few of them."""
        found = {}
        for version, sequence in self._sequences.items():
            low, high = sequence.interval
            bound = self._bounds[version] / sequence.count
            found[version] = Estimate(sequence.mean, low, high, sequence.count, bound)
        return found

    def _count(self, version: str, row: dict[str, object]) -> None:
        if version not in self._sequences:
            self._sequences[version] = ConfidenceSequence()
            self._bounds[version] = 0.0
            for oldest in list(self._sequences)[:-_MOST_VERSIONS]:
                del self._sequences[oldest], self._bounds[oldest]
        self._sequences[version].add(lost(row))
        bound = row["bound"]
        assert isinstance(bound, float)
        self._bounds[version] += bound


def lost(row: dict[str, object]) -> float:
    """1 where the finest scale succeeds and the chosen one does not, by a label's columns."""
    scales, agrees = row["scales"], row["agrees"]
    assert isinstance(scales, list)
    assert isinstance(agrees, list)
    chosen = scales.index(row["scale"])
    return float(np.float64(agrees[-1]) >= AGREES_FROM > np.float64(agrees[chosen]))
