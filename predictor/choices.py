"""What every policy chose for every sample: from this file anyone can recompute every figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from predictor.artifact import Artifact
from predictor.calibration import REGRET_BOUNDS
from predictor.frontier import smallest_sufficient
from predictor.judgement import served
from predictor.policies import Policy
from predictor.records import OutcomeTable, Target
from predictor.whole_file import whole_file

SCHEMA = pa.schema(
    [
        pa.field("sample", pa.string(), nullable=False),
        pa.field("policy", pa.string(), nullable=False),
        pa.field("max_regret", pa.float64()),
        pa.field("scale", pa.int32(), nullable=False),
        pa.field("p_success", pa.float32()),
    ]
)


def choices(
    part: OutcomeTable, policies: Sequence[Policy], artifact: Artifact, judge: Target
) -> Iterator[pa.RecordBatch]:
    """One batch per policy and operating point.

    `router` is what the service does at each bound. The others stand beside it at equal cost: at
    each bound their most expensive setting that costs no more tokens than the router does there
    (their cheapest where all cost more). Fixed scales and the oracle have no bound; the oracle's
    scale for what nothing answers is the coarsest. A cascade's row is the scale that answered; it
    pays for the coarser ones as well.
    """
    router = policies[0]
    if router.p_success is None:
        raise ValueError("the router comes first, with its probabilities")
    tokens = part.image_tokens.astype(np.float64)
    for at, scale in enumerate(part.source.ladder.scales):
        same = np.full(len(part), at, dtype=np.intp)
        yield _batch(part, f"fixed_{scale}", None, same, None)
    needed = np.maximum(smallest_sufficient(part.success(judge)), 0)
    yield _batch(part, "oracle", None, needed, None)
    mean_costs = {policy.name: policy.paid(tokens).mean(axis=0) for policy in policies}
    for bound in REGRET_BOUNDS:
        ours = served(part, router.p_success, artifact.thresholds.at(bound))
        yield _batch(part, router.name, bound, ours, router.p_success)
        budget = float(tokens[np.arange(len(part)), ours].mean())
        for policy in policies[1:]:
            costs = mean_costs[policy.name]
            affordable = np.where(costs <= budget + 1e-9, costs, -np.inf)
            setting = affordable.argmax() if np.isfinite(affordable).any() else costs.argmin()
            chosen = policy.chosen[:, setting]
            yield _batch(part, policy.name, bound, chosen, policy.p_success)


def write_choices(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    """Write rows as a table; the file appears complete or not at all."""
    with (
        whole_file(path) as partial,
        pq.ParquetWriter(partial, SCHEMA, compression="zstd", compression_level=9) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def _batch(
    part: OutcomeTable,
    policy: str,
    bound: float | None,
    chosen: NDArray[np.intp],
    p_success: NDArray[np.float64] | None,
) -> pa.RecordBatch:
    scales = np.asarray(part.source.ladder.scales, dtype=np.int32)
    count = len(part)
    p = None if p_success is None else p_success[np.arange(count), chosen].astype(np.float32)
    columns = [
        pa.array(part.sample.tolist(), pa.string()),
        pa.array([policy] * count, pa.string()),
        pa.array([bound] * count, pa.float64()),
        pa.array(scales[chosen], pa.int32()),
        pa.nulls(count, pa.float32()) if p is None else pa.array(p, pa.float32()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
