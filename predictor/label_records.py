"""What the other scales would have answered to a request: the records that predictors learn from.

A label stands for itself: beside what every scale made of the question it holds the features of
picture and question, so that it can be learned from without the request's own record. Where
somebody has said what the right answer is, a label of the kind `correctness` also says which scales
gave it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from predictor.errors import RecordsError
from predictor.travelling import table_of, tabulated, with_columns_of

FORMAT = 1
UNIFORM = "uniform"
NEAR = "threshold"

SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("labelled_at", pa.timestamp("us", "UTC"), nullable=False),
        # how it came to be drawn
        pa.field("stratum", pa.string(), nullable=False),
        pa.field("probability", pa.float64(), nullable=False),
        pa.field("pressure", pa.float32()),
        # who answered
        pa.field("served", pa.string(), nullable=False),
        pa.field("model_identity", pa.string(), nullable=False),
        pa.field("processor", pa.string(), nullable=False),
        pa.field("replica", pa.string(), nullable=False),
        # what was decided
        pa.field("predictor", pa.string()),
        pa.field("bound", pa.float32()),
        pa.field("tightened_to", pa.float64()),
        pa.field("target", pa.string()),
        pa.field("certified_bounds", pa.list_(pa.float64())),
        pa.field("certified_prices", pa.list_(pa.float64())),
        pa.field("scale", pa.int32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        # what every scale made of it, coarse to fine
        pa.field("scales", pa.list_(pa.int32()), nullable=False),
        pa.field("grid_side", pa.int32(), nullable=False),
        pa.field("tokens_per_scale", pa.list_(pa.int32()), nullable=False),
        pa.field("p_success", pa.list_(pa.float32())),
        pa.field("agrees", pa.list_(pa.float64()), nullable=False),
        pa.field("reference_logprob", pa.list_(pa.float32()), nullable=False),
        pa.field("answer_tokens", pa.int32(), nullable=False),
        pa.field("ms", pa.float32(), nullable=False),
        pa.field("correct", pa.list_(pa.float64())),
        # what a predictor sees
        pa.field("image", pa.string(), nullable=False),
        pa.field("image_features", pa.string(), nullable=False),
        pa.field("features", pa.list_(pa.float32()), nullable=False),
        pa.field("question_features", pa.string(), nullable=False),
        pa.field("question_values", pa.list_(pa.float32()), nullable=False),
        pa.field("named_colours", pa.list_(pa.string()), nullable=False),
        pa.field("ngram_buckets", pa.list_(pa.int32()), nullable=False),
        pa.field("ngram_counts", pa.list_(pa.int16()), nullable=False),
    ],
    metadata={"m3.labels": str(FORMAT)},
)


def encode(row: Mapping[str, Any]) -> bytes:
    """A row of SCHEMA as one JSON object; times in Unix microseconds, features as an array."""
    packed = base64.b64encode(np.asarray(row["features"], "<f4").tobytes()).decode()
    told = {**row, "features": packed, "format": FORMAT}
    return json.dumps(told, separators=(",", ":")).encode()


def with_correctness(label: bytes, correct: Sequence[bool]) -> bytes:
    """An encoded label that also says at which scales the answer was right, coarse to fine."""
    told = json.loads(label) | {"correct": [float(each) for each in correct]}
    return json.dumps(told, separators=(",", ":")).encode()


def decode(encoded: Sequence[bytes]) -> tuple[pa.Table, list[int]]:
    """A table of SCHEMA from what `encode` wrote, and the positions of what are no labels."""
    return tabulated(encoded, _row, _table)


def upgraded(table: pa.Table) -> pa.Table:
    """A table of this or an earlier format with the columns of this one, in order."""
    return with_columns_of(SCHEMA, table)


def _row(data: bytes) -> dict[str, Any]:
    try:
        row = json.loads(data)
        if row.pop("format") > FORMAT:
            raise RecordsError("A label of a later release; update the recorder first.")
        row["features"] = np.frombuffer(base64.b64decode(row["features"]), "<f4")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordsError("Not a label.") from error
    return dict(row)


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    return table_of(SCHEMA, rows, "a label")
