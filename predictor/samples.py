"""What predictors are retrained on: labels of traffic and labelled outcomes, in one shape."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m3_backend.scales import ScaleLadder
from predictor.chances import chances
from predictor.errors import OutcomesError
from predictor.features import extract_recorded
from predictor.image_table import ImageTable
from predictor.label_records import UNIFORM
from predictor.query_features import QueryProjection, QuestionFeatures, topic
from predictor.record_store import CORRECTNESS, LABELS, RecordStore
from predictor.records import (
    AGREES_FROM,
    CORRECT_FROM,
    OutcomeSource,
    OutcomeTable,
    Split,
    Target,
    assign_split,
)
from predictor.routing_records import IMAGE_FEATURES, QUESTION_FEATURES, describe_question


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """N questions about images with what every one of S scales made of them.

    Args:
        names, images, groups, splits: N strings each; a split is by image.
        vectors: N×V, everything measured of the pictures.
        asks: N, of the questions.
        success: N×S.
        chances: N×S, how probable each success was.
        tokens: N×S image tokens.
        probability: N, of having been drawn.
        uniform: N; drawn whatever was decided, so that shares among them are those of the traffic.
        weights: N, in learning.
    """

    source: OutcomeSource
    target: Target
    names: NDArray[np.object_]
    images: NDArray[np.object_]
    groups: NDArray[np.object_]
    splits: NDArray[np.object_]
    vectors: NDArray[np.float32]
    asks: NDArray[np.object_]
    success: NDArray[np.bool_]
    chances: NDArray[np.float64]
    tokens: NDArray[np.float64]
    probability: NDArray[np.float64]
    uniform: NDArray[np.bool_]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shares(self) -> NDArray[np.float64]:
        """N×S image tokens as a share of the finest scale's."""
        return self.tokens / self.tokens[:, -1:]

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Samples:
        """Only these rows, in this order."""
        per_sample = {name: getattr(self, name)[rows] for name in _PER_SAMPLE}
        return Samples(source=self.source, target=self.target, **per_sample)

    def part(self, split: Split) -> Samples:
        return self.take(self.splits == split)

    def design(self, projection: QueryProjection) -> NDArray[np.float32]:
        """N×F features, row by row what serving computes."""
        rows = [
            extract_recorded(vector, asks, projection).values
            for vector, asks in zip(self.vectors, self.asks, strict=True)
        ]
        return np.stack(rows)

    def content_hash(self) -> str:
        """SHA-256 over all that is learned from, whatever the order of the rows."""
        digest = hashlib.sha256(repr(sorted(self.source.to_metadata().items())).encode())
        order = np.argsort(self.names, kind="stable")
        for column in (self.names, self.images, self.splits):
            digest.update("\0".join(column[order]).encode() + b"\1")
        for asks in self.asks[order]:
            digest.update(repr((asks.values, asks.colours, asks.buckets, asks.counts)).encode())
        for numbers in (self.vectors, self.success, self.chances, self.tokens, self.weights):
            digest.update(np.ascontiguousarray(numbers[order]).tobytes())
        return digest.hexdigest()


_PER_SAMPLE = (
    *("names", "images", "groups", "splits", "vectors", "asks", "success", "chances", "tokens"),
    *("probability", "uniform", "weights"),
)


def of_outcomes(table: OutcomeTable, images: ImageTable, target: Target) -> Samples:
    """Labelled outcomes as samples; each stands for itself."""
    count = len(table)
    asks = np.empty(count, dtype=object)
    asks[:] = [describe_question(question) for question in table.question]
    success = table.success(target)
    return Samples(
        source=table.source,
        target=target,
        names=table.sample,
        images=table.image,
        groups=table.group,
        splits=table.split,
        vectors=images.rows(table.image),
        asks=asks,
        success=success,
        chances=chances(success, table.reference_logprob, target),
        tokens=table.image_tokens.astype(np.float64),
        probability=np.ones(count),
        uniform=np.ones(count, dtype=bool),
        weights=np.ones(count),
    )


def of_labels(
    store: RecordStore,
    *,
    target: Target = "agreement",
    model_identity: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    most: int = 200_000,
    seed: int = 0,
) -> Samples:
    """The labels of traffic about one model, of features that this release computes.

    Memory holds `most` of them, chosen by their names if there are more.

    Args:
        target: what counts as success. Of correctness there are labels where feedback has said what
            is right.
        model_identity: None takes the model of the latest label.

    Raises:
        OutcomesError: no such labels.
    """
    kind = LABELS if target == "agreement" else CORRECTNESS
    stored = store.rows(kind, since=since, until=until)
    share = 1.0 if stored <= most else most / stored
    tables = list(store.read(kind, since=since, until=until, share=share))
    table = pa.concat_tables(tables) if tables else kind.schema.empty_table()
    if len(table) and model_identity is None:
        latest = table.sort_by("at").slice(len(table) - 1)
        model_identity = latest["model_identity"][0].as_py()
    usable = {
        "model_identity": model_identity,
        "image_features": IMAGE_FEATURES,
        "question_features": QUESTION_FEATURES,
    }
    kept = np.ones(len(table), dtype=bool)
    for name, value in usable.items():
        kept &= np.asarray(table[name].to_pylist(), dtype=object) == value
    table = table.filter(pa.array(kept)).sort_by("request_id")
    if not len(table):
        raise OutcomesError(
            f"{store.root} has no labels of that model and time, of {target}, that this release "
            f"can read; {len(kept)} others are there."
        )
    return _of_table(table, target, seed)


def _of_table(table: pa.Table, target: Target, seed: int) -> Samples:
    last = table.slice(len(table) - 1).select(_SOURCE).to_pylist()[0]
    source = OutcomeSource(
        last["served"],
        last["model_identity"],
        last["processor"],
        ScaleLadder(tuple(last["scales"]), last["grid_side"]),
    )
    columns = [table[name].to_pylist() for name in _QUESTION]
    asks = np.empty(len(table), dtype=object)
    asks[:] = [
        QuestionFeatures(*(tuple(value) for value in values))
        for values in zip(*columns, strict=True)
    ]
    images = _strings(table, "image")
    probability = table["probability"].to_numpy()
    success = _success(table, target)
    return Samples(
        source=source,
        target=target,
        names=_strings(table, "request_id"),
        images=images,
        groups=np.array([topic(each.values) for each in asks], dtype=object),
        splits=np.array([assign_split(image, seed) for image in images], dtype=object),
        vectors=_matrix(table, "features"),
        asks=asks,
        success=success,
        chances=chances(success, _matrix(table, "reference_logprob").astype(np.float64), target),
        tokens=np.array(table["tokens_per_scale"].to_pylist(), dtype=np.float64),
        probability=probability,
        uniform=_strings(table, "stratum") == UNIFORM,
        weights=1.0 / probability / np.mean(1.0 / probability),
    )


def mixed(parts: Sequence[tuple[Samples, float]]) -> Samples:
    """Samples of several sources, each as heavy in learning as said.

    Raises:
        OutcomesError: they are of different models or targets.
    """
    first = parts[0][0]
    for other, _ in parts[1:]:
        one = (first.source.model_identity, first.source.processor, first.source.ladder)
        two = (other.source.model_identity, other.source.processor, other.source.ladder)
        if one != two or first.target != other.target:
            raise OutcomesError("Labels and outcomes are of different models or targets.")
    columns = {
        name: np.concatenate(
            [getattr(s, name) * w if name == "weights" else getattr(s, name) for s, w in parts]
        )
        for name in _PER_SAMPLE
    }
    return Samples(source=first.source, target=first.target, **columns)


def _success(table: pa.Table, target: Target) -> NDArray[np.bool_]:
    column, least = ("agrees", AGREES_FROM) if target == "agreement" else ("correct", CORRECT_FROM)
    return np.asarray(np.array(table[column].to_pylist(), dtype=np.float64) >= least)


_SOURCE = ["served", "model_identity", "processor", "scales", "grid_side"]
_QUESTION = ("question_values", "named_colours", "ngram_buckets", "ngram_counts")


def _matrix(table: pa.Table, name: str) -> NDArray[np.float32]:
    """N lists of one length as N×V; as Python's numbers they would take some ten times as much."""
    values = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.array(values, dtype=np.float32).reshape(len(table), -1)


def _strings(table: pa.Table, name: str) -> NDArray[np.object_]:
    return np.asarray(table[name].to_pylist(), dtype=object)
