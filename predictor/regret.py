"""What routing costs in answers, estimated from labels of the traffic while it goes on.

Of the uniform stratum only, which is drawn whatever was decided: its mean is the traffic's, as far
as its draws were executed; `m3_shadow_draws_total` says at which loads they were not.

Two questions are asked of every label. What did the decision that was served cost? And what would
each certified price of its predictor have cost, whatever was served? A label knows what every scale
answers, so the second needs no traffic at those prices, and goes on when the policy was tightened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from predictor.confidence import ConfidenceSequence
from predictor.label_records import UNIFORM
from predictor.record_store import LABELS, RecordStore, Seen
from predictor.records import AGREES_FROM
from predictor.selection import select
from predictor.tightening import Lows

COLUMNS = (
    *("request_id", "at", "stratum", "predictor", "bound", "scale", "scales", "agrees"),
    *("tightened_to", "target", "certified_bounds", "certified_prices"),
    *("p_success", "tokens_per_scale"),
)
NONE = "none"
_COMPARABLE = "agreement"  # the target of promises that labels can judge
_MOST = 16  # predictors, and what they were tightened to

K = TypeVar("K")
V = TypeVar("V")


class Served(NamedTuple):
    """What decided: a predictor (`none` without one), and the bound whose price stood in for the
    promise's own where that was tightened.
    """

    predictor: str
    tightened_to: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Agreement regret of decisions.

    Args:
        labels: that it is estimated from.
        low, high: 95% confidence sequence: right at all times at once.
        bound: mean of the bounds that were promised; of a threshold, the bound of its certificate.
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
    """Estimates by what decided, of labels in the order in which they come; each counts once.

    Args:
        of_thresholds: also ask what every certified price would have cost; a dozen times the work.
    """

    def __init__(self, *, of_thresholds: bool = True) -> None:
        self._of_thresholds = of_thresholds
        self._seen = Seen()
        self._served: dict[Served, _Sum] = {}
        self._thresholds: dict[str, dict[float, _Sum]] = {}

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
                self._count(row)

    def estimates(self) -> dict[Served, Estimate]:
        """Of what was served: of the latest few predictors and tightenings."""
        return {served: each.estimate() for served, each in self._served.items()}

    def thresholds(self) -> dict[str, dict[float, Estimate]]:
        """Of every certified bound's price, by predictor, had all requests been decided by it and
        by no limit of their callers. Only of predictors that promise agreement.
        """
        return {
            version: {bound: each.estimate() for bound, each in found.items()}
            for version, found in self._thresholds.items()
        }

    def lows(self) -> dict[str, Lows]:
        """Of those thresholds, what their regret is at least."""
        return {
            version: {bound: each.low for bound, each in found.items()}
            for version, found in self.thresholds().items()
        }

    def _count(self, row: Mapping[str, Any]) -> None:
        served = Served(row["predictor"] or NONE, row["tightened_to"])
        _latest(self._served, served, _Sum).add(lost(row), row["bound"])
        judged = row["target"] == _COMPARABLE and row["p_success"] is not None
        if not (self._of_thresholds and judged):
            return
        thresholds = _latest(self._thresholds, served.predictor, dict[float, _Sum])
        shares = [tokens / row["tokens_per_scale"][-1] for tokens in row["tokens_per_scale"]]
        pairs = zip(row["certified_bounds"], row["certified_prices"], strict=True)
        for bound, price in pairs:
            chosen = select(row["p_success"], shares, price)
            thresholds.setdefault(bound, _Sum()).add(_lost(row["agrees"], chosen), bound)


class _Sum:
    """Losses so far, and the bounds beside them."""

    def __init__(self) -> None:
        self._sequence, self._bounds = ConfidenceSequence(), 0.0

    def add(self, loss: float, bound: float) -> None:
        self._sequence.add(loss)
        self._bounds += bound

    def estimate(self) -> Estimate:
        low, high = self._sequence.interval
        count = self._sequence.count
        return Estimate(self._sequence.mean, low, high, count, self._bounds / count)


def lost(row: Mapping[str, Any]) -> float:
    """1 where the finest scale succeeds and the chosen one does not, by a label's columns."""
    return _lost(row["agrees"], row["scales"].index(row["scale"]))


def _lost(agrees: Sequence[float], chosen: int) -> float:
    return float(agrees[-1] >= AGREES_FROM > agrees[chosen])


def _latest(found: dict[K, V], key: K, empty: Callable[[], V]) -> V:
    """What is at a key. A new one takes the place of the oldest, where there are too many."""
    if key not in found:
        found[key] = empty()
        for oldest in list(found)[:-_MOST]:
            del found[oldest]
    return found[key]
