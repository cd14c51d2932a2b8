"""`make serve` on one machine, over real HTTP: Ray Serve, a private Redis and m3-tiny.

One service for the whole module; the tests that break it come last, in the order of this file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import pytest
from openai import OpenAI

from deploy.announcement import EXAMPLES
from deploy.config import load
from deploy.predictors import find_artifact
from predictor.predictor import Predictor
from tests.conftest import unused_port
from tests.e2e.pictures import chat, messages, picture
from tests.e2e.service import Service, run, sandbox, start, until
from tests.router.support import png_header

seeds = count(1)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with sandbox() as box:
        yield start(port=unused_port(), box=box)


@pytest.fixture
def openai(service: Service) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(service: Service, body: dict[str, Any] | bytes) -> httpx.Response:
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    return httpx.post(f"{service.url}/v1/chat/completions", timeout=60, **content)


def encodings(service: Service) -> float:
    return sum(service.metric("m3_vision_encodings_total").values())


def test_it_says_where_it_is_and_what_to_send(service: Service) -> None:
    """The request that is printed is pasted into a shell, and answers."""
    assert f"is ready at {service.url} with m3-tiny" in service.announcement
    command = service.announcement[service.announcement.index("curl ") :]
    answer = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert '"object":"chat.completion"' in answer.stdout


def test_requests_are_routed_by_the_predictor_that_ships(service: Service) -> None:
    folder = find_artifact(load("local.yaml"))
    shipped = None if folder is None else Predictor.load(folder)
    answer = post(service, chat(picture(next(seeds))))
    assert answer.headers["x-m3-predictor"] == (shipped.version if shipped else "none")
    assert (answer.headers["x-m3-p-sufficient"] == "none") == (shipped is None)


def test_the_openai_client_gets_the_same_answer_streamed_and_whole(openai: OpenAI) -> None:
    request: dict[str, Any] = {
        "model": "m3-auto",
        "messages": messages(picture(next(seeds)), question="What colour is the background?"),
        "max_tokens": 12,
    }
    whole = openai.chat.completions.create(**request)
    chunks = list(
        openai.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
    )
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert whole.choices[0].message.content
    assert streamed == whole.choices[0].message.content
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def example_answers(service: Service, model: str) -> list[tuple[str, str]]:
    """Scale and answer of every example question."""
    rows = [json.loads(line) for line in (EXAMPLES / "questions.jsonl").read_text().splitlines()]
    answers = []
    for row in rows:
        image = (EXAMPLES / row["image"]).read_bytes()
        body = chat(image, question=row["question"], model=model, max_tokens=16)
        reply = post(service, body)
        text = reply.json()["choices"][0]["message"]["content"]
        answers.append((reply.headers["x-m3-scale"], text))
    assert len(answers) >= 12
    return answers


def test_the_examples_get_several_scales(service: Service) -> None:
    assert len({scale for scale, _ in example_answers(service, "m3-auto")}) >= 3


def test_what_an_example_answers_depends_on_the_scale(service: Service) -> None:
    coarse = [text for _, text in example_answers(service, "m3-1")]
    fine = [text for _, text in example_answers(service, "m3-576")]
    assert sum(a != b for a, b in zip(coarse, fine, strict=True)) >= 2


def test_a_repeated_image_is_not_encoded_again(service: Service) -> None:
    image = picture(next(seeds))
    before = encodings(service)
    first = post(service, chat(image, model="m3-576"))
    assert (first.headers["x-m3-cache"], encodings(service)) == ("miss", before + 1)
    # At the same scale not even keys and values; a coarser one is pooled from the finer.
    for scale, level in ((576, "prefix"), (36, "memory")):
        again = post(service, chat(image, model=f"m3-{scale}", question="And now?"))
        assert again.headers["x-m3-cache"] == level
        assert again.json()["m3"]["timings_ms"]["encode"] == 0
    assert encodings(service) == before + 1


def test_every_scale_answers_and_says_so(service: Service) -> None:
    image = picture(next(seeds))
    for scale in (1, 9, 36, 144, 576):
        answer = post(service, chat(image, model=f"m3-{scale}"))
        assert answer.headers["x-m3-scale"] == str(scale)
        details = answer.json()["usage"]["prompt_tokens_details"]
        assert details["image_tokens"] == scale


def test_the_command_asks_the_running_service(service: Service, tmp_path: Any) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(picture(next(seeds)))
    before = encodings(service)
    asked = run("ask", str(file), "What?", "--url", service.url, "--scale", "9", box=service.box)
    assert asked.returncode == 0, asked.stderr
    assert "scale 9, because: forced" in asked.stdout
    explained = run("route", str(file), "What?", "--url", service.url, box=service.box)
    assert "image tokens" in explained.stdout
    assert encodings(service) == before + 1
    refused = run("ask", str(file), "What?", "--url", service.url, "--scale", "7", box=service.box)
    assert refused.returncode == 2
    assert "invalid_scale" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


BAD_REQUESTS: dict[str, tuple[dict[str, Any] | bytes, int, str]] = {
    "not JSON": (b"{", 400, "invalid_json"),
    "not an image": (chat(b"just some text"), 400, "unsupported_image_format"),
    "a truncated image": (chat(picture(0)[:-200]), 400, "invalid_image"),
    "a 50,000×50,000 PNG": (chat(png_header(50_000, 50_000)), 400, "image_too_large"),
    "no image": (chat(), 400, "no_image"),
    "an unknown model": (chat(picture(0), model="gpt-5"), 404, "model_not_found"),
    "scale 100": (chat(picture(0), m3={"scale": 100}), 400, "invalid_scale"),
    "a body over the limit": (chat(b"\0" * 16 * 2**20), 413, "request_too_large"),
    "an empty question": (chat(picture(0), question="  "), 400, "empty_question"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_input_gets_its_own_code_and_nothing_else_happens(service: Service, case: str) -> None:
    body, status, code = BAD_REQUESTS[case]
    answer = post(service, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert post(service, chat(picture(0))).status_code == 200


def test_a_request_is_logged_without_what_was_asked(service: Service) -> None:
    question = "Where did I leave my keys, 0451?"
    answer = post(service, chat(picture(next(seeds)), question=question))
    request_id = answer.headers["x-m3-request-id"]

    def logs() -> str:
        files = service.box.folder.rglob("session_latest/logs/**/*.*")
        return "\n".join(file.read_text(errors="replace") for file in files if file.is_file())

    assert until(lambda: f'"request_id":"{request_id}"' in logs())
    assert question not in logs()


def test_a_client_that_leaves_frees_the_replica(service: Service) -> None:
    """Its many large images are still being encoded when it goes."""
    images = [picture(next(seeds), side=700) for _ in range(6)]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{service.url}/v1/chat/completions",
            json=chat(*images, model="m3-144"),
            timeout=httpx.Timeout(60, read=0.05),
        )
    left = '{code="client_closed_request",endpoint="/v1/chat/completions",status="499"}'
    assert until(lambda: service.metric("m3_requests_total").get(left) == 1)
    busy = ("m3_replica_running_requests", "m3_replica_waiting_requests")
    assert until(lambda: not any(sum(service.metric(name).values()) for name in busy))


def test_without_its_redis_it_answers_and_says_so(service: Service) -> None:
    os.kill(service.child("redis-server"), signal.SIGKILL)
    answer = post(service, chat(picture(next(seeds))))
    assert answer.status_code == 200
    assert answer.headers["x-m3-cache"] == "miss"
    assert answer.headers["x-m3-degraded"] == "redis"


def test_a_taken_port_is_one_clear_line(service: Service) -> None:
    port = service.url.rsplit(":", 1)[1]
    second = run("serve", "--port", port, box=service.box)
    assert second.returncode == 1
    assert "--port" in second.stderr.splitlines()[-1]


def test_ctrl_c_leaves_nothing_behind(service: Service) -> None:
    assert service.box.files()
    assert service.stop() == 0
    # Ray's last processes end themselves when they see that the others have.
    assert until(lambda: not service.box.processes()), service.box.processes()
    assert service.box.remains() == []
