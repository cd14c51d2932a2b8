"""Made-up labels with features in any number, for measuring what retraining reads.

Of pictures and questions of the published outcomes, some two hundred of them for each file, with
what the scales made of them; names and times are made up. (`benchmarks.synthetic_records` makes
labels without features, beside its requests.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.results import OUTCOMES
from benchmarks.synthetic_records import DAY_S, Plan
from predictor.image_table import ImageTable, read_image_table, table_beside
from predictor.label_records import UNIFORM
from predictor.record_store import LABELS
from predictor.records import OutcomeTable, read_outcomes
from predictor.routing_records import IMAGE_FEATURES, QUESTION_FEATURES, describe_question

PER_FILE_ASKED = 200  # questions


def label_tables(plan: Plan) -> Iterator[pa.Table]:
    """The labels, a file's worth at a time, in order of time."""
    outcomes, images = read_outcomes(OUTCOMES), read_image_table(table_beside(OUTCOMES))
    rng = np.random.default_rng(plan.seed)
    made = 0
    while made < plan.records:
        count = min(plan.per_file, plan.records - made)
        share = (np.arange(made, made + count) + rng.random(count)) / plan.records
        at = ((plan.until - (1 - share) * plan.days * DAY_S) * 1e6).astype(np.int64)
        asked = outcomes.take(rng.choice(len(outcomes), PER_FILE_ASKED, replace=False))
        table = _labels_of(asked, images).take(pa.array(rng.choice(PER_FILE_ASKED, count)))
        own = {
            "request_id": pa.array([f"{number:032x}" for number in range(made, made + count)]),
            "at": pa.array(at, pa.timestamp("us", "UTC")),
            "labelled_at": pa.array(at, pa.timestamp("us", "UTC")),
        }
        for name, values in own.items():
            table = table.set_column(table.column_names.index(name), name, values)
        yield table.cast(LABELS.schema)
        made += count


def _labels_of(asked: OutcomeTable, images: ImageTable) -> pa.Table:
    """One label for each question, without a name and a time."""
    count, source = len(asked), asked.source
    asks = [describe_question(question) for question in asked.question]
    columns: dict[str, Any] = {
        "stratum": [UNIFORM] * count,
        "probability": np.full(count, 0.02),
        "pressure": np.zeros(count),
        "served": [source.model] * count,
        "model_identity": [source.model_identity] * count,
        "processor": [source.processor] * count,
        "replica": ["replica-1"] * count,
        "bound": np.full(count, 0.05),
        "scale": np.full(count, source.ladder.finest),
        "reason": ["no_predictor"] * count,
        "scales": _lists(np.tile(source.ladder.scales, (count, 1))),
        "grid_side": np.full(count, source.ladder.grid_side),
        "tokens_per_scale": _lists(asked.image_tokens),
        "agrees": _lists(asked.agrees),
        "reference_logprob": _lists(np.zeros((count, len(source.ladder)))),
        "answer_tokens": np.full(count, 3),
        "ms": np.full(count, 100.0),
        "image": asked.image.tolist(),
        "image_features": [IMAGE_FEATURES] * count,
        "features": _lists(images.rows(asked.image)),
        "question_features": [QUESTION_FEATURES] * count,
        "question_values": [each.values for each in asks],
        "named_colours": [each.colours for each in asks],
        "ngram_buckets": [each.buckets for each in asks],
        "ngram_counts": [each.counts for each in asks],
    }
    return pa.table(
        {
            field.name: _column(columns[field.name], field.type)
            if field.name in columns
            else pa.nulls(count, field.type)
            for field in LABELS.schema
        }
    )


def _column(values: Any, kind: pa.DataType) -> pa.Array:
    return (values if isinstance(values, pa.Array) else pa.array(values)).cast(kind)


def _lists(values: NDArray[Any]) -> pa.Array:
    """The rows of a matrix, as lists."""
    offsets = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))
