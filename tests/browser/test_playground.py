"""The playground in a real browser, on the real model; and hostile content, on a fake one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Page, expect

from benchmarks.synthetic_records import Plan, labels_of, tables
from deploy.announcement import EXAMPLES
from m3_backend.messages import GenerationRequest
from predictor.record_store import LABELS, REQUESTS, RecordStore
from router.auth import digest_of_key
from router.config import RouterConfig
from router.dashboard.looks import Looked
from router.dashboard.rollups import RollUps
from router.dashboard.views import Price, Views
from router.http import build_app
from router.service import RoutingService
from tests.browser.browsing import PATIENCE_MS, PHONE, WIDE, Visit, visiting
from tests.fakes import MODEL, FakeBackend, FakePredictor
from tests.router.support import data_url, picture, serving

SCALES = MODEL.ladder.scales
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def served(m3_tiny: Any) -> Iterator[str]:
    """The real model with its real predictor and the real examples."""
    service = RoutingService(m3_tiny, m3_tiny.predictor, RouterConfig())
    with serving(build_app(service, examples=EXAMPLES)) as url:
        yield url


def decided(page: Page) -> Any:
    return page.locator("table.ladder")


def ask(page: Page, question: str) -> None:
    page.get_by_label("Question", exact=True).last.fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".answer .facts")).to_be_visible()


@pytest.mark.parametrize(
    ("size", "scheme", "path"),
    [
        (WIDE, "light", "/"),
        (WIDE, "dark", "/dashboard"),
        (PHONE, "light", "/dashboard"),
        (PHONE, "dark", "/dashboard"),
    ],
)
def test_everything_fits_is_accessible_and_nothing_complains(
    browser: Browser, served: str, axe: str, size: tuple[int, int], scheme: str, path: str
) -> None:
    with visiting(browser, served + path, size, scheme) as visit:
        expect(decided(visit.page)).to_be_visible()
        assert visit.sideways == 0
        ask(visit.page, visit.page.get_by_label("Question", exact=True).last.input_value())
        visit.page.get_by_text("Answer at every scale").click()
        expect(visit.page.locator(".side dl")).to_have_count(len(SCALES))
        expect(visit.page.locator(".side dl").last.locator("dd").nth(3)).to_be_visible()
        assert visit.sideways == 0
        assert visit.accessibility(axe) == []
        assert visit.complaints == []


def test_it_shows_what_the_service_decided_and_answered(browser: Browser, served: str) -> None:
    """Decision, answer and tokens on the page are those of the responses."""
    with visiting(browser, f"{served}/dashboard") as visit:
        page = visit.page
        expect(decided(page)).to_be_visible()
        field = page.get_by_label("Question", exact=True).last
        with page.expect_response("**/v1/route") as routed:
            field.fill("what color is behind everything?")
        route = routed.value.json()
        [image] = route["images"]
        expect(page.locator(".verdict b")).to_have_text(str(image["scale"]))
        for option, row in zip(
            image["options"], page.locator(".ladder tbody tr").all(), strict=True
        ):
            expect(row).to_contain_text(f"{option['p_success'] * 100:.1f}%")
            expect(row).to_contain_text(f"{option['cost_ms']:.1f}")
        with page.expect_response("**/v1/chat/completions") as answered:
            page.keyboard.press("Enter")
        expect(page.locator(".answer .facts")).to_be_visible()
        assert answered.value.headers["x-m3-scale"] == str(image["scale"])
        chunks = [
            json.loads(line.removeprefix("data: "))
            for line in answered.value.text().split("\n\n")
            if line.startswith("data: {")
        ]
        text = "".join(c["delta"].get("content", "") for k in chunks for c in k["choices"])
        assert page.locator(".answer .said").inner_text() == text.strip() != ""
        image_tokens = chunks[-1]["usage"]["prompt_tokens_details"]["image_tokens"]
        expect(page.locator(".answer .facts div").nth(2)).to_contain_text(f"{image_tokens}")


def test_a_stricter_bound_is_asked_for(browser: Browser, served: str) -> None:
    with visiting(browser, f"{served}/dashboard") as visit:
        expect(decided(visit.page)).to_be_visible()
        with visit.page.expect_request("**/v1/route") as asked:
            visit.page.get_by_label("Answers that may be lost").select_option("1%")
        assert asked.value.post_data_json["m3"] == {"max_regret": 0.01}
        expect(visit.page.locator(".promise .fine")).to_contain_text("at most 1 are lost")


@pytest.mark.parametrize("way", ["chosen", "dropped", "pasted"])
def test_a_picture_of_ones_own(browser: Browser, served: str, tmp_path: Path, way: str) -> None:
    file = tmp_path / "mine.png"
    file.write_bytes(picture())
    with visiting(browser, f"{served}/dashboard") as visit:
        expect(decided(visit.page)).to_be_visible()
        if way == "chosen":
            visit.page.set_input_files("#file", file)
        else:
            kind = {"dropped": "drop", "pasted": "paste"}[way]
            visit.page.evaluate(BRING, [data_url(file.read_bytes()), file.name, kind])
        expect(visit.page.get_by_text("mine.png")).to_be_visible()
        ask(visit.page, "What is this?")
        assert visit.complaints == []


BRING = """async ([url, name, kind]) => {
  const [, base64] = url.split(",");
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  const event = kind === "drop"
    ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
    : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
  document.body.dispatchEvent(event);
}"""


def test_what_is_no_picture_is_said(browser: Browser, served: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_bytes(b"no picture at all")
    with visiting(browser, f"{served}/dashboard") as visit:
        expect(decided(visit.page)).to_be_visible()
        visit.page.set_input_files("#file", file)
        expect(visit.page.get_by_role("alert")).to_contain_text("not a picture")


def test_it_can_be_used_by_keyboard_alone(browser: Browser, served: str) -> None:
    with visiting(browser, f"{served}/dashboard") as visit:
        page = visit.page
        expect(decided(page)).to_be_visible()
        wipe = page.get_by_label("Curtain between")
        wipe.focus()
        page.keyboard.press("ArrowLeft")
        shown = page.locator(".stage .tag.right")
        chosen = shown.inner_text()
        expect(wipe).to_have_attribute("aria-valuetext", f"49% picture, the rest as {chosen}")
        page.keyboard.press("Tab")
        ladder = [f"{scale} tokens" for scale in (1, 9, 36, 144, 576)]
        page.keyboard.press("ArrowRight")
        expect(shown).to_have_text(ladder[(ladder.index(chosen) + 1) % len(ladder)])
        page.get_by_role("button", name="Example:").nth(4).focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Example:").nth(4)).to_have_attribute(
            "aria-pressed", "true"
        )


def test_the_theme_that_was_chosen_stays(browser: Browser, served: str) -> None:
    with visiting(browser, f"{served}/dashboard") as visit:
        for expected in ("light", "dark"):
            visit.page.get_by_label("Theme").click()
            expect(visit.page.locator("html")).to_have_attribute("data-theme", expected)
        visit.page.reload()
        expect(visit.page.locator("html")).to_have_attribute("data-theme", "dark")


SECRET = "sk-m3-" + "s" * 40


def test_where_keys_are_configured_the_page_asks_for_one(browser: Browser, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"- name: alice\n  sha256: {digest_of_key(SECRET).hex()}\n")
    config = RouterConfig.model_validate({"access": {"keys": str(keys)}})
    service = RoutingService(FakeBackend(), FakePredictor(), config)
    with (
        serving(build_app(service, examples=EXAMPLES)) as url,
        visiting(browser, f"{url}/dashboard") as visit,
    ):
        field = visit.page.locator("#key-field")
        expect(field).to_be_visible()
        field.fill("sk-m3-wrong")
        visit.page.keyboard.press("Enter")
        expect(visit.page.get_by_text("This key is not known here.")).to_be_visible()
        field.fill(SECRET)
        visit.page.get_by_text("Use this key").click()
        expect(decided(visit.page)).to_be_visible()
        ask(visit.page, "What is this?")
        assert SECRET not in visit.page.content()


ATTACKS = (
    "<script>window.pwned = 1</script>",
    '<img src="x" onerror="window.pwned = 2">',
    '"><svg onload="window.pwned = 3">',
    "javascript:window.pwned=4//",
    "${window.pwned=5}{{window.pwned=6}}",
    "</script><script>window.pwned = 7</script>",
)


class Parrot(FakeBackend):
    """Says what it was asked, and attacks by every name that it has."""

    def __init__(self) -> None:
        super().__init__(replace(MODEL, name=f"m {' '.join(ATTACKS)}"))

    async def generate(self, request: GenerationRequest) -> Any:
        self._words = [p for p in request.turns[-1].content if isinstance(p, str)]
        async for event in super().generate(request):
            yield event


class NamedPredictor(FakePredictor):
    version = ATTACKS[1]


def elements(visit: Visit) -> int:
    """Elements that only an attack could have made."""
    found: int = visit.page.evaluate(
        'document.querySelectorAll(\'script:not([src^="dashboard/static/"]), [onerror], [onload],'
        " svg[onload], iframe, object, embed').length"
    )
    return found


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_is_said_runs(browser: Browser, tmp_path: Path, attack: str) -> None:
    """Not from a question, an answer, a file's name, a model's or a predictor's, or an error."""
    service = RoutingService(Parrot(), NamedPredictor(), RouterConfig())
    folder = tmp_path / "examples"
    folder.mkdir()
    name = attack.replace("/", "_")[:80] + ".png"
    (folder / name).write_bytes(picture())
    row = {"image": name, "question": f"{attack} one", "answer": f"{attack} two"}
    (folder / "questions.jsonl").write_text(json.dumps(row) + "\n")
    with (
        serving(build_app(service, examples=folder)) as url,
        visiting(browser, f"{url}/dashboard?{attack}#{attack}") as visit,
    ):
        page = visit.page
        expect(decided(page)).to_be_visible()
        ask(page, f"{attack} one")
        expect(page.locator(".answer .said")).to_have_text(f"{attack} one")
        expect(page.locator(".judged")).to_contain_text(f"{attack} two")
        page.get_by_text("Answer at every scale").click()
        expect(page.locator(".side .said").last).to_have_text(f"{attack} one")
        page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": picture()})
        expect(page.get_by_text(name)).to_be_visible()
        page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": b"x"})
        expect(page.get_by_role("alert")).to_contain_text(name)
        expect(page.locator("#state")).to_contain_text(attack)
        assert page.evaluate("window.pwned") is None
        assert elements(visit) == 0
        assert visit.complaints == []


@pytest.mark.parametrize("view", ["cost", "quality", "decisions", "frontier"])
def test_nothing_in_records_runs(browser: Browser, tmp_path: Path, view: str) -> None:
    """Not from the name of a key, a model, a predictor or a reason, wherever a view shows it."""
    [table] = tables(Plan(300, 0.02, time.time()))
    images = [
        [one | {"reason": ATTACKS[3]} for one in each] for each in table["images"].to_pylist()
    ]
    columns = {
        "key": ATTACKS[0],
        "served": ATTACKS[1],
        "predictor": ATTACKS[2],
        "model": ATTACKS[5],
    }
    changed = {name: [value] * len(table) for name, value in columns.items()} | {"images": images}
    for name, values in changed.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array(values, table.schema.field(at).type))
    store = RecordStore(str(tmp_path))
    store.append(REQUESTS, table)
    store.append(LABELS, labels_of(table))
    rollups = RollUps(str(tmp_path))
    rollups.refresh()
    views = Views(rollups, Price(), time.time)

    async def show(looked: Looked) -> dict[str, Any]:
        return await asyncio.to_thread(views.show, looked)

    service = RoutingService(FakeBackend(), NamedPredictor(), RouterConfig())
    with (
        serving(build_app(service, records=show)) as url,
        visiting(browser, f"{url}/dashboard?view={view}") as visit,
    ):
        page = visit.page
        expect(page.locator(".fresh:not(:empty)")).to_be_visible()
        if view == "decisions":
            page.locator(".requests > li button").first.click()
            expect(page.locator(".opened")).to_contain_text(ATTACKS[3])
        if view == "quality":
            expect(page.locator(".versions tbody th")).to_contain_text(ATTACKS[2][:8])
        assert page.evaluate("window.pwned") is None
        assert elements(visit) == 0
        assert visit.complaints == []


def test_the_policy_stops_what_would_get_past(browser: Browser, served: str) -> None:
    """The last line of defence holds by itself: markup is refused, inline script does not run."""
    with visiting(browser, f"{served}/dashboard") as visit:
        expect(decided(visit.page)).to_be_visible()
        refused = visit.page.evaluate(
            "() => { try { document.body.innerHTML = '<b>x</b>'; return false; }"
            " catch (error) { return error instanceof TypeError; } }"
        )
        assert refused
        visit.page.evaluate(
            "() => { const s = document.createElement('script'); s.append('window.pwned = 8');"
            " try { document.body.append(s); } catch {} }"
        )
        assert visit.page.evaluate("window.pwned") is None
        assert visit.complaints
