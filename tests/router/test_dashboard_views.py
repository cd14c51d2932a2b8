"""What the views show is what the records say: to the last token, and to a bin for durations."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import httpx
import numpy as np
import pytest

from benchmarks.synthetic_records import Plan, tables
from m3_backend.errors import InvalidRequestError
from predictor.record_store import REQUESTS, RecordStore
from predictor.selection import select
from router.auth import digest_of_key
from router.config import RouterConfig
from router.dashboard import page
from router.dashboard.looks import Known, Looked, read_look
from router.dashboard.rollups import BINS_PER_OCTAVE, RollUps
from router.dashboard.views import Price, Views, quantile
from router.http import build_app
from router.service import RoutingService
from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import client_of

NOW = 1_795_651_200.0  # a full hour
RECORDS = 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of records, in files of 500."""
    root: Path = tmp_path_factory.mktemp("records")
    store = RecordStore(str(root))
    for table in tables(Plan(RECORDS, 2.0, NOW, per_file=500)):
        store.append(REQUESTS, table)
    return root


@pytest.fixture(scope="module")
def rollups(folder: Path) -> RollUps:
    rollups = RollUps(str(folder), clock=lambda: NOW)
    assert rollups.refresh() == RECORDS
    return rollups


@pytest.fixture(scope="module")
def views(rollups: RollUps) -> Views:
    return Views(rollups, Price(3.6, "EUR"), lambda: NOW - 1)


def asked(folder: Path, sql: str) -> Any:
    """The same asked of the files themselves; `r` are the records of the last day."""
    files = f"read_parquet('{folder}/requests/*/*.parquet')"
    since = f"to_timestamp({NOW - 86_400})"
    query = f'WITH r AS (SELECT * FROM {files} WHERE "at" >= {since}) {sql}'
    with duckdb.connect() as database:
        return database.execute(query).fetchall()


def test_totals_agree_with_the_records_to_the_last_token(folder: Path, views: Views) -> None:
    totals = views.show(Looked("cost", "24h"))["totals"]
    names = ("image_tokens", "finest_tokens", "prompt_tokens", "completion_tokens")
    sums = ", ".join(f"sum({name})" for name in names)
    [row] = asked(folder, f"SELECT count(*), {sums} FROM r WHERE code = 'ok'")
    assert (totals["answered"], *(totals[name] for name in names)) == row
    [(requests, refused)] = asked(
        folder, "SELECT count(*), count(*) FILTER (code = 'overloaded') FROM r"
    )
    assert (totals["requests"], totals["refused"]) == (requests, refused)
    assert refused > 0
    [(spent,)] = asked(folder, "SELECT sum(encode_ms + prefill_ms + decode_ms) FROM r")
    assert totals["replica_ms"] == pytest.approx(spent, rel=1e-6)


@pytest.mark.parametrize("back", ["24h", "7d", "30d"])
def test_every_resolution_adds_up_to_the_same(folder: Path, views: Views, back: str) -> None:
    shown = views.show(Looked("cost", back))
    time = shown["over_time"]
    by_scale = sum(sum(points) for points in time["scales"].values())
    answered = shown["totals"]["answered"]
    assert by_scale == sum(time["answered"]) == answered
    if back != "24h":
        files = f"read_parquet('{folder}/requests/*/*.parquet')"
        [(all_of_them,)] = asked(folder, f"SELECT count(*) FROM {files} WHERE code = 'ok'")
        assert answered == all_of_them


def test_filters_leave_only_what_they_say(folder: Path, views: Views) -> None:
    shown = views.show(Looked("cost", "24h", key="bob"))
    [row] = asked(folder, "SELECT count(*) FROM r WHERE key = 'bob'")
    assert (shown["totals"]["requests"],) == row
    assert shown["keys"] == ["alice", "bob", "ci", "mobile-app"]
    assert views.show(Looked("cost", "24h", key="nobody' OR 1=1"))["totals"]["requests"] == 0


def test_fixed_scales_are_what_the_same_requests_would_have_taken(
    folder: Path, views: Views
) -> None:
    price_ms = 0.5
    shown = views.show(Looked("cost", "24h", known=Known(price_ms)))
    router, *fixed = shown["policies"]
    totals = shown["totals"]
    answers = totals["answered"]
    assert router["image_tokens"] == totals["image_tokens"]
    assert [row["image_tokens"] for row in fixed] == [answers * s for s in (1, 9, 36, 144, 576)]
    finest = fixed[-1]
    assert finest["finest"] and finest["image_tokens"] == totals["finest_tokens"]
    saved_ms = (totals["finest_tokens"] - totals["image_tokens"]) * price_ms
    assert finest["replica_ms"] - router["replica_ms"] == pytest.approx(saved_ms / answers)
    assert router["money"] == pytest.approx(router["replica_ms"] / 3_600_000 * 3.6 * 1000)
    [(p,)] = asked(folder, "SELECT avg(images[1].p_success[5]) FROM r WHERE code = 'ok'")
    assert finest["p_success"] == pytest.approx(p, rel=1e-5)
    good = [row for row in fixed if row["as_good"]]
    assert all(row["p_success"] >= router["p_success"] for row in good)
    assert len(good) <= 1


def test_without_a_price_there_is_no_money(rollups: RollUps) -> None:
    shown = Views(rollups, Price(), lambda: NOW).show(Looked("cost", "24h"))
    assert {row["money"] for row in shown["policies"]} == {None}


def test_quantiles_are_within_a_bin(folder: Path, views: Views) -> None:
    shown = views.show(Looked("cost", "24h"))
    within = 2 ** (1 / BINS_PER_OCTAVE) - 1
    for row in shown["latency"]:
        for name, q in (("p50", 0.5), ("p95", 0.95)):
            [(exact,)] = asked(
                folder,
                f"SELECT quantile_cont(ttft_ms, {q}) FROM r WHERE code = 'ok'"
                f" AND images[1].scale = {row['scale']}",
            )
            assert row["ttft"][name] == pytest.approx(exact, rel=within)


def test_quantile_of_bins_is_that_of_what_was_counted() -> None:
    rng = np.random.default_rng(0)
    durations = rng.lognormal(3, 1, 20_000)
    numbers, counts = np.unique(
        np.floor(BINS_PER_OCTAVE * np.log2(durations)).astype(int), return_counts=True
    )
    bins = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    for q in (0.01, 0.5, 0.95, 0.999):
        assert quantile(bins, q) == pytest.approx(np.quantile(durations, q), rel=0.045)
    assert quantile({}, 0.5) is None


def test_a_record_that_was_written_twice_is_counted_once(folder: Path, tmp_path: Path) -> None:
    """Whether it stands in two files or its file was put together with others meanwhile."""
    root = tmp_path / "records"
    shutil.copytree(folder, root)
    store, rollups = RecordStore(str(root)), RollUps(str(root), clock=lambda: NOW)
    assert rollups.refresh() == RECORDS
    day = store.days(REQUESTS)[-1]
    assert store.compact(REQUESTS, day) > 0
    for file in list((root / "requests").rglob("*.parquet"))[:2]:
        shutil.copy(file, file.with_name(f"again-{file.name}"))
    assert rollups.refresh() == 0
    [row] = rollups.query("SELECT sum(requests)::BIGINT AS n FROM sums_hours")
    assert row["n"] == RECORDS


def test_a_broken_file_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "records"
    shutil.copytree(folder, root)
    (root / "requests" / "date=2026-11-25" / "broken.parquet").write_bytes(b"PAR1 not really")
    assert RollUps(str(root), clock=lambda: NOW).refresh() == RECORDS


def test_adding_up_again_changes_no_sum(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.dashboard.rollups.COMPACT_FROM", 10)
    rollups = RollUps(str(folder), clock=lambda: NOW)
    views = Views(rollups, Price(), lambda: NOW - 1)
    rollups.refresh()
    before = views.show(Looked("cost", "7d"))
    rollups._compacted.clear()
    rollups.refresh()
    after = views.show(Looked("cost", "7d"))
    assert after["totals"]["image_tokens"] == before["totals"]["image_tokens"]
    assert after["totals"]["requests"] == before["totals"]["requests"] == RECORDS
    assert after["latency"] == before["latency"]


def test_decisions_are_the_newest_first_and_can_be_narrowed(views: Views) -> None:
    rows = views.show(Looked("decisions", "24h"))["requests"]
    assert len(rows) == 100
    assert [r["arrived"] for r in rows] == sorted((r["arrived"] for r in rows), reverse=True)
    only = views.show(Looked("decisions", "24h", scale=9, code="ok", reason="predicted"))
    assert {(r["scale"], r["code"]) for r in only["requests"]} == {(9, "ok")}
    assert views.show(Looked("decisions", "24h", reason="forced"))["requests"] == []
    assert only["codes"] == ["backend_error", "ok", "overloaded"]


def test_the_frontier_is_the_served_rule_on_recorded_pictures(folder: Path, views: Views) -> None:
    prices = ((0.01, 0.008), (0.05, 0.1), (0.3, 20.0))
    shown = views.show(Looked("frontier", "24h", known=Known(0.0, 0.05, prices)))
    pictures = [
        image
        for (images,) in asked(folder, "SELECT images FROM r WHERE code = 'ok'")
        for image in images
    ]
    assert shown["pictures"] == len(pictures) > 1000
    for (bound, price), point in zip(prices, shown["bounds"], strict=True):
        ladder = [image["tokens_per_scale"] for image in pictures]
        places = [
            select(image["p_success"], [t / tokens[-1] for t in tokens], price)
            for image, tokens in zip(pictures, ladder, strict=True)
        ]
        spent = np.mean([tokens[at] for tokens, at in zip(ladder, places, strict=True)])
        assert (point["bound"], point["tokens"]) == (bound, pytest.approx(spent))
    strict, own, loose = shown["bounds"]
    assert strict["tokens"] > own["tokens"] > loose["tokens"]
    assert strict["regret"] < own["regret"] < loose["regret"]
    assert own["changed"] == 0.0  # the records were made at this price
    assert [point["tokens"] for point in shown["fixed"]] == [1, 9, 36, 144, 576]
    assert shown["fixed"][-1]["regret"] == 0.0


def test_the_frontier_of_nothing_is_empty(views: Views) -> None:
    shown = views.show(Looked("frontier", "24h", key="nobody"))
    assert (shown["pictures"], shown["bounds"]) == (0, [])


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"range": "2h"}, "range"),
        ({"scale": "nine"}, "scale"),
        ({"scale": "9" * 30}, "scale"),
        ({"key": "k" * 500}, "key"),
        ({"sort": "at"}, "sort"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(query: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        read_look("decisions", query, Known())
    assert refused.value.param == param


def served(views: Views | None, **config: Any) -> httpx.AsyncClient:
    service = RoutingService(FakeBackend(), FakePredictor(), RouterConfig(**config))

    async def show(looked: Looked) -> dict[str, Any]:
        assert views is not None
        return await asyncio.to_thread(views.show, looked)

    return client_of(build_app(service, records=None if views is None else show))


async def test_views_over_http_are_json_of_the_same(views: Views) -> None:
    client = served(views)
    assert (await client.get("/dashboard/setup")).json()["views"] == [
        "cost",
        "decisions",
        "frontier",
    ]
    answer = await client.get("/dashboard/views/cost", params={"range": "24h"})
    token_ms = (await FakeBackend().info()).costs.prefill_token_ms
    expected = views.show(Looked("cost", "24h", known=Known(token_ms)))
    assert answer.json() == json.loads(json.dumps(expected))
    for path in ("/dashboard/views/else", "/dashboard/views/cost/"):
        assert (await client.get(path)).status_code == 404


async def test_without_records_there_are_no_views() -> None:
    client = served(None)
    assert (await client.get("/dashboard/setup")).json()["views"] == []
    assert (await client.get("/dashboard/views/cost")).status_code == 404


async def test_views_are_for_operators(views: Views, tmp_path: Path) -> None:
    keys = {"operator": "sk-m3-" + "o" * 40, "caller": "sk-m3-" + "c" * 40}
    (tmp_path / "keys.yaml").write_text(
        "".join(
            f"- name: {name}\n  sha256: {digest_of_key(key).hex()}\n"
            f"  operator: {str(name == 'operator').lower()}\n"
            for name, key in keys.items()
        )
    )
    client = served(views, access={"keys": str(tmp_path / "keys.yaml")})
    codes = {}
    for name, key in keys.items():
        given = {"authorization": f"Bearer {key}"}
        codes[name] = (await client.get("/dashboard/views/cost", headers=given)).status_code
    assert codes == {"operator": 200, "caller": 403}
    assert (await client.get("/dashboard/views/cost")).status_code == 401


async def test_records_that_do_not_answer_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "VIEW_TIMEOUT_S", 0.01)

    async def never(_: Looked) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    service = RoutingService(FakeBackend(), FakePredictor(), RouterConfig())
    answer = await client_of(build_app(service, records=never)).get("/dashboard/views/cost")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "records_unavailable"
