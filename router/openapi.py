"""The OpenAPI document. FastAPI does not know the request bodies: the service reads them itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from router.schemas import (
    IGNORED,
    IGNORED_OF_PART,
    NEUTRAL_VALUES,
    NEUTRAL_VALUES_OF_MESSAGE,
    NEUTRAL_VALUES_OF_STREAM,
    ChatRequest,
    FeedbackRequest,
    RouteBatch,
)


def _body_of(schema: str) -> dict[str, Any]:
    """A request body for the OpenAPI document."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"requestBody": {"required": True, "content": content}}


CHAT_BODY, BATCH_BODY = _body_of("ChatRequest"), _body_of("RouteBatch")
FEEDBACK_BODY = _body_of("FeedbackRequest")


def openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document plus the request bodies."""
    document = get_openapi(title=app.title, version="1", routes=app.routes)
    _, schemas = models_json_schema(
        [(kind, "validation") for kind in (ChatRequest, RouteBatch, FeedbackRequest)],
        ref_template="#/components/schemas/{model}",
    )
    requests = schemas["$defs"]["RouteBatch"]["properties"]["requests"]
    requests["items"] = {"$ref": "#/components/schemas/ChatRequest"}
    _add_options_that_ask_for_nothing(schemas["$defs"])
    document["components"]["schemas"] |= schemas["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which nobody gets
        document["components"]["schemas"].pop(name, None)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{}, {"key": []}]  # only where keys are configured
    return document


def _add_options_that_ask_for_nothing(schemas: dict[str, Any]) -> None:
    """OpenAI's options that are accepted at some values only, or whatever they say."""
    for schema, values, ignored in (
        ("ChatRequest", NEUTRAL_VALUES, IGNORED),
        ("Message", NEUTRAL_VALUES_OF_MESSAGE, frozenset[str]()),
        ("StreamOptions", NEUTRAL_VALUES_OF_STREAM, frozenset[str]()),
        ("TextPart", {}, IGNORED_OF_PART),
        ("ImagePart", {}, IGNORED_OF_PART),
    ):
        properties = schemas[schema]["properties"]
        properties |= {name: {"enum": list(accepted)} for name, accepted in values.items()}
        properties |= {name: {"description": "Ignored."} for name in sorted(ignored)}
