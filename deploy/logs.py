"""Where the project's log lines go in a replica: to standard error, which Ray collects."""

from __future__ import annotations

import logging
import warnings

OURS = ("m3_router", "m3_backend")
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure(level: str) -> None:
    """Shows what the project's own loggers say from `level` on ("info": one line per request).

    Not what Pillow warns of: a caller's file decides on the text, thousands of lines of it, and
    Python keeps every one that differs.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    for name in OURS:
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        logger.handlers = [handler]
        logger.propagate = False
