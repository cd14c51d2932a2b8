"""From anything that goes wrong to one answer in OpenAI's error shape.

Authorization header     ServiceError         invalid_api_key (401), operator_only (403)
service's load           ServiceError         overloaded (429), shutting_down (503)
caller's limits          RateLimitError       rate_limit_exceeded (429)
bytes → JSON             InvalidRequestError  invalid_json, request_too_large (413)
JSON → ChatRequest       InvalidRequestError  invalid_request, unsupported_parameter
parts → conversation     InvalidRequestError  no_image, empty_question, too_many_images,
                                              image_too_large, unsupported_image_format, …
remote images            InvalidRequestError  invalid_image_url, remote_image_forbidden, …
names and limits         InvalidRequestError  invalid_scale, conflicting_limits,
                                              model_not_found (404)
feedback                 ServiceError         request_unknown (404), feedback_conflict (409), …
predictor and replica    ServiceError         as they raise it, see m3_backend.errors
unknown path or method   HTTPException        not_found (404), method_not_allowed (405)
anything else            Exception            internal_error (500); details go to the log only
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException

from m3_backend.errors import LONGEST_QUOTE, InvalidRequestError, ServiceError, quoted


class Code(StrEnum):
    """The codes that the router itself produces; those of other rooms pass through."""

    INVALID_JSON = "invalid_json"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    CONFLICTING_LIMITS = "conflicting_limits"
    MODEL_NOT_FOUND = "model_not_found"
    NO_IMAGE = "no_image"
    TOO_MANY_IMAGES = "too_many_images"
    EMPTY_QUESTION = "empty_question"
    REMOTE_IMAGES_DISABLED = "remote_images_disabled"
    INVALID_IMAGE_URL = "invalid_image_url"
    REMOTE_IMAGE_FORBIDDEN = "remote_image_forbidden"
    REMOTE_IMAGE_UNAVAILABLE = "remote_image_unavailable"
    REMOTE_IMAGE_TIMEOUT = "remote_image_timeout"
    IMAGE_TOO_LARGE = "image_too_large"
    REQUEST_TOO_LARGE = "request_too_large"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    CLIENT_CLOSED_REQUEST = "client_closed_request"
    NOT_READY = "not_ready"
    INVALID_API_KEY = "invalid_api_key"
    OPERATOR_ONLY = "operator_only"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    SHUTTING_DOWN = "shutting_down"
    RECORDS_UNAVAILABLE = "records_unavailable"
    FEEDBACK_DISABLED = "feedback_disabled"
    REQUEST_UNKNOWN = "request_unknown"
    FEEDBACK_CONFLICT = "feedback_conflict"
    FEEDBACK_UNAVAILABLE = "feedback_unavailable"


class UnknownModelError(InvalidRequestError):
    default_status = 404
    default_code = Code.MODEL_NOT_FOUND

    def __init__(self, model: str, valid: Iterable[str]) -> None:
        super().__init__(
            f"There is no model {quoted(model)}; use one of {', '.join(valid)}.", param="model"
        )


class InvalidKeyError(ServiceError):
    """No API key, or one that is not known."""

    default_status = 401
    default_code = Code.INVALID_API_KEY


class OperatorOnlyError(ServiceError):
    """A key that may see its own requests only, at a path that shows everybody's."""

    default_status = 403
    default_code = Code.OPERATOR_ONLY

    def __init__(self) -> None:
        super().__init__("This path is for API keys with `operator: true`.")


class RateLimitError(ServiceError):
    """A limit of this very API key. Without `retry_after_s` the request will never fit."""

    default_status = 429
    default_code = Code.RATE_LIMIT_EXCEEDED


class ShuttingDownError(ServiceError):
    """The service finishes what it has, and takes nothing new."""

    default_status = 503
    default_code = Code.SHUTTING_DOWN

    def __init__(self) -> None:
        super().__init__("The service is being stopped; try again shortly.", retry_after_s=1.0)


class NotReadyError(ServiceError):
    """Requests would not be answered now, for the reason given. `/readyz` only."""

    default_status = 503
    default_code = Code.NOT_READY

    def __init__(self, cause: Exception, retry_after_s: float) -> None:
        said = cause.message if isinstance(cause, ServiceError) else "No replica answers in time."
        super().__init__(f"Not ready; ask again. {said}", retry_after_s=retry_after_s)


class ClientClosedRequestError(ServiceError):
    """The client went away. Nobody reads the answer; status and code are for logs and metrics."""

    default_status = 499
    default_code = Code.CLIENT_CLOSED_REQUEST


def error_body(error: ServiceError) -> dict[str, Any]:
    """The JSON that OpenAI's clients parse into their exceptions."""
    return {
        "error": {
            "message": error.message,
            "type": _type(error.status),
            "param": error.param,
            "code": str(error.code),
        }
    }


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"


def translate(error: Exception) -> ServiceError:
    """The error as the client may see it."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, HTTPException) and error.status_code == 404:
        return ServiceError("There is nothing at this path.", status=404, code=Code.NOT_FOUND)
    if isinstance(error, HTTPException) and error.status_code == 405:
        return ServiceError(
            "This path does not take this method.", status=405, code=Code.METHOD_NOT_ALLOWED
        )
    return ServiceError("Something went wrong on our side; the request id names it in the log.")


def from_validation(error: ValidationError, document: object) -> InvalidRequestError:
    """The first thing that is wrong with `document`, by the name its author gave it."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _param(first["loc"], document, missing=first["type"] == "missing")
    if first["type"] == "extra_forbidden":
        return InvalidRequestError(
            f"{quoted(param)} is not supported; leave it out.",
            code=Code.UNSUPPORTED_PARAMETER,
            param=param,
        )
    if first["type"] == "union_tag_invalid":  # input_audio, file, refusal, …
        return InvalidRequestError(
            "Content parts of this type are not supported; use 'text' and 'image_url'.",
            code=Code.UNSUPPORTED_PARAMETER,
            param=f"{param}.type",
        )
    if not param:
        return InvalidRequestError("The request body must be a JSON object.")
    # Pydantic names the Python class there.
    said = "Input should be an object" if first["type"] == "model_type" else first["msg"]
    return InvalidRequestError(f"{quoted(param)} is not valid: {said}.", param=param)


def _param(location: Sequence[int | str], document: object, *, missing: bool) -> str:
    """`messages[0].content[1].text` from pydantic's location, union branches left out."""
    path = ""
    for depth, step in enumerate(location):
        if isinstance(step, int) and isinstance(document, list):
            path, document = f"{path}[{step}]", document[step]
        elif isinstance(document, dict) and step in document:
            path, document = f"{path}.{str(step)[:LONGEST_QUOTE]}", document[step]
        elif missing and depth == len(location) - 1:
            path = f"{path}.{step}"
    return path.removeprefix(".")
