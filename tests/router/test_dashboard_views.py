"""What the views show is what the records say: to the last token, and to a bin for durations."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import duckdb
import httpx
import numpy as np
import pyarrow as pa
import pytest

from benchmarks.synthetic_records import Plan, labels_of, tables
from m3_backend.errors import InvalidRequestError
from m3_backend.messages import CacheLevel
from predictor.drift import Shift
from predictor.record_store import LABELS, REQUESTS, RecordStore
from predictor.regret import RegretLedger, Served
from predictor.selection import select
from router.auth import digest_of_key
from router.config import RouterConfig
from router.dashboard import page
from router.dashboard.looks import Known, Looked, Period, read_look
from router.dashboard.rollups import BINS_PER_OCTAVE, RollUps
from router.dashboard.views import Price, Views, quantile
from router.drift import DriftState
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
        store.append(LABELS, labels_of(table))
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
    (root / "requests" / "date=notes").mkdir()
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
    assert {"max_regret", "loosened_from", "tightened_to"} <= rows[0].keys()
    only = views.show(Looked("decisions", "24h", scale=9, code="ok", reason="predicted"))
    assert {(r["scale"], r["code"]) for r in only["requests"]} == {(9, "ok")}
    assert views.show(Looked("decisions", "24h", reason="forced"))["requests"] == []
    assert only["codes"] == ["backend_error", "ok", "overloaded"]


def test_every_place_that_features_come_from_is_counted(tmp_path: Path) -> None:
    levels = get_args(CacheLevel)
    [table] = tables(Plan(40, 0.1, NOW))
    images = table["images"].to_pylist()
    for row, made in enumerate(images):
        for image in made:
            image["cache"] = levels[row % len(levels)]
    at = table.schema.get_field_index("images")
    table = table.set_column(
        at, table.schema.field(at), pa.array(images, table.schema.field(at).type)
    )
    RecordStore(str(tmp_path)).append(REQUESTS, table)
    rollups = RollUps(str(tmp_path), clock=lambda: NOW)
    rollups.refresh()
    shown = Views(rollups, Price(), lambda: NOW - 1).show(Looked("cost", "30d"))
    counted = {level: shown["totals"][level] for level in levels}
    expected = Counter(levels[row % len(levels)] for row, made in enumerate(images) if made)
    assert counted == expected
    hits = [share for share in shown["over_time"]["hit_share"] if share is not None]
    assert hits
    assert all(0.5 < share < 1 for share in hits)  # of four places, one is a miss


def test_a_period_of_hours_is_counted_to_the_last_token(folder: Path, views: Views) -> None:
    period = Period.of_hours(NOW - 40_000, NOW - 5_000)
    assert (period.since, period.until) == (NOW - 43_200, NOW - 3_600)
    shown = views.show(Looked("cost", period=period))
    files = f"read_parquet('{folder}/requests/*/*.parquet')"
    [row] = asked(
        folder,
        f"SELECT count(*), sum(image_tokens) FROM {files} WHERE code = 'ok'"
        f' AND "at" >= to_timestamp({period.since}) AND "at" < to_timestamp({period.until})',
    )
    assert (shown["totals"]["answered"], shown["totals"]["image_tokens"]) == row
    assert sum(shown["over_time"]["answered"]) == row[0]


@pytest.mark.parametrize("days", [0.5, 13.7, 31.0, 90.0])
def test_a_long_period_has_a_readable_number_of_points(days: float) -> None:
    period = Period.of_hours(NOW - 86_400 * days, NOW)
    assert period.until - period.since >= 86_400 * days
    assert 10 <= len(range(period.since, period.until, period.step_s)) <= 200


def labels_in(folder: Path, hours: float) -> list[dict[str, Any]]:
    since = datetime.fromtimestamp(NOW - 3600 * hours, UTC)
    parts = RecordStore(str(folder)).read(LABELS, since=since)
    return [row for part in parts for row in part.to_pylist()]


def test_regret_is_that_of_the_ledger_that_metrics_show(folder: Path, views: Views) -> None:
    shown = views.show(Looked("quality", "7d"))
    ledger = RegretLedger()
    ledger.read(RecordStore(str(folder)))
    estimates = ledger.estimates()
    assert len(estimates) == 2
    for row in shown["predictors"]:
        known, expected = row["regret"], estimates[Served(row["predictor"])]
        names = ("regret", "labels", "bound")
        assert [known[n] for n in names] == pytest.approx([getattr(expected, n) for n in names])
        # Labels of a batch come in the order of their time here, there as they lie in files.
        assert known["low"] == pytest.approx(expected.low, abs=0.01)
        assert known["high"] == pytest.approx(expected.high, abs=0.02)
        line = shown["over_time"]["predictors"][row["predictor"]]
        last = [value for value in line["regret"] if value is not None][-1]
        assert last == pytest.approx(known["regret"])
    assert sum(row["answers"] for row in shown["predictors"]) == sum(
        views.show(Looked("cost", "7d"))["over_time"]["answered"]
    )


def test_a_change_of_the_predictor_is_on_the_time_axis(views: Views) -> None:
    for view in ("cost", "quality"):
        [change] = views.show(Looked(view, "7d"))["changes"]  # type: ignore[arg-type]
        assert change["predictor"] == "7be0a91f20c6d2e8"
        assert change["at"] == pytest.approx(NOW - 0.4 * 2 * 86_400, abs=7200)


def test_calibration_is_what_labels_say_of_predictions(folder: Path, views: Views) -> None:
    found = views.show(Looked("quality", "24h"))["calibration"]
    rows = labels_in(folder, 24)
    assert found["labels"] == len(rows) > 10
    for at, scale in enumerate(found["scales"]):
        assert scale["predicted"] == pytest.approx(np.mean([r["p_success"][at] for r in rows]))
        assert scale["agreed"] == pytest.approx(np.mean([r["agrees"][at] for r in rows]))
        assert scale["low"] <= scale["agreed"] <= scale["high"]
    assert [scale["scale"] for scale in found["scales"]] == [1, 9, 36, 144]
    assert sum(each["count"] for each in found["bins"]) == 4 * len(rows)


def test_allocation_sets_the_chosen_beside_the_smallest_that_is_enough(
    folder: Path, views: Views
) -> None:
    found = views.show(Looked("quality", "24h"))["allocation"]
    rows = labels_in(folder, 24)
    needed = [r["agrees"].index(1.0) for r in rows]
    given = [r["scales"].index(r["scale"]) for r in rows]
    for n in range(5):
        for g in range(5):
            pairs = sum((a, b) == (n, g) for a, b in zip(needed, given, strict=True))
            assert found["matrix"][n][g] == pairs
    lost = np.mean([r["agrees"][g] < 0.9 for r, g in zip(rows, given, strict=True)])
    assert found["lost"] == pytest.approx(lost)
    assert found["exact"] + found["over"] + found["under"] == pytest.approx(1.0)


def test_only_uniform_labels_of_the_chosen_predictor_count(tmp_path: Path) -> None:
    [table] = tables(Plan(2000, 0.1, NOW))
    labels = labels_of(table)
    other = labels.set_column(
        labels.schema.get_field_index("stratum"), "stratum", pa.array(["threshold"] * len(labels))
    )
    names = [f"near-{row}" for row in range(len(labels))]
    store = RecordStore(str(tmp_path))
    store.append(REQUESTS, table)
    store.append(LABELS, labels)
    store.append(LABELS, other.set_column(0, "request_id", pa.array(names)))
    rollups = RollUps(str(tmp_path), clock=lambda: NOW)
    rollups.refresh()
    views = Views(rollups, Price(), lambda: NOW - 1)
    shown = views.show(Looked("quality", "24h"))
    assert shown["labels"] == shown["predicted"] == len(labels) > 5
    first = shown["predictors"][-1]["predictor"]
    only = views.show(Looked("quality", "24h", predictor=first))
    assert only["labels"] == labels["predictor"].to_pylist().count(first) < len(labels)
    assert [row["predictor"] for row in only["predictors"]] == [first]
    assert views.show(Looked("quality", "24h", served="other"))["calibration"] is None


def test_without_labels_quality_is_empty_and_says_what_is_known(tmp_path: Path) -> None:
    rollups = RollUps(str(tmp_path), clock=lambda: NOW)
    known = Known(max_regret=0.05, predictor="p", target="correctness", uniform_share=0.02)
    shown = Views(rollups, Price(), lambda: NOW).show(Looked("quality", "1h", known=known))
    assert (shown["labels"], shown["calibration"], shown["allocation"]) == (0, None, None)
    assert (shown["target"], shown["uniform_share"], shown["predictors"]) == (
        "correctness",
        0.02,
        [],
    )


def test_quality_tells_how_far_traffic_has_moved(tmp_path: Path) -> None:
    views = Views(RollUps(str(tmp_path), clock=lambda: NOW), Price(), lambda: NOW)
    assert views.show(Looked("quality", "1h"))["drift"] is None
    state = DriftState(500, 300, {"picture": Shift("luma.mean", 0.31)}, warning=True)
    known = Known(drift=state, drift_limit=0.25)
    assert views.show(Looked("quality", "1h", known=known))["drift"] == {
        "images": 300,
        "fewest_images": 200,
        "limit": 0.25,
        "warning": True,
        "shifts": [{"kind": "picture", "name": "luma.mean", "psi": 0.31}],
    }


def test_what_labels_are_kept_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.dashboard.labels.KEPT", 10)
    rollups = RollUps(str(folder), clock=lambda: NOW)
    rollups.refresh()
    [row] = rollups.query("SELECT count(*) AS n, min(t) AS oldest FROM labels")
    assert 10 <= row["n"] <= 40
    [kept] = rollups.query("SELECT max(labels) AS n FROM estimates")
    assert kept["n"] > row["n"]


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
        "quality",
        "decisions",
        "frontier",
    ]
    answer = await client.get("/dashboard/views/cost", params={"range": "24h"})
    token_ms = (await FakeBackend().info()).costs.prefill_token_ms
    known = Known(
        token_ms,
        RouterConfig().max_regret,
        ((0.01, 0.02), (0.05, 0.2), (0.2, 20.0)),
        "fake-1",
        "agreement",
        RouterConfig().shadow.uniform_share,
    )
    expected = views.show(Looked("cost", "24h", known=known))
    quality = await client.get("/dashboard/views/quality", params={"range": "24h"})
    wanted = views.show(Looked("quality", "24h", known=known))
    assert quality.json() == json.loads(json.dumps(wanted))
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
