"""What somebody said of an answer: right or wrong, or what would have been right. Never a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import pyarrow as pa

from predictor.errors import RecordsError
from predictor.metrics import canonical
from predictor.travelling import table_of, tabulated, with_columns_of

FORMAT = 1
SEVERAL = "several"  # images at different scales

SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("given_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("key", pa.string()),
        # what was said
        pa.field("score", pa.float64(), nullable=False),
        pa.field("answer_given", pa.bool_(), nullable=False),
        # of what
        pa.field("served", pa.string(), nullable=False),
        pa.field("model_identity", pa.string(), nullable=False),
        pa.field("predictor", pa.string()),
        pa.field("bound", pa.float32()),
        pa.field("images", pa.list_(pa.string()), nullable=False),
        pa.field("scales", pa.list_(pa.int32()), nullable=False),
        pa.field("reasons", pa.list_(pa.string()), nullable=False),
        pa.field("image_tokens", pa.int32(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
    ],
    metadata={"m3.feedback": str(FORMAT)},
)


def fingerprint(request_id: str, answer: str) -> str:
    """Equal for answers that are an exact match of each other, to one request.

    Whoever has it can try out answers; it is not what keeps a secret, only what keeps no text.
    """
    return sha256(f"{request_id}\0{canonical(answer)}".encode()).hexdigest()[:32]


def scale_name(scales: Sequence[int]) -> str:
    """What feedback on images at these scales counts to."""
    return str(scales[0]) if len(set(scales)) == 1 else SEVERAL


def encode(row: Mapping[str, Any]) -> bytes:
    """A row of SCHEMA as one JSON object; times in Unix microseconds."""
    return json.dumps({**row, "format": FORMAT}, separators=(",", ":")).encode()


def decode(encoded: Sequence[bytes]) -> tuple[pa.Table, list[int]]:
    """A table of SCHEMA from what `encode` wrote, and the positions of what is no feedback."""
    return tabulated(encoded, _row, lambda rows: table_of(SCHEMA, rows, "feedback"))


def upgraded(table: pa.Table) -> pa.Table:
    """A table of this or an earlier format with the columns of this one, in order."""
    return with_columns_of(SCHEMA, table)


def _row(data: bytes) -> dict[str, Any]:
    try:
        row = dict(json.loads(data))
        if row.pop("format") > FORMAT:
            raise RecordsError("Feedback of a later release; update the recorder first.")
    except (ValueError, KeyError, TypeError) as error:
        raise RecordsError("No feedback.") from error
    return row
