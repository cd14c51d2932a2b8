from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import completion_create_params
from pydantic import ValidationError

from m3_backend.errors import ServiceError
from m3_backend.messages import Sampling
from router.schemas import (
    IGNORED,
    IGNORED_OF_PART,
    NEUTRAL_VALUES,
    NEUTRAL_VALUES_OF_MESSAGE,
    NEUTRAL_VALUES_OF_STREAM,
    ChatRequest,
    parse_chat_request,
)
from tests.router.support import chat, user


def parse(**options: Any) -> ChatRequest:
    return parse_chat_request(json.dumps(chat(**options)).encode())


def refusal(body: bytes) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        parse_chat_request(body)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff{}", b'{"model": NaN}', b'{"model": "\\ud800"}', b"[" * 100_000]
)
def test_invalid_json(body: bytes) -> None:
    assert refusal(body).code == "invalid_json"


MESSAGE = {"role": "user", "content": "x"}
PART = {"type": "text", "text": "x"}
MUCH: dict[str, tuple[Any, str | None]] = {
    "values": ({"requests": [0] * 60_000}, None),
    "messages": ({"messages": [MESSAGE] * 1025}, "messages"),
    "parts": ({"messages": [MESSAGE | {"content": [PART] * 1025}]}, "messages[0].content"),
    "options": ({f"option-{n}": 1 for n in range(65)}, None),
    "own options": ({"m3": {f"option-{n}": 1 for n in range(65)}}, None),
    "keys of a part": (
        {"messages": [MESSAGE | {"content": [dict.fromkeys(map(str, range(65)))]}]},
        None,
    ),
}


@pytest.mark.parametrize("case", MUCH)
def test_what_would_take_long_to_check_is_refused(case: str) -> None:
    """13 s for 18 MB of wrong messages, during which nothing else in the process moved."""
    options, param = MUCH[case]
    error = refusal(json.dumps(chat() | options).encode())
    assert (error.code, error.param) == ("invalid_request", param)


def test_of_many_wrong_things_the_first_is_looked_for_and_no_other() -> None:
    wrong = [{"role": "robot", "content": 7}] * 1000
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(chat() | {"messages": [*wrong[:2], MESSAGE, *wrong]})
    assert caught.value.error_count() == 2  # both of one message


def test_long_and_many_are_fine_within_reason() -> None:
    turns = [MESSAGE, {"role": "assistant", "content": "y"}] * 400
    text = "one, two, three " * 10_000
    parse(messages=[*turns, user(*[PART] * 100, text)], metadata=dict.fromkeys(map(str, range(99))))


@pytest.mark.parametrize(
    "options",
    [
        {"m3": {"x" * 10_000: 1}},
        {"x" * 10_000: 1},
        {"messages": [MESSAGE | {"x" * 10_000: 1}]},
    ],
)
def test_what_is_repeated_of_a_request_is_short(options: dict[str, Any]) -> None:
    error = refusal(json.dumps(chat() | options).encode())
    assert error.code == "unsupported_parameter"
    assert len(error.message) < 300
    assert len(error.param or "") < 300


@pytest.mark.parametrize("body", [b"null", b"[]", b'"text"', b"7"])
def test_json_that_is_no_object(body: bytes) -> None:
    error = refusal(body)
    assert (error.code, error.param) == ("invalid_request", None)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].image_url",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]}
                ]
            },
            "messages[0].content[0].image_url.url",
        ),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_completion_tokens": 2**31}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"stop": ""}, "stop"),
        ({"stop": list("abcde")}, "stop"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": {}}, "stop"),
        ({"messages": [{"role": "user", "content": {}}]}, "messages[0].content"),
        ({"m3": None}, "m3"),
        ({"stream": True, "stream_options": [1]}, "stream_options"),
        ({"seed": 2**63}, "seed"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"m3": {"max_regret": 1.5}}, "m3.max_regret"),
        ({"m3": {"latency_budget_ms": 0}}, "m3.latency_budget_ms"),
        ({"m3": {"scale": "36"}}, "m3.scale"),
        ({"m3": {"priority": "urgent"}}, "m3.priority"),
        ({"m3": {"timeout_ms": 0}}, "m3.timeout_ms"),
        ({"m3": {"cache_salt": "x" * 257}}, "m3.cache_salt"),
    ],
)
def test_the_field_at_fault_is_named(options: dict[str, Any], param: str) -> None:
    error = refusal(json.dumps(chat() | options).encode())
    assert (error.code, error.param) == ("invalid_request", param)
    assert param in error.message
    assert "M3Options" not in error.message  # nor any other name of our code
    assert "StreamOptions" not in error.message


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"no_such_option": None}, "no_such_option"),
        ({"n": True}, "n"),
        ({"store": True}, "store"),
        ({"store": 0}, "store"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}
                ]
            },
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"m3": {"scales": [1]}}, "m3.scales"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "y"}]}]},
            "messages[0].tool_calls",
        ),
    ],
)
def test_what_would_not_be_honoured_is_refused_by_name(options: dict[str, Any], param: str) -> None:
    error = refusal(json.dumps(chat() | options).encode())
    assert (error.code, error.param) == ("unsupported_parameter", param)


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in NEUTRAL_VALUES.items() for v in values]
)
def test_options_that_ask_for_nothing_are_accepted(name: str, value: object) -> None:
    assert parse(**{name: value}) == parse()


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in NEUTRAL_VALUES_OF_MESSAGE.items() for v in values]
)
def test_so_are_those_of_a_message(name: str, value: object) -> None:
    message = user("x")
    assert parse(messages=[message | {name: value}]) == parse(messages=[message])


@pytest.mark.parametrize("value", NEUTRAL_VALUES_OF_STREAM["include_obfuscation"])
def test_so_are_those_of_a_stream(value: object) -> None:
    options = {"include_usage": True}
    asked = parse(stream=True, stream_options=options | {"include_obfuscation": value})
    assert asked == parse(stream=True, stream_options=options)


@pytest.mark.parametrize("name", sorted(IGNORED))
@pytest.mark.parametrize("value", [None, True, "text", {"a": "b"}])
def test_options_that_change_no_answer_are_accepted_whatever_they_say(
    name: str, value: object
) -> None:
    assert parse(**{name: value}) == parse()


@pytest.mark.parametrize("name", sorted(IGNORED_OF_PART))
def test_so_are_those_of_a_part(name: str) -> None:
    part = {"type": "text", "text": "x"}
    assert parse(messages=[user(part | {name: {"mode": "explicit"}})]) == parse(
        messages=[user(part)]
    )


OPENAI = {*completion_create_params.CompletionCreateParamsBase.__annotations__, "stream"}


def test_every_option_of_the_official_client_is_known() -> None:
    """As it is in the installed version: a new one of OpenAI's has to be decided on here."""
    fields = set(ChatRequest.model_fields)
    assert fields - OPENAI == {"m3"}
    assert not fields & NEUTRAL_VALUES.keys()
    assert fields - {"m3"} | NEUTRAL_VALUES.keys() | IGNORED == OPENAI


@pytest.mark.parametrize("name", sorted(NEUTRAL_VALUES))
def test_what_is_not_supported_is_refused_by_name_and_null_is_not(name: str) -> None:
    assert parse(**{name: None}) == parse()
    error = refusal(json.dumps(chat() | {name: "another value"}).encode())
    assert (error.code, error.param) == ("unsupported_parameter", name)


def test_sampling_is_greedy_unless_asked_otherwise() -> None:
    assert parse().sampling(256) == Sampling(max_tokens=256)
    asked = parse(
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        stop="\n",
        seed=3,
        logprobs=True,
        top_logprobs=2,
    )
    assert asked.sampling(256) == Sampling(7, 0.5, 0.9, ("\n",), 3, 2)
    assert parse(stop=["a", "b"], logprobs=True).sampling(1) == Sampling(
        max_tokens=1, stop=("a", "b"), top_logprobs=0
    )
