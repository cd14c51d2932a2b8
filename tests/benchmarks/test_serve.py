"""The load generator on a server that is no m3-router, and the order in which loads ask."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from benchmarks import serve
from benchmarks.workload import Pictures, again_or_new, by_popularity
from tests.router.support import serving

REQUESTS = 12


class Other:
    """Streams in OpenAI's shape; knows the answers to every second question."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answers: dict[str, str] = {}
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.chat)

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if body["model"] == "busy":
            return JSONResponse({"error": {"message": "full"}}, status_code=429)
        question = body["messages"][0]["content"][1]["text"]
        known = len(self.bodies) % 2 and self.answers.get(question)
        text = known or "no idea"
        deltas = [
            {"role": "assistant", "content": ""},
            {"content": text[:1]},
            {"content": text[1:]},
        ]
        chunks: list[dict[str, Any]] = [{"choices": [{"delta": delta}]} for delta in deltas]
        chunks.append({"choices": [], "usage": {"prompt_tokens": 600}})
        if body["model"] == "breaks":
            chunks[2:] = [{"error": {"message": "gone"}}]
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        if body["model"] != "breaks":
            lines.append("data: [DONE]\n\n")
        return StreamingResponse(iter(lines), media_type="text/event-stream")


@pytest.fixture
def other() -> Iterator[tuple[Other, str]]:
    there = Other()
    with serving(there.app) as url:
        yield there, url


def rows(url: str, into: Path, *arguments: str) -> list[dict[str, Any]]:
    few = ["--requests", str(REQUESTS), "--into", str(into)]
    serve.main(["--url", url, *few, *arguments])
    found: list[dict[str, Any]] = json.loads(into.read_text())["rows"]
    return found


def test_any_server_gets_a_row_for_every_load(other: tuple[Other, str], tmp_path: Path) -> None:
    there, url = other
    into = tmp_path / "serve.json"
    pictures = Pictures(REQUESTS, split="serve", seed=0)
    rng = random.Random(0)
    for number in again_or_new(REQUESTS, 0.0, 0.0, rng):
        one = pictures.ask(number, rng)
        there.answers[one.question] = one.answer
    loads = ("--callers", "1", "--rates", "60", "--model", "m3-tiny", "--name", "other")
    [closed, opened] = rows(f"{url}/v1/", into, *loads)
    assert (closed["callers"], closed["rate"], opened["rate"]) == (1, None, 60.0)
    assert closed["answered"] == closed["requests"] == REQUESTS
    assert closed["accuracy"] == pytest.approx(0.5, abs=0.2)
    assert closed["mean_prompt_tokens"] == 600
    assert 0 < closed["ttft_p50_s"] <= closed["total_p50_s"]
    assert closed["cache"] == {}
    assert "m3" not in there.bodies[-1]
    assert there.bodies[-1]["stream_options"] == {"include_usage": True}
    assert into.with_suffix(".png").stat().st_size > 1000
    assert len(rows(url, into, "--callers", "2", "--model", "m3-tiny")) == 3


def test_what_is_not_answered_whole_is_counted_and_not_timed(
    other: tuple[Other, str], tmp_path: Path
) -> None:
    _, url = other
    models = ("--model", "busy", "--model", "breaks", "--model", "ok")
    told = rows(url, tmp_path / "serve.json", "--callers", "2", *models)
    assert [row["answered"] for row in told] == [0, 0, REQUESTS]
    assert [row["statuses"] for row in told[:2]] == [{"429": REQUESTS}, {"200": REQUESTS}]
    assert told[0]["accuracy"] is None


def test_nobody_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Nothing answers"):
        rows("http://127.0.0.1:9", tmp_path / "serve.json", "--callers", "1")


def test_reuse_is_the_share_of_pictures_seen_before() -> None:
    rng = random.Random(1)
    order = again_or_new(4000, 0.5, 0.0, rng)
    seen: set[int] = set()
    again = 0
    for picture in order:
        again += picture in seen
        seen.add(picture)
    assert again / len(order) == pytest.approx(0.5, abs=0.03)
    assert sorted(seen) == list(range(len(seen)))  # numbered as they come
    assert again_or_new(50, 0.0, 1.0, rng) == list(range(50))
    skewed = Counter(again_or_new(4000, 0.9, 1.5, rng))
    assert skewed[0] > 5 * skewed[20]


def test_popularity_follows_zipf() -> None:
    counts = Counter(by_popularity(60_000, 2000, 1.0, random.Random(2)))
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.2)
    assert max(counts) < 2000
