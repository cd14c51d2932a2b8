"""docs/operations.md says what the code does: every metric, key and field, none made up."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from deploy import reference
from deploy.config import Config, load
from deploy.logs import JsonFormatter
from m3_backend.messages import Finished, Started
from router import readiness, request_log, spans
from router.ports import Replicas
from router.stages import Stage
from router.telemetry import Telemetry
from router.trace import Trace

PAGE = reference.PAGE.read_text(encoding="utf-8")
API = (Path(reference.PAGE).parent / "api.md").read_text(encoding="utf-8")


def table(head: str) -> str:
    """The first column of the table that begins with `head`."""
    _, found, after = PAGE.partition(f"| {head} |")
    assert found, head
    return "\n".join(row.split("|")[1] for row in after.split("\n\n")[0].splitlines()[2:])


def words(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


def test_the_tables_of_metrics_and_keys_are_those_of_the_code() -> None:
    assert reference.filled(PAGE) == PAGE, "run `make docs`"


def test_every_key_and_every_metric_is_explained() -> None:
    assert [key.name for key in reference.all_keys() if not key.meaning] == []
    assert [metric.name for metric in reference.all_metrics() if not metric.meaning] == []


def leaves(content: object, prefix: str = "") -> Iterator[str]:
    """Dotted names in a configuration as it is in force."""
    if not isinstance(content, dict):
        yield prefix.removesuffix(".")
        return
    for name, value in content.items():
        yield from leaves(value, f"{prefix}{name}.")


def test_no_key_is_missing() -> None:
    """Not found by the walk that made the table, but in a configuration itself."""
    scaled = load("gpu.yaml")
    assert scaled.serve.replica.autoscaling is not None
    in_force = {*leaves(Config().model_dump()), *leaves(scaled.model_dump())}
    # Of a pool only what a replica does not have; the table says the rest by a reference.
    pooled = load("local.yaml", {"serve.pools": {"one": {"scales": [1]}}}).serve.pools["one"]
    of_pool = set(leaves(pooled.model_dump())) - set(leaves(Config().serve.replica.model_dump()))
    in_force |= {f"serve.pools.{reference.NAME}.{key}" for key in of_pool} | {"serve.pools"}
    assert {key.name for key in reference.all_keys()} == in_force


def test_defaults_are_those_in_force() -> None:
    plain = Config()
    shown = {key.name: key.default for key in reference.all_keys()}
    for name in ("serve.port", "router.max_regret", "router.request_timeout_s", "model.max_batch"):
        value: object = plain
        for part in name.split("."):
            assert isinstance(value, BaseModel)
            value = getattr(value, part)
        assert shown[name] == f"`{value}`"
    assert shown["cache.memory"] == "`256MiB`"
    assert Config.model_validate({"cache": {"memory": "256MiB"}}) == plain
    assert shown["serve.replica.autoscaling.max_replicas"] == "required"


def test_a_page_that_differs_is_noticed() -> None:
    wrong = PAGE.replace("| `serve.port` | `8000` |", "| `serve.port` | `8080` |")
    assert wrong != PAGE
    assert reference.filled(wrong) == PAGE
    with pytest.raises(ValueError, match="no place for"):
        reference.filled(PAGE.replace("<!-- keys -->", ""))


def test_metrics_are_what_is_exposed() -> None:
    """Nothing that a scrape shows is missing from the table."""
    exposed = {m.name for m in Telemetry().registry.collect()}
    named = {metric.name.removesuffix("_total") for metric in reference.all_metrics()}
    assert exposed <= named
    assert {"m3_redis_breaker_open", "m3_vision_encodings"} <= named


def test_metrics_named_anywhere_exist() -> None:
    known = {metric.name for metric in reference.all_metrics()}
    named = set(re.findall(r"\bm3_[a-z_]+\b", PAGE)) - {"m3_router", "m3_backend"}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} == known


def test_keys_named_anywhere_exist() -> None:
    known = {key.name for key in reference.all_keys()}
    sections = {name.rsplit(".", 1)[0] for name in known}
    dotted = re.findall(r"`((?:model|cache|records|router|serve|ray)\.[a-z_.]+)`", PAGE)
    assert len(dotted) > 40
    assert set(dotted) - {"ray.init"} <= known | sections


def test_codes_and_reasons_named_in_what_to_do_exist() -> None:
    rows = PAGE.partition("| sign |")[2].split("\n\n")[0].splitlines()[2:]
    codes = {c for row in rows for c in re.findall(r"\b[45]\d\d `([a-z_]+)`", row.split("|")[1])}
    reasons = {r for row in rows for r in re.findall(r"^\| reason `([a-z_]+)`", row)}
    assert len(codes) > 5
    assert all(f"| `{name}` |" in API for name in codes | reasons)


def test_fields_of_the_log() -> None:
    written = set(re.findall(r'"(\w+)"(?::|\] =)', inspect.getsource(request_log.line_of)))
    assert len(written) > 25
    assert words(table("request field")) == written
    source = inspect.getsource(JsonFormatter.format)
    always = set(re.findall(r"^ +(\w+)=", source, re.M)) | {"exception"}
    assert words(table("field")) == always


def test_components_of_readiness() -> None:
    told = readiness.components(
        Replicas(1, 1, "closed"),
        predictor="version",
        predictor_refused=False,
        limits_breaker_open=False,
        tightened_to=None,
        drift=None,
    )
    assert words(table("component")) == set(told)
    rows = PAGE.partition("| component |")[2].split("\n\n")[0]
    assert all(f"`{name}`" in rows for part in told.values() for name in part)


def test_spans_and_their_attributes() -> None:
    rows = PAGE.partition("| span |")[2].split("\n\n")[0]
    trace = Trace("id")
    trace.handed_s = trace.started_s = 0.0
    trace.started = Started((1,), 1, ("miss",), 0.0, 0.0, 0.0)
    trace.finished = Finished("stop", 1, 0.0, 0.0)
    assert {"routing", "image_fetch", *trace.phases()} <= words(rows)
    assert all(f"`.{s.value}`" in rows or f"`routing.{s.value}`" in rows for s in Stage)
    ours = set(re.findall(r'"(m3\.[a-z_]+)"', inspect.getsource(spans)))
    assert len(ours) > 8
    assert {name for name in words(rows) if name.startswith("m3.")} == ours
    assert f"{spans.QUEUED_SPANS:,}" in PAGE
