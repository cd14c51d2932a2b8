"""The views of a running service: real Ray, real requests, records from files, a real browser."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from playwright.sync_api import Browser, Route, expect

from predictor.record_store import LABELS, REQUESTS, RecordStore
from tests.browser.browsing import PATIENCE_MS, PHONE, WIDE, visiting
from tests.browser.test_playground import ATTACKS, elements
from tests.conftest import unused_port
from tests.e2e.pictures import chat, picture
from tests.e2e.service import Service, sandbox, start, until

ANSWERS = 6
expect.set_options(timeout=PATIENCE_MS)


@dataclass(frozen=True)
class Live:
    """A service, and what its records say of each request by its id."""

    service: Service
    folder: Path
    records: dict[str, dict[str, object]]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with sandbox() as box:
        folder = box.folder / "home/.local/state/m3-router/records"
        settings = [
            *("--set", "dashboard.price_per_replica_hour=2.5"),
            *("--set", "router.shadow.uniform_share=1", "--set", "router.shadow.budget=1"),
        ]
        service = start(*settings, port=unused_port(), box=box)
        questions = ("What is this?", "What is the background colour?", "please read it.")
        for seed in range(ANSWERS - 1):
            body = chat(picture(seed // 2), question=questions[seed % 3])
            assert post(service, body).status_code == 200
        assert post(service, chat(picture(9), model="m3-576")).status_code == 200
        assert post(service, chat(b"no picture")).status_code == 400

        def records() -> dict[str, dict[str, object]]:
            parts = RecordStore(str(folder)).read(REQUESTS)
            return {row["request_id"]: row for part in parts for row in part.to_pylist()}

        assert until(lambda: len(records()) == ANSWERS + 1)
        yield Live(service, folder, records())
        service.stop()


def post(service: Service, body: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=60)


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_cost_and_latency_are_those_of_metrics_and_records(
    browser: Browser, live: Live, axe: str, size: tuple[int, int]
) -> None:
    service = live.service
    url = f"{service.url}/dashboard?view=cost&range=15m"
    with visiting(browser, url, size) as visit:
        tiles = visit.page.locator(".tile")
        expect(tiles.nth(0).locator("dd").first).to_have_text(str(ANSWERS + 1))
        records = [row for row in live.records.values() if row["code"] == "ok"]
        tokens = sum(int(str(row["image_tokens"])) for row in records)
        finest = sum(int(str(row["finest_tokens"])) for row in records)
        counted = service.metric("m3_tokens_total")['{kind="image"}']
        saved = sum(service.metric("m3_image_tokens_saved_total").values())
        assert (counted, counted + saved) == (tokens, finest)
        expect(
            visit.page.get_by_text(f"{tokens:,} visual tokens in {ANSWERS} answers")
        ).to_be_visible()
        expect(visit.page.get_by_text(f"{finest:,} had all been")).to_be_visible()
        expect(visit.page.locator(".policies tr.chosen")).to_contain_text("$")
        by_scale = Counter(row["images"][0]["scale"] for row in records)  # type: ignore[index]
        for row in visit.page.locator(".latencies tbody tr").all():
            scale, answers = row.locator("th, td").all_inner_texts()[:2]
            assert by_scale.pop(int(scale)) == int(answers)
        assert not by_scale
        assert visit.sideways == 0
        assert visit.accessibility(axe) == []
        assert visit.complaints == []


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_quality_is_that_of_metrics_and_labels(
    browser: Browser, live: Live, axe: str, size: tuple[int, int]
) -> None:
    service, store = live.service, RecordStore(str(live.folder))

    def labels() -> list[dict[str, object]]:
        return [row for part in store.read(LABELS) for row in part.to_pylist()]

    assert until(lambda: len(labels()) == ANSWERS - 1)  # all but the forced one
    url = f"{service.url}/dashboard?view=quality&range=15m"
    with visiting(browser, url, size) as visit:
        page, known = visit.page, labels()
        tiles = page.locator(".tile")
        expect(tiles.nth(2).locator("dd").first).to_have_text(str(len(known)))
        version = {str(row["predictor"]) for row in known}
        row = page.locator(".versions tbody tr")
        expect(row).to_have_count(1)
        assert version == {row.locator("code").get_attribute("title")}
        [regret] = service.metric("m3_regret").values()
        [low] = service.metric("m3_regret_low").values()
        [high] = service.metric("m3_regret_high").values()
        [bound] = service.metric("m3_regret_bound").values()
        expect(tiles.nth(0).locator("dd").first).to_have_text(f"{regret:.1%}")
        expect(tiles.nth(0)).to_contain_text(f"{low:.1%} to {high:.1%}")
        expect(tiles.nth(1)).to_contain_text(f"≤ {100 * bound:g}%")
        cells = page.locator(".matrix td").all_inner_texts()
        predicted = [label for label in known if label["reason"] == "predicted"]
        assert sum(int(cell) for cell in cells if cell != "·") == len(predicted)
        expect(page.locator(".reliability")).to_be_visible()
        assert visit.sideways == 0
        assert visit.accessibility(axe) == []
        assert visit.complaints == []


def test_quality_shows_what_has_moved(browser: Browser, live: Live, axe: str) -> None:
    url = f"{live.service.url}/dashboard?view=quality&range=15m"
    with visiting(browser, url, PHONE) as visit:
        page = visit.page
        expect(
            page.get_by_text("below 200 the largest of some two hundred numbers")
        ).to_be_visible()
        expect(page.locator(".drift")).to_be_hidden()

        def later(route: Route) -> None:
            """As after many more pictures than a test can send."""
            response = route.fetch()
            shifts = [
                {"kind": "picture", "name": "luma.mean", "psi": 0.31},
                {"kind": "question", "name": "query.words", "psi": 0.04},
            ]
            body = response.json()
            route.fulfill(
                response=response,
                json=body | {"drift": body["drift"] | {"images": 300, "shifts": shifts}},
            )

        page.route("**/dashboard/views/quality*", later)
        rows = page.locator(".drift tbody tr")
        expect(rows).to_have_text(
            [re.compile(r"luma\.mean.*0\.31.*moved"), re.compile("0.04.*same")]
        )
        assert visit.sideways == 0
        assert visit.accessibility(axe) == []
        page.unroute_all(behavior="ignoreErrors")
        assert visit.complaints == []


def test_without_labels_quality_says_what_to_do(browser: Browser, live: Live) -> None:
    url = f"{live.service.url}/dashboard?view=quality&served=nobody"
    with visiting(browser, url) as visit:
        expect(visit.page.locator(".hint")).to_contain_text("router.shadow.uniform_share")
        assert visit.sideways == 0
        assert visit.complaints == []


@pytest.mark.parametrize("view", ["cost", "quality", "decisions", "frontier"])
@pytest.mark.parametrize("attack", ATTACKS[:3])
def test_nothing_in_a_filter_runs(browser: Browser, live: Live, view: str, attack: str) -> None:
    asked = urlencode(
        {"view": view, "range": "15m"}
        | dict.fromkeys(("key", "served", "predictor", "reason", "bound"), attack)
    )
    with visiting(browser, f"{live.service.url}/dashboard?{asked}") as visit:
        expect(visit.page.locator(".fresh:not(:empty)")).to_be_visible()
        assert visit.page.evaluate("window.pwned") is None
        assert elements(visit) == 0
        assert visit.complaints == []


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_decisions_are_the_records(
    browser: Browser, live: Live, axe: str, size: tuple[int, int]
) -> None:
    with visiting(browser, f"{live.service.url}/dashboard?view=decisions", size) as visit:
        page = visit.page
        items = page.locator(".requests > li")
        expect(items).to_have_count(ANSWERS + 1)
        shown = [item.get_attribute("data-id") for item in items.all()]
        newest = sorted(live.records, key=lambda name: str(live.records[name]["at"]), reverse=True)
        assert shown == newest
        assert visit.sideways == 0
        page.get_by_label("Reason").select_option("forced")
        expect(items).to_have_count(1)
        assert "reason=forced" in page.url
        items.first.locator("button").click()
        expect(items.first.locator(".opened")).to_contain_text(
            str(items.first.get_attribute("data-id"))
        )
        assert visit.sideways == 0
        assert visit.accessibility(axe) == []
        page.reload()  # what is in the URL stays
        expect(items).to_have_count(1)
        assert visit.complaints == []


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_frontier_shows_what_another_bound_would_change(
    browser: Browser, live: Live, axe: str, size: tuple[int, int]
) -> None:
    with visiting(browser, f"{live.service.url}/dashboard?view=frontier", size) as visit:
        page = visit.page
        slider = page.locator("#bound")
        expect(page.locator(".frontier .now")).to_be_visible()
        expect(page.locator(".changes")).to_contain_text(f"of {ANSWERS} pictures")
        slider.focus()
        page.keyboard.press("Home")
        expect(page.locator("output")).to_have_text("≤ 0.5%")
        assert "bound=0.005" in page.url
        assert visit.sideways == 0
        assert visit.accessibility(axe) == []
        assert visit.complaints == []


def test_a_new_request_appears_by_itself(browser: Browser, live: Live) -> None:
    with visiting(browser, f"{live.service.url}/dashboard?view=decisions") as visit:
        items = visit.page.locator(".requests > li")
        expect(items.first).to_be_visible()
        answer = post(live.service, chat(picture(77)))
        name = answer.headers["x-m3-request-id"]
        expect(visit.page.locator(f'.requests > li[data-id="{name}"]')).to_be_visible()


def test_views_are_reached_by_links_and_back(browser: Browser, live: Live) -> None:
    with visiting(browser, f"{live.service.url}/dashboard") as visit:
        page = visit.page
        page.get_by_role("link", name="Cost and latency").click()
        expect(page.get_by_role("heading", name="Cost and latency", level=1)).to_be_visible()
        page.locator("input[value='6h']:visible").check()
        page.get_by_role("link", name="Decisions").click()
        assert "range=6h" in page.url
        page.go_back()
        expect(page.get_by_role("heading", name="Cost and latency", level=1)).to_be_visible()
        page.go_back()
        expect(page.get_by_role("heading", level=1).first).to_have_text(
            "How many tokens does this question need?"
        )
        assert visit.complaints == []
