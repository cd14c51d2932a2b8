from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from io import BytesIO

import pytest
from PIL import Image

from deploy import logs
from m3_backend.image_header import read_header


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in logs.OURS]
    before = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
    with warnings.catch_warnings():
        yield
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate


def cut_short() -> bytes:
    """A JPEG whose EXIF promises a value that is not there."""
    exif, file = Image.Exif(), BytesIO()
    exif[0x010E] = "a long description"
    block = exif.tobytes()[:-10]
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=block)
    return file.getvalue()


def test_files_write_nothing_into_the_log() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        read_header(cut_short())
        assert heard  # it is a file that Pillow has something to say about
        heard.clear()
        logs.configure("info")
        read_header(cut_short())
        assert not heard


def test_our_own_loggers_are_heard(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logging.getLogger("m3_router.requests").info("a request")
    logging.getLogger("m3_backend.engine").debug("a detail")
    written = capsys.readouterr().err
    assert written.endswith("INFO m3_router.requests a request\n")
    assert "a detail" not in written
