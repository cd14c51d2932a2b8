"""`m3-router report`: the page's figures as one file, those of the records to the last token."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from benchmarks.synthetic_records import Plan, labels_of, tables
from deploy.cli import app
from deploy.predictors import PACKAGED
from predictor.artifact import read_manifest
from predictor.record_store import LABELS, REQUESTS, RecordStore
from router.dashboard.looks import Known, Looked, Period
from router.dashboard.report import Provenance, figures, render
from router.dashboard.rollups import RollUps
from router.dashboard.views import Price, Views

NOW = 1_795_651_200.0  # 2026-11-26, a full hour
PERIOD = ("--since", "2026-11-24", "--until", "2026-11-25T12:00")
ATTACK = '<script>alert(1)</script><img src=x onerror="alert(2)">'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of records."""
    root: Path = tmp_path_factory.mktemp("records")
    store = RecordStore(str(root))
    for table in tables(Plan(3000, 3.0, NOW, per_file=1000)):
        store.append(REQUESTS, table)
        store.append(LABELS, labels_of(table))
    return root


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["report", *arguments], env={"COLUMNS": "200"})


def asked(folder: Path, sql: str) -> Any:
    """Of the answers of the period, in the files themselves."""
    files = f"read_parquet('{folder}/requests/*/*.parquet')"
    where = "\"at\" >= TIMESTAMPTZ '2026-11-24 00:00Z' AND \"at\" < TIMESTAMPTZ '2026-11-25 12:00Z'"
    with duckdb.connect() as database:
        query = f"WITH r AS (SELECT * FROM {files} WHERE {where}) {sql}"
        return database.execute(query).fetchall()


def test_its_costs_agree_with_the_records_to_the_last_token(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    price = "dashboard.price_per_replica_hour=2.5"
    done = run(*PERIOD, "--records", str(folder), "--out", str(out), "--set", price)
    assert done.exit_code == 0, done.output
    [row] = asked(
        folder,
        "SELECT count(*), sum(image_tokens), sum(finest_tokens), sum(prompt_tokens),"
        " sum(completion_tokens), sum(encode_ms + prefill_ms + decode_ms)"
        " FROM r WHERE code = 'ok'",
    )
    answers, image, finest, prompt, completion, spent_ms = row
    html = out.read_text()
    assert f"{image:,} visual tokens in {answers:,} answers, {finest:,} had all been" in html
    assert f"{prompt:,} tokens in prompts with text, {completion:,} written" in html
    assert f"What {answers:,} answers took" in html
    told = json.loads(run(*PERIOD, "--records", str(folder), "--json", "--set", price).output)
    assert told["cost"]["totals"]["image_tokens"] == image
    money = spent_ms / answers / 3_600_000 * 2.5 * 1000
    assert told["cost"]["policies"][0]["money"] == pytest.approx(money, rel=1e-6)
    assert f"{money:,.4g} USD" in html
    [(requests,)] = asked(folder, "SELECT count(*) FROM r")
    assert f"{requests:,} requests in the records" in html


def test_what_a_fixed_scale_would_take_is_estimated_as_the_router_did(folder: Path) -> None:
    told = json.loads(run(*PERIOD, "--records", str(folder), "--json").output)
    router, *fixed = told["cost"]["policies"]
    more = fixed[-1]["tokens_per_request"] - router["tokens_per_request"]
    # The records were made with 0.055 ms a token.
    assert fixed[-1]["replica_ms"] - router["replica_ms"] == pytest.approx(0.055 * more, rel=0.01)
    assert [row["tokens_per_picture"] for row in fixed] == [1, 9, 36, 144, 576]


class Page(HTMLParser):
    """What of a page could ask for something or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.urls: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("src", "href", "xlink:href") and not str(value).startswith("#"):
                self.urls.append(str(value))


def test_it_is_one_file_that_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    """Whatever stands in the records."""
    [table] = tables(Plan(400, 0.2, NOW))
    for name in ("key", "served", "predictor"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array([ATTACK] * len(table)))
    store = RecordStore(str(tmp_path))
    store.append(REQUESTS, table)
    store.append(LABELS, labels_of(table))
    rollups = RollUps(str(tmp_path), clock=lambda: NOW)
    rollups.refresh()
    known = Known(0.05, 0.05, ((0.05, 0.1),), ATTACK, "agreement")
    period = Period.of_hours(NOW - 20_000, NOW)
    looked = Looked("cost", key=ATTACK, served=ATTACK, known=known, period=period)
    shown = figures(Views(rollups, Price(1.0), lambda: NOW), looked)
    assert shown["cost"]["totals"]["answered"] > 100
    html = render(shown, looked, Provenance(ATTACK, NOW, "1"))
    page = Page(html)
    assert page.urls == []
    assert page.tags.isdisjoint({"script", "img", "iframe", "object", "link", "form"})
    assert not [name for name in page.attributes if name.startswith("on")]
    assert re.findall(r"url\((?!#)", html) == []
    assert "&lt;script&gt;" in html


def test_a_period_without_requests_says_so(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    done = run("--since", "2020-01-01", "--until", "2020-01-02", "--records", str(folder),
               "--out", str(out))  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "There is no request in this time." in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--since", "yesterday"), "2026-11-25T12:00"),
        (("--since", "2026-11-25", "--until", "2026-11-24"), "ends before it begins"),
        (("--set", "records.store=none"), "keeps no records"),
    ],
)
def test_what_cannot_be_reported_is_said(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_other_bounds_are_those_of_the_predictor_that_decided(tmp_path: Path) -> None:
    shipped = PACKAGED / "m3-tiny"
    version = read_manifest(shipped)["sha256"][:16]
    [table] = tables(Plan(300, 0.1, NOW))
    at = table.schema.get_field_index("predictor")
    table = table.set_column(at, "predictor", pa.array([version] * len(table)))
    RecordStore(str(tmp_path)).append(REQUESTS, table)
    given = ("--since", "2026-11-25", "--until", "2026-11-27", "--records", str(tmp_path))
    told = json.loads(run(*given, "--json", "--set", "predictor=" + str(shipped)).output)
    assert told["quality"]["predictor"] == version
    assert told["quality"]["target"] == read_manifest(shipped)["content"]["target"]
    assert [row["bound"] for row in told["frontier"]["bounds"]][-1] == 0.3
    other = json.loads(run(*given, "--json", "--set", "predictor=none").output)
    assert other["frontier"]["bounds"] == []


def test_without_a_known_token_price_fixed_scales_have_no_replica_time(folder: Path) -> None:
    rollups = RollUps(str(folder), clock=lambda: NOW)
    rollups.refresh()
    period = Period.of_hours(NOW - 86_400, NOW)
    looked = Looked("cost", known=replace(Known(), prefill_token_ms=None), period=period)
    shown = figures(Views(rollups, Price(1.0), lambda: NOW), looked)
    assert shown["cost"]["policies"][0]["replica_ms"] > 0
    assert {row["replica_ms"] for row in shown["cost"]["policies"][1:]} == {None}
    assert "which these records do not tell" in render(shown, looked, Provenance("x", NOW, "1"))
