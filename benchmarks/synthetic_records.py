"""Made-up records in any number, for measuring what reads them: a service's month in a minute.

    python -m benchmarks.synthetic_records FOLDER --records 10000000 --days 30

Traffic has days and nights, families of questions that need different scales, keys, a change of
predictor, refusals in the busiest hours. One answer in fifty has a label. Features are left out: no
view of the page reads them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from predictor import label_records
from predictor.record_store import LABELS, REQUESTS, RecordStore
from predictor.routing_records import SCHEMA

Floats = NDArray[np.float64]

SCALES = np.array([1, 9, 36, 144, 576])
# Probability of success by family of question and scale, before noise; and how often each is asked.
FAMILIES = np.array(
    [
        [0.93, 0.96, 0.97, 0.97, 0.97],
        [0.55, 0.88, 0.93, 0.94, 0.94],
        [0.30, 0.52, 0.81, 0.86, 0.87],
        [0.12, 0.25, 0.55, 0.80, 0.88],
        [0.05, 0.09, 0.16, 0.44, 0.83],
    ]
)
ASKED = np.array([0.30, 0.26, 0.18, 0.14, 0.12])
KEYS = np.array(["alice", "bob", "ci", "mobile-app"])
PRICE = 0.1  # of a token, in the selection rule
DAY_S = 86_400.0
LABELLED = 0.02  # of the answers
IMAGE = SCHEMA.field("images").type.value_type


@dataclass(frozen=True)
class Plan:
    """Which records to make: `records` of them over `days` up to `until`, Unix time."""

    records: int
    days: float
    until: float
    seed: int = 0
    per_file: int = 50_000


def tables(plan: Plan) -> Iterator[pa.Table]:
    """The records, a file's worth at a time, in order of time."""
    rng = np.random.default_rng(plan.seed)
    made = 0
    while made < plan.records:
        count = min(plan.per_file, plan.records - made)
        share = (np.arange(made, made + count) + rng.random(count)) / plan.records
        yield _table(rng, plan.until - (1 - share) * plan.days * DAY_S, share, made)
        made += count


def labels_of(requests: pa.Table, seed: int = 0) -> pa.Table:
    """Labels of a share of these requests, as shadow labelling would have made them: an answer at a
    scale is the finest one's as often as its success allows, and then at every finer scale, too.
    """
    rng = np.random.default_rng((seed, len(requests)))
    drawn = pa.array(rng.random(len(requests)) < LABELLED)
    kept = requests.filter(pc.and_(drawn, pc.equal(requests["code"], "ok")))
    count, width = len(kept), len(SCALES)
    images = pc.list_flatten(kept["images"].combine_chunks())
    p = pc.list_flatten(images.field("p_success")).to_numpy().reshape(count, width)
    agrees = rng.random((count, 1)) < np.minimum(p / p[:, -1:], 1.0)
    agrees[:, -1] = True
    lists = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    ladder = pa.ListArray.from_arrays(lists, pa.array(np.tile(SCALES, count).astype(np.int32)))
    none = pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], pa.float32()))
    columns: dict[str, Any] = {
        **{name: kept[name] for name in ("request_id", "at", "served", "predictor", "bound")},
        "labelled_at": kept["at"],
        "stratum": [label_records.UNIFORM] * count,
        "probability": np.full(count, LABELLED),
        "pressure": kept["pressure"],
        "scale": images.field("scale"),
        "reason": images.field("reason"),
        "scales": ladder,
        "tokens_per_scale": ladder,
        "grid_side": np.full(count, 24),
        "p_success": images.field("p_success"),
        "agrees": pa.ListArray.from_arrays(lists, pa.array(agrees.ravel().astype(np.float64))),
        "image": images.field("image"),
        "answer_tokens": np.full(count, 3),
        "ms": np.full(count, 40.0),
    }
    columns |= dict.fromkeys(("model_identity", "processor", "replica"), ["made-up"] * count)
    columns |= dict.fromkeys(("image_features", "question_features"), ["none"] * count)
    for field in label_records.SCHEMA:
        if field.name not in columns:
            left_out = pa.nulls(count, field.type)
            columns[field.name] = left_out if field.nullable or not count else none.cast(field.type)
    cast = [_cast(columns[field.name], field.type) for field in label_records.SCHEMA]
    return pa.table(cast, schema=label_records.SCHEMA)


def _table(rng: np.random.Generator, at: Floats, share: Floats, first: int) -> pa.Table:
    count = len(at)
    family = rng.choice(len(ASKED), count, p=ASKED)
    p = np.clip(FAMILIES[family] + rng.normal(0, 0.03, (count, len(SCALES))), 0.005, 0.995)
    chosen = (p - PRICE * SCALES / SCALES[-1]).argmax(axis=1)
    scale = SCALES[chosen]
    hour = (at / 3600) % 24
    busy = 0.5 - 0.5 * np.cos((hour - 3) / 24 * 2 * np.pi)
    pressure = np.clip(busy * rng.gamma(2.0, 0.25, count), 0, 3)
    refused = pressure > 1.25
    failed = ~refused & (rng.random(count) < 0.002)
    answered = ~refused & ~failed
    text, out = rng.integers(12, 60, count), rng.integers(1, 24, count)
    hit = rng.random(count) < 0.35
    encode = np.where(hit, 0.0, rng.lognormal(np.log(38), 0.12, count))
    prefill = (6 + 0.055 * (scale + text)) * rng.lognormal(0, 0.1, count)
    decode = 2.6 * out * rng.lognormal(0, 0.15, count)
    queue = rng.exponential(3 + 60 * pressure, count)
    stages = {
        f"{name}_ms": rng.lognormal(np.log(middle), 0.35, count)
        for name, middle in (
            *(("wait", 0.05), ("parse", 0.25), ("images", 0.3)),
            *(("features", 2.6), ("predict", 0.2), ("decide", 0.03)),
        )
    }
    routing = sum(stages.values()) + 0.1
    ttft = routing + queue + encode + prefill
    predictor = np.where(share < 0.6, "233531c440a4be4f", "7be0a91f20c6d2e8")
    decided = ~refused
    columns: dict[str, Any] = {
        "request_id": [f"{number:032x}" for number in range(first, first + count)],
        "at": pa.array((at * 1e6).astype(np.int64), pa.timestamp("us", "UTC")),
        "endpoint": ["/v1/chat/completions"] * count,
        "ingress": ["ingress-1"] * count,
        "key": KEYS[rng.choice(len(KEYS), count, p=[0.4, 0.3, 0.1, 0.2])],
        "replica": _where(answered, np.full(count, "replica-1")),
        "status": np.where(answered, 200, np.where(refused, 429, 502)).astype(np.int16),
        "code": np.where(answered, "ok", np.where(refused, "overloaded", "backend_error")),
        "stream": rng.random(count) < 0.6,
        "finish_reason": _where(answered, np.full(count, "stop")),
        "retries": (rng.random(count) < 0.0005).astype(np.int16),
        "degraded": [[]] * count,
        "model": _where(decided, np.full(count, "m3-auto")),
        "priority": np.where(rng.random(count) < 0.1, "batch", "interactive"),
        "served": _where(decided, np.full(count, "m3-tiny")),
        "predictor": _where(decided, predictor),
        "max_regret": _where(decided, np.where(pressure > 0.8, 0.075, 0.05)),
        "loosened_from": _where(decided & (pressure > 0.8), np.full(count, 0.05)),
        "bound": _where(decided, np.where(pressure > 0.8, 0.075, 0.05)),
        "cost_ms": _where(decided, 44 + 0.055 * (scale + text)),
        "pressure": pressure,
        "images": _images(rng, decided, p, chosen, hit & answered, answered),
        "prompt_tokens": _where(answered, scale + text),
        "image_tokens": _where(answered, scale),
        "finest_tokens": _where(decided, np.full(count, SCALES[-1])),
        "completion_tokens": _where(answered, out),
        "total_ms": np.where(answered, ttft + decode, routing),
        "ttft_ms": _where(answered, ttft),
        "routing_ms": _where(decided, routing),
        "queue_ms": _where(answered, queue),
        "fetch_ms": _where(answered, rng.exponential(0.4, count)),
        "encode_ms": _where(answered, encode),
        "prefill_ms": _where(answered, prefill),
        "decode_ms": _where(answered, decode),
        **{name: _where(decided, values) for name, values in stages.items()},
    }
    return pa.table(
        [
            _cast(columns[field.name], field.type)
            if field.name in columns
            else pa.nulls(count, field.type)
            for field in SCHEMA
        ],
        schema=SCHEMA,
    )


def _images(
    rng: np.random.Generator,
    decided: NDArray[np.bool_],
    p: Floats,
    chosen: NDArray[np.int64],
    hit: NDArray[np.bool_],
    answered: NDArray[np.bool_],
) -> pa.Array:
    """One image for each request that was decided, none for the others."""
    at = np.flatnonzero(decided)
    count, width = len(at), len(SCALES)
    lists = np.arange(0, (count + 1) * width, width, dtype=np.int32)
    ladder = np.tile(SCALES, count).astype(np.int32)
    loss = p[at].max(axis=1) - p[at, chosen[at]]
    columns: dict[str, Any] = {
        "image": [f"{number:032x}" for number in rng.integers(0, 2**62, count)],
        "width": np.full(count, 640, np.int32),
        "height": np.full(count, 480, np.int32),
        "detail": ["auto"] * count,
        "scale": SCALES[chosen[at]].astype(np.int32),
        "reason": ["predicted"] * count,
        "tokens": SCALES[chosen[at]].astype(np.int32),
        "p_sufficient": 1 - loss,
        "p_success": pa.ListArray.from_arrays(lists, pa.array(p[at].ravel(), pa.float32())),
        "tokens_per_scale": pa.ListArray.from_arrays(lists, pa.array(ladder)),
        "cache": _where(answered[at], np.where(hit[at], "memory", "miss")),
        "features": pa.nulls(count, IMAGE.field("features").type),
    }
    parts = [_cast(columns[field.name], field.type) for field in IMAGE]
    offsets = np.concatenate([[0], np.cumsum(decided)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(parts, fields=list(IMAGE)))


def _where(there: NDArray[np.bool_], values: NDArray[Any]) -> pa.Array:
    return pa.array(values, mask=~there)


def _cast(values: Any, kind: pa.DataType) -> pa.Array:
    found = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    return found if found.type == kind else found.cast(kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--days", type=float, default=30.0)
    options = parser.parse_args()
    store = RecordStore(str(options.folder))
    for table in tables(Plan(options.records, options.days, time.time())):
        store.append(REQUESTS, table)
        store.append(LABELS, labels_of(table))


if __name__ == "__main__":
    main()
