"""docs/api.md says what the code does: nothing is missing, nothing is made up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

from fastapi.routing import APIRoute

from m3_backend import errors as backend_errors
from m3_backend.errors import CheckpointError, ServiceError
from m3_backend.image_header import MOST_BLOCKS, MOST_SCANS
from router.access import Caller
from router.config import MIB, AccessConfig, LoadConfig, RemoteImageConfig, RouterConfig
from router.errors import Code
from router.explain import REQUEST_ID_HEADER
from router.limits import Kind, Quota, Standing
from router.policy import Note, Reason
from router.schemas import (
    IGNORED,
    IGNORED_OF_PART,
    MOST_COMMAS,
    MOST_ENTRIES,
    MOST_MESSAGES,
    MOST_PARTS,
    NEUTRAL_VALUES,
    NEUTRAL_VALUES_OF_STREAM,
    ChatRequest,
    Explanation,
    M3Options,
    ScaleOption,
    Timings,
)
from tests.fakes import FakeBackend
from tests.router.support import app_of

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def table(head: str) -> set[str]:
    """Every `word` in the first column of the table that begins with `head`."""
    _, _, after = DOCS.partition(f"| {head} |")
    rows = after.split("\n\n")[0].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def sources(*folders: str) -> str:
    files = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def test_error_codes() -> None:
    kinds = [k for k in vars(backend_errors).values() if isinstance(k, type)]
    defaults = {k.default_code for k in kinds if issubclass(k, ServiceError)}
    defaults.remove(
        CheckpointError.default_code
    )  # stops a replica from starting; no client sees it
    handle = (ROOT / "deploy" / "backend.py").read_text(encoding="utf-8")
    literal = set(re.findall(r'code="(\w+)"', handle + sources("router", "m3_backend")))
    assert table("code") == {code.value for code in Code} | defaults | literal


def test_headers() -> None:
    produced = set(re.findall(r'"(x-m3-[a-z-]+)"', sources("router")))
    assert REQUEST_ID_HEADER in produced
    assert table("header") == produced


def test_decision_fields() -> None:
    rows = DOCS.partition("| header |")[2].split("\n\n")[0].splitlines()[2:]
    fields = {row.split("|")[2].strip(" `") for row in rows}
    assert fields == set(Explanation.model_fields)
    assert all(f"`{name}`" in DOCS for name in Timings.model_fields)


def test_request_fields() -> None:
    named = table("field")
    assert {name.split(".")[0] for name in named} - {"image_url"} == (set(ChatRequest.model_fields))
    assert table("field of `m3`") == set(M3Options.model_fields)


def test_bounds_of_a_body_and_of_pictures() -> None:
    text = " ".join(DOCS.split())
    for number, what in (
        (MOST_MESSAGES, "messages"),
        (MOST_PARTS, "parts in each"),
        (MOST_ENTRIES, "entries in an object"),
        (MOST_COMMAS, "values or commas"),
        (MOST_SCANS, "scans"),
        (MOST_BLOCKS, "blocks"),
        (RouterConfig().max_body_bytes // MIB, "MiB"),
    ):
        assert f"{number:,} {what}" in text


def test_openais_other_options() -> None:
    """All are named, with the values that are accepted."""
    request = DOCS.partition("## Request")[2].partition("| field |")[0]
    text = " ".join(request.split())
    for name, values in [
        *NEUTRAL_VALUES.items(),
        *((f"stream_options.{name}", v) for name, v in NEUTRAL_VALUES_OF_STREAM.items()),
    ]:
        shown = [json.dumps(value) for value in values if value is not None]
        assert (f"`{name}: {shown[0]}`" if shown else f"`{name}`") in text
        assert all(f"`{value}`" in text for value in shown[1:])
    assert all(f"`{name}`" in text for name in IGNORED | IGNORED_OF_PART)


def test_settings_of_the_router() -> None:
    """docs/operations.md has every key of these sections."""
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    for heading, section in (
        ("## Who may use it", AccessConfig),
        ("## Images from URLs", RemoteImageConfig),
        ("## Load", LoadConfig),
    ):
        rows = operations.partition(heading)[2].partition("| key |")[2].split("\n\n")[0]
        named = {
            n for row in rows.splitlines()[2:] for n in re.findall(r"`(\w+)`", row.split("|")[1])
        }
        assert named == set(section.model_fields)


def test_rate_limit_headers() -> None:
    quotas = [Standing(Quota(kind, 1), 1, 0.0) for kind in get_args(Kind)]
    caller = Caller()
    caller._standings = tuple(quotas)
    for name in caller.headers():
        assert name in DOCS or name.replace("tokens", "requests") in DOCS


def test_route_fields() -> None:
    assert all(f"`{name}`" in DOCS for name in ScaleOption.model_fields)


def test_reasons_and_notes() -> None:
    assert table("reason") == {reason.value for reason in Reason}
    assert all(f"`{note.value}`" in DOCS for note in Note)


def test_endpoints() -> None:
    routes = [route for route in app_of(FakeBackend()).routes if isinstance(route, APIRoute)]
    written = {f"{method} {route.path}" for route in routes for method in route.methods or ()}
    assert table("method and path") == written | {"GET /openapi.json"}
