"""How often answers were right, by those who judged them: by scale and by what was asked about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from predictor.clustered import Clusters, Estimate, members
from predictor.feedback_records import scale_name
from predictor.record_store import FEEDBACK, RecordStore
from predictor.records import CORRECT_FROM

COLUMNS = ("request_id", "at", "score", "images", "scales", "group", "predictor")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of judged answers.

    Args:
        right: share with its 95% interval, by picture.
    """

    answers: int
    right: Estimate


@dataclass(frozen=True, slots=True)
class Summary:
    """Of everything, by served scale (`several` where images had different ones), by topic, and by
    both.
    """

    overall: Accuracy | None
    by_scale: dict[str, Accuracy]
    by_group: dict[str, Accuracy]
    by_both: dict[str, dict[str, Accuracy]]


def summarised(
    store: RecordStore,
    since: datetime | None = None,
    broken: Callable[[str], None] = lambda name: None,
) -> Summary:
    """What the feedback in files says."""
    tables = store.read(FEEDBACK, columns=COLUMNS, since=since, broken=broken)
    rows = [row for table in tables for row in table.to_pylist()]
    right = np.array([row["score"] >= CORRECT_FROM for row in rows], dtype=np.float64)
    images = np.array([" ".join(row["images"]) for row in rows], dtype=object)
    scales = np.array([scale_name(row["scales"]) for row in rows], dtype=object)
    groups = np.array([row["group"] for row in rows], dtype=object)

    def of(kept: NDArray[np.bool_]) -> Accuracy:
        return Accuracy(int(kept.sum()), Clusters.of(images[kept]).share(right[kept]))

    def split(by: NDArray[np.object_], kept: NDArray[np.bool_]) -> dict[str, Accuracy]:
        parts = members(by)
        return {name: of(parts[name] & kept) for name in parts if (parts[name] & kept).any()}

    everything = np.ones(len(rows), dtype=bool)
    return Summary(
        overall=of(everything) if rows else None,
        by_scale=dict(sorted(split(scales, everything).items(), key=_finer)),
        by_group=split(groups, everything),
        by_both={name: split(groups, part) for name, part in sorted(members(scales).items())},
    )


def _finer(item: tuple[str, Accuracy]) -> tuple[bool, int]:
    name = item[0]
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0)
