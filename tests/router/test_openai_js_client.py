"""OpenAI's JavaScript client over real HTTP against the real model: `tests/js/client.mjs` uses it.

What it needs is installed by `npm ci` from the lock file into a cache, once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from m3_backend.errors import BackendError, InvalidRequestError, OverloadedError
from tests.fakes import ScriptedBackend
from tests.m3_backend.support import picture
from tests.npm import installed
from tests.router.support import app_of, serving

SOURCES = Path(__file__).parents[1] / "js"
PATIENCE_S = 1.0  # longer than a client waits for by itself before its first retry


@dataclass(frozen=True)
class Run:
    """What the client got, and when the backend was asked, by question."""

    got: dict[str, Any]
    attempts: dict[str, list[float]]


@pytest.fixture(scope="session")
def packages() -> Path:
    """A folder with the clients in `node_modules`."""
    return installed(SOURCES)


@pytest.fixture(scope="module", params=["openai", "openai-6"])
def run(
    request: pytest.FixtureRequest, packages: Path, m3_tiny: Any, tmp_path_factory: Any
) -> Iterator[Run]:
    full = OverloadedError("All places are taken.", retry_after_s=PATIENCE_S)
    down = BackendError(
        "No replica.", status=503, code="backend_unavailable", retry_after_s=PATIENCE_S
    )
    backend = ScriptedBackend(
        m3_tiny,
        {
            "overloaded": [full],
            "unavailable": [down],
            "broken": [RuntimeError("a fault of ours")],
            "lost": [BackendError("The replica died.", code="replica_lost")],
            "always overloaded": [OverloadedError("Full.", retry_after_s=0.01)] * 9,
            "bad request": [InvalidRequestError("No.")] * 9,
        },
    )
    folder = tmp_path_factory.mktemp("js")
    (folder / "picture.png").write_bytes(picture(1).data)
    # Node looks for packages beside the script, so it has to lie there.
    shutil.copy(SOURCES / "client.mjs", packages)
    with serving(app_of(backend, m3_tiny.predictor, max_body_bytes=1_000_000)) as url:
        script = [packages / "client.mjs", url, request.param, folder / "picture.png"]
        done = subprocess.run(
            ["node", *script], capture_output=True, text=True, timeout=300, check=False
        )
    assert done.returncode == 0, done.stderr
    yield Run(json.loads(done.stdout), dict(backend.attempts))


def test_vision_requests(run: Run) -> None:
    whole = run.got["whole"]
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"]["role"] == "assistant"
    assert whole["choices"][0]["message"]["content"]
    assert whole["m3"]["reason"] == ["predicted"]
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["image_tokens"] == whole["m3"]["scale"][0]


def test_streaming(run: Run) -> None:
    streamed, whole = run.got["streamed"], run.got["whole"]
    assert streamed["text"] == whole["choices"][0]["message"]["content"] == run.got["helper"]
    assert streamed["roles"] == ["assistant"]
    assert streamed["reasons"] == [whole["choices"][0]["finish_reason"]]
    assert streamed["m3"][0]["scale"] == whole["m3"]["scale"]
    assert streamed["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_headers(run: Run) -> None:
    assert run.got["headers"] == {"scale": "9", "named": True}
    assert run.got["raw"] == "predicted"


def test_options(run: Run) -> None:
    choice = run.got["options"]["choices"][0]
    told, counted = choice["logprobs"]["content"], run.got["options"]["usage"]["completion_tokens"]
    assert 1 <= len(told) <= counted <= 3  # the token that ends an answer is counted and not told
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_several_images_and_turns(run: Run) -> None:
    low, high = run.got["images"]["m3"]["scale"]
    assert low <= 36
    assert high >= 144
    assert run.got["turns"]["choices"][0]["message"]["content"]

    def text_tokens(case: str) -> int:
        usage = run.got[case]["usage"]
        return int(usage["prompt_tokens"] - usage["prompt_tokens_details"]["image_tokens"])

    assert text_tokens("turns") > text_tokens("whole")


def test_models(run: Run) -> None:
    assert run.got["models"]["names"][:2] == ["m3-auto", "m3-1"]
    assert run.got["models"]["one"] == "m3-9"


@pytest.mark.parametrize(
    ("case", "kind", "status", "code", "param"),
    [
        ("unknownModel", "NotFoundError", 404, "model_not_found", "model"),
        ("unsupported", "BadRequestError", 400, "unsupported_parameter", "n"),
        ("badScale", "BadRequestError", 400, "invalid_scale", "m3.scale"),
        (
            "badImage",
            "BadRequestError",
            400,
            "unsupported_image_format",
            "messages[0].content[0].image_url.url",
        ),
        ("tooLarge", "APIError", 413, "request_too_large", None),
        ("notRetried", "BadRequestError", 400, "invalid_request", None),
        ("givenUp", "RateLimitError", 429, "overloaded", None),
    ],
)
def test_error_classes(
    run: Run, case: str, kind: str, status: int, code: str, param: str | None
) -> None:
    error = run.got[case]
    assert kind in error["classes"]
    assert (error["status"], error["code"], error["param"]) == (status, code, param)


def test_what_is_no_fault_of_ours_is_not_tried_again(run: Run) -> None:
    assert len(run.attempts["bad request"]) == 1


@pytest.mark.parametrize(
    ("case", "question"),
    [("retried429", "overloaded"), ("retried503", "unavailable"), ("retried500", "broken")],
)
def test_retries(run: Run, case: str, question: str) -> None:
    assert run.got[case]["answered"]["choices"][0]["message"]["content"]
    first, second = run.attempts[question]
    if question != "broken":  # Retry-After is honoured; without it the client waits half a second
        assert second - first >= PATIENCE_S


def test_a_stream_that_has_not_begun_is_tried_again(run: Run) -> None:
    assert len(run.attempts["lost"]) == 2
    assert run.got["retriedStream"]["text"]
    assert len(run.attempts["always overloaded"]) == 3


def test_a_stream_that_breaks_is_an_error_of_the_client(run: Run) -> None:
    broken = run.got["brokenStream"]
    assert broken["chunks"] >= 1
    assert "APIError" in broken["classes"]
    assert "The replica is gone" in broken["message"]
    assert len(run.attempts["break"]) == 1


def test_a_client_may_leave(run: Run) -> None:
    assert run.got["left"] is True
