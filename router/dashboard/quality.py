"""How a predictor's foresight came out, by labels. Pure: columns in, figures out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from predictor.calibration import expected_calibration_error, reliability
from predictor.clustered import Clusters, Estimate
from predictor.frontier import allocation
from predictor.records import AGREES_FROM

_FEWEST = 20  # forecasts in a bin that are worth a point
_MOST_BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Foreseen:
    """N labels of choices that nothing but the predictor settled, on a ladder of S scales.

    Args:
        scales: S, coarse to fine.
        p: N×S predicted success.
        agrees: N×S, whether the answer there is the finest scale's.
        chosen: N places on the ladder.
        pictures: which picture each label is about.
    """

    scales: tuple[int, ...]
    p: NDArray[np.float64]
    agrees: NDArray[np.bool_]
    chosen: NDArray[np.intp]
    pictures: Clusters

    @classmethod
    def of(cls, labels: pa.Table) -> Foreseen | None:
        """Of labels with `scales`, all the same, `p_success`, `agrees`, `place` (from 1 on) and
        `image`; None of none.
        """
        if not len(labels):
            return None
        scales = tuple(labels["scales"][0].as_py())
        p, agrees = (_matrix(labels[name], len(scales)) for name in ("p_success", "agrees"))
        image = pc.dictionary_encode(labels["image"].combine_chunks())
        return cls(
            scales,
            p,
            agrees >= AGREES_FROM,
            labels["place"].to_numpy().astype(np.intp) - 1,
            Clusters(image.indices.to_numpy().astype(np.intp), len(image.dictionary)),
        )


def calibration(labels: Foreseen | None) -> dict[str, Any] | None:
    """Predicted success beside agreement with the finest scale, which is left out itself, as it
    always agrees; None without labels.
    """
    if labels is None or len(labels.scales) < 2:
        return None
    p, came = labels.p[:, :-1], labels.agrees[:, :-1]
    bins = min(_MOST_BINS, max(1, p.size // _FEWEST))
    return {
        "labels": len(p),
        "bins": [asdict(each) for each in reliability(p, came, bins)],
        "error": expected_calibration_error(p, came, bins),
        "scales": [
            {"scale": scale, "predicted": float(p[:, at].mean())}
            | _told(labels.pictures.share(came[:, at]))
            for at, scale in enumerate(labels.scales[:-1])
        ],
    }


def needs(labels: Foreseen | None) -> dict[str, Any] | None:
    """How often each scale was chosen where each was the smallest that agrees with the finest:
    `predictor.frontier.allocation` without its last row, as the finest always agrees.
    """
    if labels is None:
        return None
    counted = allocation(labels.agrees, labels.chosen)
    got = labels.agrees[np.arange(len(labels.chosen)), labels.chosen]
    return {
        "labels": len(labels.chosen),
        "scales": list(labels.scales),
        "matrix": counted["matrix"][:-1],
        **{name: counted[name] for name in ("exact", "over", "under")},
        "lost": float((~got).mean()),
    }


def _matrix(lists: pa.ChunkedArray, width: int) -> NDArray[np.float64]:
    values = pc.list_flatten(lists.combine_chunks()).to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float64).reshape(len(lists), width)


def _told(share: Estimate) -> dict[str, float | None]:
    return {"agreed": share.value, "low": share.low, "high": share.high}
