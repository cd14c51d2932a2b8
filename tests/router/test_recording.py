"""Every request leaves one record, and none of them waits for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from m3_backend.messages import ImageInput
from predictor.predictor import Prediction
from predictor.routing_records import decode, describe_question
from router.config import RouterConfig
from router.http import build_app
from router.record_stream import RecordStream
from router.recording import Recording
from router.service import RoutingService
from router.telemetry import Telemetry
from router.trace import Trace
from tests.conftest import RedisServer, start_redis
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import QUESTION, chat, client_of, image_part

SECONDS = 30.0


class Looking(FakePredictor):
    """One that keeps what it has measured of the picture."""

    def predict(self, image: ImageInput, question: str, salt: str = "") -> Prediction:
        found = super().predict(image, question, salt)
        return Prediction(found.p_success, None, image=np.ones(3, np.float32))


class Stream:
    """Takes records as long as `takes` is true."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.takes = True
        self.offered = threading.Event()

    def append(self, records: Sequence[bytes]) -> int:
        self.offered.set()
        if not self.takes:
            raise redis.ConnectionError("down")
        self.taken += records
        return len(records)


@contextmanager
def recorded(
    stream: Any, *, buffer: int = 100, questions: bool = False, **config: Any
) -> Iterator[tuple[httpx.AsyncClient, Recording, Telemetry]]:
    recording = Recording(stream.append, ingress="here", buffer=buffer, questions=questions)
    telemetry = Telemetry(followers=[recording])
    telemetry.records.now = lambda: recording.counts
    service = RoutingService(FakeBackend(), Looking(), RouterConfig(**config))
    try:
        yield client_of(build_app(service, telemetry)), recording, telemetry
    finally:
        recording.close()


def rows(stream: Stream) -> list[dict[str, Any]]:
    table, broken = decode(stream.taken)
    assert broken == []
    found: list[dict[str, Any]] = table.to_pylist()
    return found


async def test_a_record_tells_the_decision_and_what_became_of_it() -> None:
    stream = Stream()
    body = chat(image_part(), image_part(detail="low"), QUESTION, m3={"max_regret": 0.02})
    with recorded(stream) as (client, recording, _):
        answer = await client.post("/v1/chat/completions", json=body)
        assert recording.flush(SECONDS)
    [row] = rows(stream)
    assert row["request_id"] == answer.headers["x-m3-request-id"]
    assert (row["status"], row["code"], row["endpoint"]) == (200, "ok", "/v1/chat/completions")
    assert ",".join(str(image["scale"]) for image in row["images"]) == answer.headers["x-m3-scale"]
    assert [image["reason"] for image in row["images"]] == ["predicted", "detail_low"]
    assert [image["detail"] for image in row["images"]] == ["auto", "low"]
    assert [image["cache"] for image in row["images"]] == ["miss", "miss"]
    assert row["images"][0]["features"] == [1.0, 1.0, 1.0]
    assert row["images"][0]["p_success"] == pytest.approx([0.3, 0.6, 0.9, 0.92, 0.93])
    assert row["images"][0]["tokens_per_scale"] == [1, 9, 36, 144, 576]
    assert row["asked_max_regret"] == row["bound"] == pytest.approx(0.02)
    assert row["max_regret"] is None  # `detail: low` voids it
    assert (row["predictor"], row["served"], row["ingress"]) == ("fake-1", "fake", "here")
    assert row["prompt_tokens"] == answer.json()["usage"]["prompt_tokens"]
    assert (row["completion_tokens"], row["finish_reason"]) == (4, "stop")
    assert row["finest_tokens"] == 1152
    assert (row["fetch_ms"], row["encode_ms"], row["prefill_ms"], row["decode_ms"]) == (
        *(0.5, 10.0),
        *(8.0, 6.0),
    )
    assert 0 < row["parse_ms"] < row["routing_ms"] < row["total_ms"]
    assert row["pressure"] == 0.0
    asks = describe_question(QUESTION)
    assert row["ngram_buckets"] == list(asks.buckets)
    assert row["named_colours"] == list(asks.colours)


async def test_the_question_is_kept_only_if_that_is_turned_on() -> None:
    for questions in (False, True):
        stream = Stream()
        with recorded(stream, questions=questions) as (client, recording, _):
            await client.post("/v1/chat/completions", json=chat())
            assert recording.flush(SECONDS)
        assert (QUESTION.encode() in stream.taken[0]) == questions
        assert rows(stream)[0]["question"] == (QUESTION if questions else None)


async def test_what_was_refused_streamed_or_only_explained_leaves_a_record_too() -> None:
    stream = Stream()
    with recorded(stream) as (client, recording, _):
        await client.post("/v1/chat/completions", content=b"{")
        await client.post("/v1/chat/completions", json=chat(stream=True))
        await client.post("/v1/route", json=chat(model="m3-9"))
        await client.post("/v1/route/batch", json={"requests": [chat()]})
        await client.get("/v1/models")
        await client.get("/healthz")
        assert recording.flush(SECONDS)
    refused, streamed, explained, batch = rows(stream)
    assert (refused["status"], refused["code"], refused["images"]) == (400, "invalid_json", [])
    assert refused["ngram_buckets"] is None
    assert (streamed["stream"], streamed["completion_tokens"]) == (True, 4)
    assert (explained["asked_scale"], explained["bound"]) == (9, None)
    assert explained["completion_tokens"] is None
    assert (batch["endpoint"], batch["images"]) == ("/v1/route/batch", [])


async def test_while_the_stream_takes_none_they_wait_and_no_request_does() -> None:
    stream = Stream()
    stream.takes = False
    with recorded(stream, buffer=3) as (client, recording, telemetry):
        for _ in range(5):
            assert (await client.post("/v1/route", json=chat())).status_code == 200
        assert stream.offered.wait(SECONDS)
        assert not recording.flush(0.0)
        text = telemetry.exposition().decode()
        assert 'm3_records_total{outcome="dropped"} 2.0' in text
        assert "m3_records_waiting 3.0" in text
        stream.takes = True
        assert recording.flush(SECONDS)
        assert 'm3_records_total{outcome="acknowledged"} 3.0' in telemetry.exposition().decode()
    assert len(rows(stream)) == 3


async def test_what_is_left_when_the_service_ends_counts_as_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.recording._CLOSING_S", 0.3)
    stream = Stream()
    stream.takes = False
    with recorded(stream) as (client, recording, _):
        await client.post("/v1/route", json=chat())
    assert (recording.counts.acknowledged, recording.counts.dropped) == (0, 1)


async def test_a_stream_with_little_room_is_offered_the_rest_again() -> None:
    class Narrow(Stream):
        def append(self, records: Sequence[bytes]) -> int:
            return super().append(records[:2])

    stream = Narrow()
    with recorded(stream) as (client, recording, _):
        for _ in range(5):
            await client.post("/v1/route", json=chat())
        assert recording.flush(SECONDS)
    found = [row["request_id"] for row in rows(stream)]
    assert len(found) == len(set(found)) == 5


def test_a_trace_that_cannot_be_told_costs_only_its_own_record() -> None:
    stream = Stream()
    recording = Recording(stream.append, ingress="here", buffer=9)
    broken, whole = Trace("broken"), Trace("whole")
    for trace in (broken, whole):
        trace.endpoint = "/v1/route"
    broken.status = "no number"  # type: ignore[assignment]
    broken.stages = None  # type: ignore[assignment]
    recording.follow(broken)
    recording.follow(whole)
    assert recording.flush(SECONDS)
    recording.close()
    assert [json.loads(taken)["request_id"] for taken in stream.taken] == ["whole"]
    assert recording.counts.dropped == 1


async def test_a_redis_that_is_restarted_gets_what_waited(tmp_path: Path) -> None:
    """Real Redis: killed and started again, under requests."""
    server: RedisServer = start_redis(tmp_path)
    stream = RecordStream(server.url, "requests", longest=100, timeout_s=1.0)
    server.kill()
    with recorded(stream) as (client, recording, _):
        for _ in range(3):
            assert (await client.post("/v1/route", json=chat())).status_code == 200
        server = start_redis(tmp_path, server.port)
        try:
            assert recording.flush(SECONDS)
            assert stream.length() == 3
        finally:
            server.kill()
