"""The project's log: one JSON object a line on standard error, which Ray collects.

Fields that every line has are `time`, `level`, `logger` and `message`; what else a line says stands
beside them, see docs/operations.md.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from router.request_log import Line
from router.trace import faults_log

OURS = ("m3_router", "m3_backend", "opentelemetry")
REQUEST = "request"  # the message of a line that has none: it is about one request


class JsonFormatter(logging.Formatter):
    """One record as one JSON object on one line.

    Args:
        quote_faults: also say what an exception said that a request met unforeseen. It may quote
            the request, so by default only its type and where it came from are told.
    """

    def __init__(self, *, quote_faults: bool = False) -> None:
        super().__init__()
        self._quote_faults = quote_faults

    def format(self, record: logging.LogRecord) -> str:
        said = record.msg if isinstance(record.msg, Line) else {"message": record.getMessage()}
        line = Line(
            time=datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            level=record.levelname.lower(),
            logger=record.name,
            message=REQUEST,
        )
        line |= said
        if record.exc_info and record.exc_info[1] is not None:
            quote = self._quote_faults or record.name != faults_log.name
            line["exception"] = told(record.exc_info[1], quote=quote)
        return str(line)


def told(error: BaseException, *, quote: bool) -> dict[str, Any]:
    """An exception, and those that it came from, without the values of any variable."""
    found: dict[str, Any] = {"type": type(error).__name__}
    if quote:
        found["text"] = str(error)
    found["frames"] = frames(error.__traceback__)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        found["cause"] = told(cause, quote=quote)
    return found


def frames(trace: TracebackType | None) -> list[str]:
    """Where it passed, the place it was raised at last."""
    return [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(trace)]


def configure(level: str) -> None:
    """Shows what the project's own loggers say from `level` on ("info": one line per request).

    Not what Pillow warns of: a caller's file decides on the text, thousands of lines of it, and
    Python keeps every one that differs.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(quote_faults=level == "debug"))
    for name in OURS:
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        logger.handlers = [handler]
        logger.propagate = False
