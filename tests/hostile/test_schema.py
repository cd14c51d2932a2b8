"""`/openapi.json` is honest: what it allows is understood, what it forbids is refused, and every
answer is of the kind that it promises. FUZZ_EXAMPLES=20000 (`make fuzz`) looks longer.
"""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.fakes import FakeBackend, FakePredictor
from tests.hostile.corpus import BATCH, CHAT, GOOD, ROUTE, Case
from tests.hostile.judging import faults
from tests.hostile.schemas import ANYTHING, Documents, is_json, spoiled
from tests.router.support import app_of, client_of, user

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
fuzzed = settings(
    max_examples=int(EXAMPLES or 150),
    derandomize=EXAMPLES is None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

APP = app_of(FakeBackend(), FakePredictor(), max_body_bytes=1_000_000)
API: dict[str, Any] = APP.openapi()
SCHEMAS = API["components"]["schemas"]
# Several fields that the schema allows one by one may be at odds; these say so.
AT_ODDS = {"max_completion_tokens", "stream_options", "top_logprobs", "messages"}
OF_THE_REQUEST = {"invalid_request", "unsupported_parameter", "invalid_json"}

QUESTION = user({"type": "image_url", "image_url": {"url": GOOD}}, "What is this?")
documents = Documents(
    SCHEMAS,
    {
        "messages": st.builds(lambda: [copy.deepcopy(QUESTION)]),
        "model": st.sampled_from(["m3-auto", "m3-1", "m3-576"]),
        "url": st.just(GOOD),
        "role": st.just("user"),
        "scale": st.sampled_from([1, 36, 576]),
        "min_scale": st.sampled_from([1, 36]),
        "max_scale": st.sampled_from([36, 576]),
    },
)


def schema_at(reference: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"#/components/schemas/{reference}", "components": API["components"]}
    )


CHAT_REQUEST, BATCH_REQUEST = schema_at("ChatRequest"), schema_at("RouteBatch")


async def post(path: str, document: Any) -> httpx.Response:
    body = json.dumps(document).encode()
    async with client_of(APP) as client:
        response = await client.post(path, content=body)
    assert faults(Case("fuzzed", (body,), path), response) == []
    promised(path, "post", response)
    return response


def promised(path: str, method: str, response: httpx.Response) -> None:
    """The response is one that the document has for this operation."""
    declared = API["paths"][path][method]["responses"]
    status = str(response.status_code)
    content = (declared.get(status) or declared[f"{status[0]}XX"])["content"]
    kind = response.headers["content-type"].partition(";")[0]
    if kind == "application/json":
        schema = content[kind]["schema"] | {"components": API["components"]}
        Draft202012Validator(schema).validate(response.json())
    else:
        assert kind in content


@pytest.mark.parametrize("path", [CHAT, ROUTE])
@fuzzed
@given(document=documents.named("ChatRequest"))
async def test_what_the_schema_allows_is_understood(path: str, document: Any) -> None:
    CHAT_REQUEST.validate(document)
    response = await post(path, document)
    if response.status_code != 200:
        error = response.json()["error"]
        outside = error["code"] == "invalid_request" and "Only user messages" in error["message"]
        assert error["code"] not in OF_THE_REQUEST or error["param"] in AT_ODDS or outside, error


@pytest.mark.parametrize("path", [CHAT, ROUTE])
@fuzzed
@given(document=spoiled(documents.named("ChatRequest").map(copy.deepcopy)))
async def test_what_the_schema_forbids_is_refused(path: str, document: Any) -> None:
    response = await post(path, document)
    if not is_json(document) or not CHAT_REQUEST.is_valid(document):
        assert response.status_code == 400
        assert response.json()["error"]["code"] in OF_THE_REQUEST


@fuzzed
@given(
    document=spoiled(documents.named("RouteBatch").map(copy.deepcopy))
    | documents.named("RouteBatch")
)
async def test_batches(document: Any) -> None:
    response = await post(BATCH, document)
    if not is_json(document):
        assert response.status_code == 400
    elif response.status_code == 200:
        for entry, each in zip(response.json()["data"], document["requests"], strict=True):
            assert "error" in entry or CHAT_REQUEST.is_valid(each)
    else:  # as a whole; what is wrong with one request is told in its place
        assert not BATCH_REQUEST.is_valid(document)


@pytest.mark.parametrize("path", [CHAT, ROUTE, BATCH])
@fuzzed
@given(document=ANYTHING)
async def test_anything_at_all(path: str, document: Any) -> None:
    assert (await post(path, document)).status_code == 400


@pytest.mark.parametrize("path", [path for path in API["paths"] if "get" in API["paths"][path]])
async def test_what_is_read_is_as_promised(path: str) -> None:
    async with client_of(APP) as client:
        for name in ("m3-auto", "nobody"):
            response = await client.get(path.replace("{model}", name))
            promised(path, "get", response)


async def test_a_stream_is_as_promised() -> None:
    document = {"model": "m3-1", "messages": [QUESTION], "stream": True}
    assert (await post(CHAT, document)).headers["content-type"].startswith("text/event-stream")


def test_it_says_what_errors_look_like() -> None:
    for path, operations in API["paths"].items():
        for operation in operations.values():
            assert {"4XX", "5XX"} <= operation["responses"].keys(), path
            assert "422" not in operation["responses"]
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)
