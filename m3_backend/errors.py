"""Every error a client can see, as one tree.

A ServiceError carries what the API needs to answer: the HTTP status, a stable machine-readable code
(also the label of the error metric) and a message that says what to do. It survives pickling,
because Ray carries it between processes. Foreign exceptions are translated where they appear, once.

    ServiceError
    ├── InvalidRequestError    400  the caller can mend it
    │   └── InvalidScaleError  400  invalid_scale
    ├── InvalidImageError      400  invalid_image (never repeats what a decoder said)
    ├── ContextLengthError     400  context_length_exceeded
    ├── OverloadedError        429  overloaded, with Retry-After
    ├── DeadlineExceededError  504  deadline_exceeded
    ├── CheckpointError        500  a model folder that cannot be opened; no replica starts with it
    └── BackendError           502  backend_error
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LONGEST_QUOTE = 80


def quoted(value: object) -> str:
    """What somebody sent, as an error message may repeat it: printable, and never long."""
    shown = repr(value)
    return shown if len(shown) <= LONGEST_QUOTE else f"{shown[:LONGEST_QUOTE]}…"


class ServiceError(Exception):
    """An error with a place in the API.

    Args:
        message: what is wrong and what to do about it, for the caller's eyes.
        code: stable identifier; never changes once released.
        status: HTTP status.
        param: the request field at fault, in OpenAI's dotted form, if there is one.
        retry_after_s: seconds after which a retry makes sense, sent as `Retry-After`.
    """

    default_status = 500
    default_code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.status = status or self.default_status
        self.param = param
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.__dict__))


def _rebuild(kind: type[ServiceError], state: dict[str, Any]) -> ServiceError:
    error = kind.__new__(kind)
    Exception.__init__(error, state["message"])
    error.__dict__.update(state)
    return error


class InvalidRequestError(ServiceError):
    default_status = 400
    default_code = "invalid_request"


class InvalidScaleError(InvalidRequestError):
    default_code = "invalid_scale"

    def __init__(self, scale: object, valid: Iterable[int], *, param: str | None = None) -> None:
        names = ", ".join(str(s) for s in valid)
        super().__init__(
            f"{quoted(scale)} is not a token scale of this model; use one of {names}.", param=param
        )


class InvalidImageError(ServiceError):
    default_status = 400
    default_code = "invalid_image"


class ContextLengthError(ServiceError):
    default_status = 400
    default_code = "context_length_exceeded"


class OverloadedError(ServiceError):
    default_status = 429
    default_code = "overloaded"


class DeadlineExceededError(ServiceError):
    default_status = 504
    default_code = "deadline_exceeded"


class CheckpointError(ServiceError):
    default_code = "invalid_checkpoint"


class BackendError(ServiceError):
    default_status = 502
    default_code = "backend_error"


class FeaturesGoneError(Exception):
    """No client sees it: an image's features are in no cache any more; the image is not kept."""


class NotNowError(Exception):
    """No client sees it: somebody wants an answer, and what this was may be tried again."""
