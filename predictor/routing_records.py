"""What one request leaves behind: the record that dashboards read and predictors learn from.

A record holds numbers and names of the service's own, never the picture, and the question's text
only where the operator wants it. What a predictor needs of both is in it as raw features: values of
the picture, values of the question, and hashed counts of the question's n-grams, from which a
projection can be fitted anew. docs/records.md describes every column.

Between processes a record travels as JSON (`encode`, `decode`); on disk it is a row of SCHEMA.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from predictor import image_features, query_features
from predictor.colour_names import COLOURS, named_colours
from predictor.errors import RecordsError
from predictor.query_features import QuestionFeatures, bucket_of
from predictor.travelling import tabulated, with_columns_of

FORMAT = 1
IMAGE_FEATURES = image_features.VERSION
QUESTION_FEATURES = f"{query_features.VERSION}+colours-1+buckets-18"

_IMAGE = pa.struct(
    [
        pa.field("image", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("scale", pa.int32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("p_sufficient", pa.float32()),
        pa.field("p_success", pa.list_(pa.float32())),
        pa.field("tokens_per_scale", pa.list_(pa.int32()), nullable=False),
        pa.field("cache", pa.string()),
        pa.field("features", pa.list_(pa.float32())),
    ]
)
_OBSERVED = pa.struct(
    [
        pa.field("scale", pa.int32()),
        pa.field("reason", pa.string()),
        pa.field("tokens", pa.int32()),
        pa.field("p_sufficient", pa.float32()),
        pa.field("p_success", pa.list_(pa.float32())),
    ]
)
SCHEMA = pa.schema(
    [
        # who and when
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("endpoint", pa.string(), nullable=False),
        pa.field("key", pa.string()),
        pa.field("ingress", pa.string(), nullable=False),
        pa.field("replica", pa.string()),
        # how it ended
        pa.field("status", pa.int16(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("stream", pa.bool_(), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("retries", pa.int16(), nullable=False),
        pa.field("degraded", pa.list_(pa.string()), nullable=False),
        # what was asked
        pa.field("model", pa.string()),
        pa.field("priority", pa.string(), nullable=False),
        pa.field("asked_scale", pa.int32()),
        pa.field("asked_min_scale", pa.int32()),
        pa.field("asked_max_scale", pa.int32()),
        pa.field("asked_max_regret", pa.float32()),
        pa.field("asked_latency_budget_ms", pa.float32()),
        # who answered and decided
        pa.field("served", pa.string()),
        pa.field("model_identity", pa.string()),
        pa.field("processor", pa.string()),
        pa.field("predictor", pa.string()),
        # the decision
        pa.field("images", pa.list_(_IMAGE), nullable=False),
        pa.field("max_regret", pa.float32()),
        pa.field("loosened_from", pa.float32()),
        pa.field("tightened_to", pa.float32()),
        pa.field("bound", pa.float32()),
        pa.field("cost_ms", pa.float32()),
        pa.field("pressure", pa.float32()),
        # tokens
        pa.field("prompt_tokens", pa.int32()),
        pa.field("image_tokens", pa.int32()),
        pa.field("finest_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        # milliseconds
        pa.field("total_ms", pa.float32(), nullable=False),
        pa.field("ttft_ms", pa.float32()),
        pa.field("routing_ms", pa.float32()),
        pa.field("image_fetch_ms", pa.float32()),
        pa.field("wait_ms", pa.float32()),
        pa.field("parse_ms", pa.float32()),
        pa.field("images_ms", pa.float32()),
        pa.field("features_ms", pa.float32()),
        pa.field("predict_ms", pa.float32()),
        pa.field("decide_ms", pa.float32()),
        pa.field("queue_ms", pa.float32()),
        pa.field("fetch_ms", pa.float32()),
        pa.field("encode_ms", pa.float32()),
        pa.field("prefill_ms", pa.float32()),
        pa.field("decode_ms", pa.float32()),
        # what a predictor sees
        pa.field("image_features", pa.string()),
        pa.field("question_features", pa.string()),
        pa.field("question_values", pa.list_(pa.float32())),
        pa.field("named_colours", pa.list_(pa.string())),
        pa.field("ngram_buckets", pa.list_(pa.int32())),
        pa.field("ngram_counts", pa.list_(pa.int16())),
        pa.field("question", pa.string()),
        # whether it was drawn for shadow labelling
        pa.field("draw_stratum", pa.string()),
        pa.field("draw_probability", pa.float64()),
        # what a predictor that only watches would have decided
        pa.field("observed_predictor", pa.string()),
        pa.field("observed", pa.list_(_OBSERVED)),
    ],
    metadata={"m3.records": str(FORMAT)},
)


@dataclass(frozen=True, slots=True, eq=False)
class RecordedImage:
    """One image of a request: what was known, what was decided, what it took.

    Args:
        image: the first half of the SHA-256 of its file, hex; equal images are equal here.
        width, height: pixels as displayed.
        detail: as the caller asked.
        scale, reason, tokens, p_sufficient: the choice (`router.policy.ImageChoice`).
        p_success: predicted probability of success per scale, coarse to fine; None without a
            predictor.
        tokens_per_scale: image tokens in the prompt, coarse to fine.
        cache: where its features for the model came from; None before a replica has started.
        features: as `predictor.features.image_names`, or None where no predictor looked at it.
    """

    image: str
    width: int
    height: int
    detail: str
    scale: int
    reason: str
    tokens: int
    p_sufficient: float | None
    p_success: tuple[float, ...] | None
    tokens_per_scale: tuple[int, ...]
    cache: str | None = None
    features: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class ObservedImage:
    """What a predictor that only watches would have chosen for one image, as `RecordedImage`."""

    scale: int
    reason: str
    tokens: int
    p_sufficient: float | None
    p_success: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Observed:
    """What a predictor that only watches would have decided.

    Args:
        predictor: its version.
        images: in order.
    """

    predictor: str
    images: tuple[ObservedImage, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RoutingRecord:
    """One request. Fields that it did not get to are None; times are milliseconds.

    Args:
        request_id: names it in headers, logs, labels and feedback.
        at: Unix time of its arrival, seconds.
        key: name of the API key; None where nobody is asked for one.
        ingress, replica: which processes served it.
        code: "ok" or the error's stable code.
        degraded: parts that were down and done without.
        model: as the caller names it; `served` is the checkpoint.
        asked_max_regret: the caller's own bound; None left it to the service.
        max_regret: the promise in force, None where limits void it (`router.policy.Decision`).
        loosened_from: the service's own bound, if load has put a looser one in its place.
        tightened_to: the bound whose price was used, if live labels have broken the promise's own.
        bound: the regret bound that the choice was made at, promise or not; None if forced.
        cost_ms: estimated replica time to the first token.
        pressure: the load when it arrived; 1 refuses. None if it was turned away before that.
        finest_tokens: image tokens, had every image got the finest scale.
        question: None unless the operator has turned storing it on.
        draw_stratum, draw_probability: of the draw for shadow labels; None if it was not drawn.
        observed: None where no predictor watches, or it could not decide.
    """

    request_id: str
    at: float
    endpoint: str
    ingress: str
    status: int
    code: str
    stream: bool
    priority: str
    total_ms: float
    pressure: float | None = None
    images: tuple[RecordedImage, ...] = ()
    key: str | None = None
    replica: str | None = None
    finish_reason: str | None = None
    retries: int = 0
    degraded: tuple[str, ...] = ()
    model: str | None = None
    asked_scale: int | None = None
    asked_min_scale: int | None = None
    asked_max_scale: int | None = None
    asked_max_regret: float | None = None
    asked_latency_budget_ms: float | None = None
    served: str | None = None
    model_identity: str | None = None
    processor: str | None = None
    predictor: str | None = None
    max_regret: float | None = None
    loosened_from: float | None = None
    tightened_to: float | None = None
    bound: float | None = None
    cost_ms: float | None = None
    prompt_tokens: int | None = None
    image_tokens: int | None = None
    finest_tokens: int | None = None
    completion_tokens: int | None = None
    ttft_ms: float | None = None
    routing_ms: float | None = None
    image_fetch_ms: float | None = None
    wait_ms: float | None = None
    parse_ms: float | None = None
    images_ms: float | None = None
    features_ms: float | None = None
    predict_ms: float | None = None
    decide_ms: float | None = None
    queue_ms: float | None = None
    fetch_ms: float | None = None
    encode_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    asks: QuestionFeatures | None = None
    question: str | None = None
    draw_stratum: str | None = None
    draw_probability: float | None = None
    observed: Observed | None = None


def describe_question(question: str) -> QuestionFeatures:
    """The question as a record keeps it: hand-made values, named colours, hashed n-grams."""
    counts = Counter(bucket_of(term) for term in query_features.ngrams(question))
    buckets = sorted(counts)
    return QuestionFeatures(
        values=tuple(query_features.query_features(question).values()),
        colours=tuple(COLOURS[at] for at in sorted(named_colours(question.lower()))),
        buckets=tuple(buckets),
        counts=tuple(counts[bucket] for bucket in buckets),
    )


def question_columns(asks: QuestionFeatures) -> dict[str, Any]:
    """A question's features by the columns that hold them, in records and in labels."""
    return {
        "question_features": QUESTION_FEATURES,
        "question_values": asks.values,
        "named_colours": asks.colours,
        "ngram_buckets": asks.buckets,
        "ngram_counts": asks.counts,
    }


def encode(record: RoutingRecord) -> bytes:
    """A record as one JSON object, for the way to the recorder."""
    row = {f.name: getattr(record, f.name) for f in fields(record)}
    row["images"] = [_image_row(image) for image in record.images]
    row["at"] = round(record.at * 1e6)
    asks = row.pop("asks")
    if asks is not None:
        row |= question_columns(asks)
    if record.observed is not None:
        row["observed_predictor"] = record.observed.predictor
        row["observed"] = [asdict(image) for image in record.observed.images]
    if any(image.features is not None for image in record.images):
        row["image_features"] = IMAGE_FEATURES
    known = {name: value for name, value in row.items() if value is not None}
    return json.dumps(known | {"format": FORMAT}, separators=(",", ":")).encode()


def decode(encoded: Sequence[bytes]) -> tuple[pa.Table, list[int]]:
    """A table of SCHEMA from what `encode` wrote, and the positions of what are no records (also
    those of a later format) and are left out.
    """
    return tabulated(encoded, _row, _table)


def upgraded(table: pa.Table) -> pa.Table:
    """A table of this or an earlier format with the columns of this one, in order.

    Columns that came later are empty; columns of a later release are left out.
    """
    return with_columns_of(SCHEMA, table)


def _row(data: bytes) -> dict[str, Any]:
    try:
        row = json.loads(data)
        if row.pop("format") > FORMAT:
            raise RecordsError("A record of a later release; update the recorder first.")
        for image in row["images"]:
            if (packed := image.get("features")) is not None:
                image["features"] = np.frombuffer(base64.b64decode(packed), "<f4")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordsError("Not a record of a request.") from error
    return dict(row)


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    try:
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise RecordsError("Not the columns of a record.") from error
    images = pc.list_flatten(table["images"].combine_chunks())
    columns = [(field, table[field.name]) for field in SCHEMA]
    columns += [(field, images.field(field.name)) for field in _IMAGE]
    for field, column in columns:
        if not field.nullable and column.null_count:
            raise RecordsError(f"A record without {field.name}.")
    return table


def _image_row(image: RecordedImage) -> dict[str, Any]:
    row = {f.name: getattr(image, f.name) for f in fields(image)}
    if image.features is not None:
        row["features"] = base64.b64encode(image.features.astype("<f4").tobytes()).decode()
    return row
