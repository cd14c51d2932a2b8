"""Records of requests: what travels, what is kept, what older and newer releases make of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from predictor import routing_records as records
from predictor.routing_records import RecordedImage, RoutingRecord

QUESTION = "What colour is the small square above the red star?"


def record(request_id: str = "a" * 32, at: float = 1_800_000_000.25) -> RoutingRecord:
    """A request that was answered, with one image."""
    image = RecordedImage(
        image="0f" * 16,
        width=640,
        height=480,
        detail="auto",
        scale=36,
        reason="predicted",
        tokens=36,
        p_sufficient=0.98,
        p_success=(0.2, 0.5, 0.9, 0.91, 0.92),
        tokens_per_scale=(1, 9, 36, 144, 576),
        cache="miss",
        features=np.linspace(-1, 1, 7, dtype=np.float32),
    )
    return RoutingRecord(
        request_id=request_id,
        at=at,
        endpoint="/v1/chat/completions",
        ingress="ingress-1",
        status=200,
        code="ok",
        stream=False,
        priority="interactive",
        total_ms=12.5,
        pressure=0.125,
        images=(image,),
        max_regret=0.05,
        asks=records.describe_question(QUESTION),
    )


def test_what_is_encoded_comes_back_as_a_row() -> None:
    table, broken = records.decode([records.encode(record())])
    [row] = table.to_pylist()
    assert broken == []
    assert table.schema.equals(records.SCHEMA)
    assert row["at"].timestamp() == 1_800_000_000.25
    assert row["images"][0]["features"] == np.linspace(-1, 1, 7, dtype=np.float32).tolist()
    assert row["images"][0]["p_success"] == pytest.approx((0.2, 0.5, 0.9, 0.91, 0.92))
    assert row["named_colours"] == ["red"]
    assert row["completion_tokens"] is None
    assert row["image_features"] == records.IMAGE_FEATURES


def test_the_question_is_not_in_what_is_encoded() -> None:
    encoded = records.encode(record())
    assert b"square" not in encoded
    assert b"star" not in encoded
    assert b"star" in records.encode(replace(record(), question=QUESTION))


def test_ngrams_are_counted_in_ascending_buckets() -> None:
    asks = records.describe_question("red red red")
    assert list(asks.buckets) == sorted(set(asks.buckets))
    assert asks.counts[asks.buckets.index(records.bucket_of("red red"))] == 2
    assert max(asks.buckets) < records.NGRAM_BUCKETS


def test_a_bucket_never_moves() -> None:
    """Records of years must count the same n-gram in the same place."""
    assert records.bucket_of("colour") == 26_062


@pytest.mark.parametrize(
    "change",
    [
        {"format": records.FORMAT + 1},
        {"request_id": None},
        {"at": "yesterday"},
        {"images": None},
        {"images": [{"image": "x"}]},
        {"status": 10**6},
        {"total_ms": "slow"},
    ],
)
def test_what_is_no_record_is_refused(change: dict[str, object]) -> None:
    """And costs nobody else theirs."""
    damaged = json.loads(records.encode(record())) | change
    one, other = records.encode(record("1" * 32)), records.encode(record("2" * 32))
    table, broken = records.decode([one, json.dumps(damaged).encode(), other])
    assert broken == [1]
    assert table["request_id"].to_pylist() == ["1" * 32, "2" * 32]


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'"x"', b"\xff", b'{"format": "1"}'])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    table, broken = records.decode([data])
    assert broken == [0]
    assert table.schema.equals(records.SCHEMA)


def test_tables_of_other_releases_are_read() -> None:
    table, _ = records.decode([records.encode(record())])
    other = table.drop_columns(["draw_stratum", "pressure"]).append_column("later", pa.array([1]))
    read = records.upgraded(other)
    assert read.column_names == records.SCHEMA.names
    assert read["draw_stratum"].to_pylist() == [None]
    assert read["total_ms"].to_pylist() == [12.5]
