"""Where the project's log lines go in a replica: to standard error, which Ray collects."""

from __future__ import annotations

import logging

OURS = ("m3_router", "m3_backend")
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure(level: str) -> None:
    """Shows what the project's own loggers say from `level` on ("info": one line per request)."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    for name in OURS:
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        logger.handlers = [handler]
        logger.propagate = False
