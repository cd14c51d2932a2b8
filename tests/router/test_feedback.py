"""What callers say of their answers: who may say what, once, and that no text is kept of it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from predictor import label_records
from predictor.feedback_records import decode, fingerprint
from predictor.label_records import encode
from predictor.routing_records import IMAGE_FEATURES, describe_question, question_columns
from router import feedback as module
from router.access import Access
from router.auth import KeyStore
from router.config import RouterConfig
from router.feedback import Feedback
from router.held_answers import HeldAnswers
from router.http import MOST_FEEDBACK_BYTES, build_app
from router.limits import Limiter
from router.receipts import Receipts, is_answered, receipt_of
from router.record_stream import RecordStream
from router.recording import Outbox
from router.service import RoutingService
from router.telemetry import Telemetry
from tests.conftest import RedisServer
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import app_of, chat, client_of, image_part
from tests.router.test_access import ALICE, BOB, OPERATOR, ring

SAID = "A red square"  # what the backend answers, as an exact match
TIMEOUT_S = 2.0
DAY_S = 86_400.0


class World:
    """An app with its Redis, and what lies there."""

    def __init__(self, server: RedisServer, access: Access | None = None) -> None:
        self.server = server
        self.stream = self.opened("feedback")
        self.labels = self.opened("correctness")
        receipts = Receipts(server.url, ttl_s=DAY_S, timeout_s=TIMEOUT_S)
        self.held = HeldAnswers(server.url, self.labels.append, ttl_s=DAY_S, timeout_s=TIMEOUT_S)
        self.outbox = Outbox(receipts.append, receipt_of, is_answered, buffer=9, what="receipts")
        self.telemetry = Telemetry(followers=[self.outbox])
        self.feedback = Feedback(receipts, self.stream, self.held, window_s=DAY_S)
        service = RoutingService(FakeBackend(), FakePredictor(), RouterConfig())
        app = build_app(service, self.telemetry, access=access, feedback=self.feedback)
        self.client = client_of(app)

    def opened(self, kind: str) -> RecordStream:
        return RecordStream(self.server.url, kind, longest=5)

    async def asked(self, *parts: Any, **headers: str) -> str:
        """A question that was answered; its request id."""
        body = chat(*parts)
        answer = await self.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200
        assert self.outbox.flush(30.0)
        return answer.headers["x-m3-request-id"]

    async def said(self, request_id: str, headers: Any = None, **what: Any) -> httpx.Response:
        body = {"request_id": request_id} | what
        return await self.client.post("/v1/feedback", json=body, headers=headers)

    def rows(self) -> list[dict[str, Any]]:
        table, broken = decode([e.data for e in self.stream.older_than(2**48, 99)])
        assert broken == []
        return list(table.to_pylist())

    def counted(self) -> dict[str, str]:
        lines = self.telemetry.exposition().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("m3_feedback_total{"))
        return {name.partition("{")[2].rstrip("}"): value for name, value in pairs}


@pytest.fixture
async def world(redis_server: RedisServer) -> AsyncIterator[World]:
    made = World(redis_server)
    yield made
    made.outbox.close()


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_verdict_is_recorded_with_what_it_is_about(world: World) -> None:
    request_id = await world.asked(image_part(), "What colour is the square?")
    answer = await world.said(request_id, verdict="right")
    assert answer.json() == {
        "object": "m3.feedback",
        "request_id": request_id,
        "status": "recorded",
        "score": 1.0,
        "labelled": False,
    }
    [row] = world.rows()
    assert (row["request_id"], row["score"], row["answer_given"]) == (request_id, 1.0, False)
    assert (row["scales"], row["group"], row["predictor"]) == ([36], "colour", "fake-1")
    assert row["reasons"] == ["predicted"]
    assert row["at"] <= row["given_at"]
    assert world.counted() == {'group="colour",scale="36",verdict="right"': "1.0"}


async def test_the_first_word_counts_and_may_be_repeated(world: World) -> None:
    request_id = await world.asked()
    assert (await world.said(request_id, score=0.25)).json()["score"] == 0.25
    assert (await world.said(request_id, score=0.25)).json()["status"] == "repeated"
    assert code_of(await world.said(request_id, score=0.75)) == (409, "feedback_conflict")
    assert len(world.rows()) == 1
    assert list(world.counted().values()) == ["1.0"]
    assert 'verdict="wrong"' in next(iter(world.counted()))


@pytest.mark.parametrize(
    ("answer", "score"),
    [("a Red square.", 1.0), (["blue", SAID], 1.0), ("a blue square", 0.0), ("", 0.0)],
)
async def test_a_right_answer_is_compared_with_the_one_that_was_given(
    world: World, answer: Any, score: float
) -> None:
    request_id = await world.asked()
    assert (await world.said(request_id, answer=answer)).json()["score"] == score


async def test_a_verdict_wins_over_the_comparison(world: World) -> None:
    """Long answers are right in many words."""
    request_id = await world.asked()
    told = (await world.said(request_id, verdict="right", answer="crimson")).json()
    assert told["score"] == 1.0


async def test_images_at_several_scales_count_as_such(world: World) -> None:
    request_id = await world.asked(image_part(detail="high"), image_part(detail="low"), "Which?")
    await world.said(request_id, verdict="wrong")
    assert list(world.counted()) == ['group="other",scale="several",verdict="wrong"']


async def test_nothing_in_redis_holds_a_text(world: World) -> None:
    request_id = await world.asked(image_part(), "Is the parrot green?")
    await world.said(request_id, answer="a scarlet macaw")
    client: Any = world.server.client()
    stored = b""
    for key in client.scan_iter():
        kind = client.type(key)
        stored += client.get(key) if kind == b"string" else repr(client.xrange(key)).encode()
        assert kind == b"stream" or 0 < client.ttl(key) <= DAY_S
    assert request_id.encode() in stored
    for word in (b"parrot", b"square", b"scarlet", b"macaw"):
        assert word not in stored


async def test_unknown_and_forgotten_requests_are_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLES_S", 0.0)
    request_id = await world.asked()
    forgotten = await world.asked()
    client: Any = world.server.client()
    assert client.delete(f"m3:feedback:receipt:{forgotten}") == 1
    for name in ("f" * 32, "no id", forgotten):
        assert code_of(await world.said(name, verdict="right")) == (404, "request_unknown")
    assert world.rows() == []
    refused = await world.client.post("/v1/chat/completions", json={})
    failed = refused.headers["x-m3-request-id"]
    assert code_of(await world.said(failed, verdict="right")) == (404, "request_unknown")
    assert (await world.said(request_id, verdict="right")).status_code == 200


async def test_feedback_that_comes_before_its_receipt_waits_for_it(world: World) -> None:
    answer = await world.client.post("/v1/chat/completions", json=chat())
    told = await world.said(answer.headers["x-m3-request-id"], verdict="right")
    assert told.json()["status"] == "recorded"


BAD: dict[str, tuple[Any, str, str | None]] = {
    "not JSON": (b"{", "invalid_json", None),
    "no object": ([], "invalid_request", None),
    "no request": ({"verdict": "right"}, "invalid_request", "request_id"),
    "no verdict": ({"request_id": "a"}, "invalid_request", "verdict"),
    "another verdict": ({"request_id": "a", "verdict": "good"}, "invalid_request", "verdict"),
    "a score above 1": ({"request_id": "a", "score": 2}, "invalid_request", "score"),
    "both": ({"request_id": "a", "score": 1, "verdict": "right"}, "invalid_request", "score"),
    "no answers": ({"request_id": "a", "answer": []}, "invalid_request", "answer"),
    "a long answer": ({"request_id": "a", "answer": "x" * 4097}, "invalid_request", "answer"),
    "an unknown field": (
        {"request_id": "a", "verdict": "right", "why": "so"},
        "unsupported_parameter",
        "why",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_what_is_malformed_is_refused_by_name(world: World, case: str) -> None:
    body, code, param = BAD[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await world.client.post("/v1/feedback", content=content)
    assert code_of(answer) == (400, code)
    assert answer.json()["error"]["param"] == param


async def test_a_body_is_bounded(world: World) -> None:
    answer = await world.client.post("/v1/feedback", content=b" " * (MOST_FEEDBACK_BYTES + 1))
    assert code_of(answer) == (413, "request_too_large")


async def test_only_who_was_answered_may_judge(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLES_S", 0.0)
    world = World(redis_server, Access(KeyStore(ring), Limiter()))

    def of(key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"}

    request_id = await world.asked(**of(ALICE))
    assert code_of(await world.said(request_id, verdict="right")) == (401, "invalid_api_key")
    other = await world.said(request_id, of(BOB), verdict="wrong")
    assert code_of(other) == (404, "request_unknown")
    assert world.rows() == []
    assert (await world.said(request_id, of(ALICE), verdict="right")).status_code == 200
    assert (await world.said(request_id, of(OPERATOR), verdict="right")).status_code == 200
    assert [row["key"] for row in world.rows()] == ["alice"]
    world.outbox.close()


async def test_without_its_redis_it_is_unavailable_and_answers_go_on(world: World) -> None:
    request_id = await world.asked()
    world.server.kill()
    answer = await world.said(request_id, verdict="right")
    assert code_of(answer) == (503, "feedback_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert (await world.client.post("/v1/chat/completions", json=chat())).status_code == 200


async def test_a_full_stream_takes_none(world: World) -> None:
    request_id = await world.asked()
    world.stream.append([b"x"] * 5)
    answer = await world.said(request_id, verdict="right")
    assert code_of(answer) == (503, "feedback_unavailable")
    world.server.client().delete("m3:records:feedback")
    assert (await world.said(request_id, verdict="right")).json()["status"] == "recorded"


async def test_where_none_is_taken_that_is_said() -> None:
    async with client_of(app_of(FakeBackend())) as client:
        answer = await client.post("/v1/feedback", json={"request_id": "a", "verdict": "right"})
    assert code_of(answer) == (400, "feedback_disabled")


def label(request_id: str) -> bytes:
    """As a replica would make it."""
    asks = question_columns(describe_question("What colour is the square?"))
    at = round(time.time() * 1e6)
    return encode(
        {
            "request_id": request_id,
            "at": at,
            "labelled_at": at,
            "stratum": "uniform",
            "probability": 0.02,
            "served": "fake",
            "model_identity": "0" * 64,
            "processor": "1" * 64,
            "replica": "replica",
            "scale": 36,
            "reason": "predicted",
            "scales": [1, 9, 36],
            "grid_side": 24,
            "tokens_per_scale": [1, 9, 36],
            "agrees": [0.0, 1.0, 1.0],
            "reference_logprob": [0.0, 0.0, 0.0],
            "answer_tokens": 3,
            "ms": 1.0,
            "image": "i",
            "image_features": IMAGE_FEATURES,
            "features": np.zeros(3),
        }
        | asks
    )


@pytest.mark.parametrize("first", ["label", "feedback"])
async def test_a_right_answer_labels_every_scale_whichever_comes_first(
    world: World, first: str
) -> None:
    request_id = await world.asked()
    texts = ["a blue square", "crimson", SAID]
    made = label(request_id)
    if first == "label":
        assert not world.held.answered(request_id, made, texts)
    told = (await world.said(request_id, answer=["crimson", "a red square"])).json()
    assert told["labelled"] == (first == "label")
    if first == "feedback":
        assert world.held.answered(request_id, made, texts)
    table, broken = label_records.decode([e.data for e in world.labels.older_than(2**48, 9)])
    assert broken == []
    [row] = table.to_pylist()
    assert row["correct"] == [0.0, 1.0, 1.0]
    assert row["agrees"] == [0.0, 1.0, 1.0]
    assert row["request_id"] == request_id


async def test_a_verdict_alone_labels_nothing(world: World) -> None:
    request_id = await world.asked()
    world.held.answered(request_id, label(request_id), ["a", "b", "c"])
    assert not (await world.said(request_id, verdict="right")).json()["labelled"]
    assert world.labels.length() == 0


def test_fingerprints_are_of_one_request() -> None:
    assert fingerprint("a", "Two.") == fingerprint("a", "2")
    assert fingerprint("a", "2") != fingerprint("b", "2")
