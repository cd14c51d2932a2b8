"""The official client over a real server: what people's programs will do."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from m3_backend.errors import (
    BackendError,
    ContextLengthError,
    DeadlineExceededError,
    InvalidImageError,
    InvalidRequestError,
    OverloadedError,
)
from m3_backend.messages import Sampling
from tests.fakes import FakeBackend, FakePredictor, ScriptedBackend
from tests.router.support import QUESTION, app_of, chat, image_part, picture, serving, user

TEXT = "a red square"


def client(url: str, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=retries)


def test_whole(served: str) -> None:
    completion = client(served).chat.completions.create(**chat())
    assert completion.choices[0].message.content == TEXT
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 60
    assert completion.usage.to_dict()["prompt_tokens_details"]["image_tokens"] == 36
    assert completion.model_extra["m3"]["scale"] == [36]


def test_streamed(served: str) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    chunks = list(client(served).chat.completions.create(**body))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].model_extra["m3"]["reason"] == ["predicted"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 60


def test_the_clients_own_stream_helper(served: str) -> None:
    with client(served).chat.completions.stream(**chat()) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == TEXT


def test_an_answer_is_sent_back_as_it_came(served: str) -> None:
    """How people keep a conversation going: the client's own message object, whole."""
    completions = client(served).chat.completions
    body = chat()
    with completions.stream(**body) as stream:
        streamed = stream.get_final_completion().choices[0].message
    for first in (completions.create(**body).choices[0].message, streamed):
        messages = [*body["messages"], first, {"role": "user", "content": "And its size?"}]
        second = completions.create(model="m3-auto", messages=messages)
        assert second.choices[0].message.content == TEXT


async def test_async(served: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served}/v1", api_key="unused") as asynchronous:
        whole = await asynchronous.chat.completions.create(**chat())
        assert whole.choices[0].message.content == TEXT
        stream = await asynchronous.chat.completions.create(**chat(stream=True))
        text = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(text) == TEXT


def test_headers_and_own_options(served: str) -> None:
    raw = client(served).chat.completions.with_raw_response.create(
        **chat(), extra_body={"m3": {"min_scale": 144}}
    )
    assert raw.headers["x-m3-scale"] == "144"
    assert raw.headers["x-m3-reason"] == "floor"
    assert raw.parse().choices[0].message.content == TEXT


def test_logprobs(served: str) -> None:
    completion = client(served).chat.completions.create(**chat(logprobs=True, top_logprobs=2))
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert [entry.token for entry in logprobs.content or []] == ["a ", "red ", "", "square"]
    assert logprobs.content[0].top_logprobs[1].token == "other"


def test_models(served: str) -> None:
    models = client(served).models
    assert [model.id for model in models.list()][:2] == ["m3-auto", "m3-1"]
    assert models.retrieve("m3-576").owned_by == "m3-router"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "kind", "code"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found"),
        ({"n": 2}, openai.BadRequestError, "unsupported_parameter"),
        ({"extra_body": {"m3": {"scale": 100}}}, openai.BadRequestError, "invalid_scale"),
    ],
)
def test_errors(
    served: str, options: dict[str, Any], kind: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client(served).chat.completions.create(**(chat(stream=stream) | options))
    assert caught.value.code == code
    assert caught.value.param


def test_a_body_over_the_limit_and_the_service_keeps_serving(served: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client(served).chat.completions.create(**chat(image_part(), "x" * 1_000_000))
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    assert client(served).chat.completions.create(**chat()).choices[0].message.content == TEXT


def test_the_client_retries_when_it_is_told_to() -> None:
    class Busy(FakeBackend):
        async def generate(self, request: Any) -> Any:
            if not self.requests:
                self.requests.append(request)
                raise OverloadedError("Try again.", retry_after_s=0.01)
            async for event in super().generate(request):
                yield event

    backend = Busy()
    with serving(app_of(backend)) as url:
        completion = client(url, retries=1).chat.completions.create(**chat())
    assert completion.choices[0].message.content == TEXT
    assert len(backend.requests) == 2


def test_an_error_in_mid_stream_reaches_the_program() -> None:
    backend = FakeBackend(error_after=(2, BackendError("The replica is gone.")))
    with serving(app_of(backend, FakePredictor())) as url:
        got = []
        with pytest.raises(openai.APIError, match="The replica is gone") as caught:
            for chunk in client(url).chat.completions.create(**chat(stream=True)):
                got.append(chunk.choices[0].delta.content)
        assert got == ["", "a ", "red "]
        assert caught.value.code == "backend_error"


PATIENCE_S = 1.0  # longer than the client waits for by itself before its first retry


@pytest.mark.parametrize("stream", [False, True])
def test_retry_after_is_honoured(stream: bool) -> None:
    full = OverloadedError("Full.", retry_after_s=PATIENCE_S)
    down = BackendError("Down.", status=503, code="backend_unavailable", retry_after_s=PATIENCE_S)
    backend = ScriptedBackend(FakeBackend(), {"full": [full], "down": [down]})
    with serving(app_of(backend)) as url:
        for question in ("full", "down"):
            asked = chat(image_part(), question, stream=stream)
            answer = client(url, retries=1).chat.completions.create(**asked)
            said = [c.choices[0].delta.content or "" for c in answer] if stream else TEXT
            assert "".join(said) == TEXT
            first, second = backend.attempts[question]
            assert second - first >= PATIENCE_S


@pytest.mark.parametrize(
    ("error", "kind", "attempts"),
    [
        (RuntimeError("ours"), openai.InternalServerError, 3),
        # The service itself asks three replicas before it gives up.
        (BackendError("gone", code="replica_lost"), openai.InternalServerError, 3 * 3),
        (DeadlineExceededError("late"), openai.InternalServerError, 3),
        (OverloadedError("full", retry_after_s=0.01), openai.RateLimitError, 3),
        (ContextLengthError("long"), openai.BadRequestError, 1),
        (InvalidImageError("broken"), openai.BadRequestError, 1),
        (InvalidRequestError("no", status=404), openai.NotFoundError, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_tried_again_and_what_is_not(
    error: Exception, kind: type[openai.APIStatusError], attempts: int
) -> None:
    backend = ScriptedBackend(FakeBackend(), {QUESTION: [error] * 9})
    with serving(app_of(backend)) as url, pytest.raises(kind):
        impatient = client(url, retries=2)
        impatient._calculate_retry_timeout = lambda *_: 0.0  # type: ignore[method-assign]
        impatient.chat.completions.create(**chat())
    assert len(backend.attempts[QUESTION]) == attempts


def test_a_stream_that_has_begun_is_not_tried_again() -> None:
    backend = ScriptedBackend(FakeBackend(), {})
    with serving(app_of(backend)) as url, pytest.raises(openai.APIError, match="is gone"):
        list(
            client(url, retries=2).chat.completions.create(
                **chat(image_part(), "break", stream=True)
            )
        )
    assert len(backend.attempts["break"]) == 1


def test_raw_responses(served: str) -> None:
    completions = client(served).chat.completions
    raw = completions.with_raw_response.create(**chat(image_part(), image_part(), QUESTION))
    assert raw.headers["x-m3-scale"] == "144,144"
    assert raw.headers["x-request-id"] == raw.parse().model_extra["m3"]["request_id"]
    assert raw.parse()._request_id == raw.headers["x-request-id"]
    with completions.with_streaming_response.create(**chat(stream=True)) as streamed:
        assert streamed.headers["x-m3-reason"] == "predicted"
        assert list(streamed.iter_lines())[-2] == "data: [DONE]"
    with pytest.raises(openai.BadRequestError) as caught:
        completions.create(**chat(n=2))
    assert caught.value.response.headers["x-m3-request-id"] == caught.value.request_id


def test_options_reach_the_model() -> None:
    backend = FakeBackend()
    with serving(app_of(backend)) as url:
        client(url).chat.completions.create(
            **chat(n=1, seed=7, stop=["x", "y"], temperature=0.5, top_p=0.9, user="somebody"),
            max_completion_tokens=3,
            logprobs=True,
        )
    [request] = backend.requests
    assert request.sampling == Sampling(3, 0.5, 0.9, ("x", "y"), 7, 0)


def test_system_turns_and_several_images_reach_the_model() -> None:
    backend = FakeBackend()
    messages = [
        {"role": "system", "content": "Be brief."},
        user(image_part(), "What is this?"),
        {"role": "assistant", "content": "A square."},
        user(image_part(picture(size=(9, 9))), "And this?"),
    ]
    with serving(app_of(backend, FakePredictor())) as url:
        answer = client(url).chat.completions.create(model="m3-auto", messages=messages)
    [request] = backend.requests
    assert [turn.role for turn in request.turns] == ["system", "user", "assistant", "user"]
    assert [image.width for image in request.images] == [40, 9]
    assert len(answer.model_extra["m3"]["scale"]) == 2
