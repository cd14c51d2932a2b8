from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO

import pytest
from PIL import Image

from deploy import logs
from m3_backend.image_header import read_header
from router.request_log import Line, requests_log
from router.trace import faults_log


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
    logging.getLogger("m3_router.deploy").info("a %s", "word")
    logging.getLogger("m3_backend.engine").debug("a detail")
    [line] = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert datetime.fromisoformat(said.pop("time")).tzinfo == UTC
    assert said == {"level": "info", "logger": "m3_router.deploy", "message": "a word"}


def test_a_line_about_a_request_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    requests_log.info(Line(request_id="id", scale=[36]))
    said = json.loads(capsys.readouterr().err)
    assert (said["message"], said["request_id"], said["scale"]) == ("request", "id", [36])


def fault() -> None:
    try:
        try:
            raise KeyError("what she asked")
        except KeyError as error:
            raise ValueError("what he asked") from error
    except ValueError as error:
        faults_log.error("request %s failed", "id", exc_info=error)


def test_a_fault_says_where_and_not_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    fault()
    written = capsys.readouterr().err
    said = json.loads(written)["exception"]
    assert "asked" not in written
    assert (said["type"], said["cause"]["type"]) == ("ValueError", "KeyError")
    assert said["frames"][-1].startswith(__file__)
    assert said["frames"][-1].endswith(" fault")


def test_a_fault_is_quoted_while_somebody_debugs(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug")
    fault()
    assert json.loads(capsys.readouterr().err)["exception"]["text"] == "what he asked"


def test_other_exceptions_say_what_they_are_about(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    try:
        raise RuntimeError("the device is lost")
    except RuntimeError:
        logging.getLogger("m3_backend.engine").exception("a step failed")
    said = json.loads(capsys.readouterr().err)
    assert said["exception"]["text"] == "the device is lost"
