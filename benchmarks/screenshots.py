"""Pictures of the page for docs/, from a service that runs: `make screenshots`.

    m3-router serve --set dashboard.price_per_replica_hour=2.5 \
      --set router.shadow.uniform_share=0.5 --set router.shadow.budget=0.5   # in another terminal
    python -m benchmarks.screenshots --url http://127.0.0.1:8000

Asks every example question first, some of them more than once, so that there is something to see.
Needs Chromium on the PATH (Debian's `chromium`).
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import shutil
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from deploy.announcement import EXAMPLES

DOCS = Path(__file__).parents[1] / "docs"
WIDE, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
PATIENCE_MS = 60_000
VIEWS = ("cost", "quality", "decisions", "frontier")
WHOLE = ("cost", "quality")  # of which all is shown, however far down


def ask_examples(url: str, rounds: int) -> int:
    """Asks the examples in a random order; gives the number of requests."""
    rows = [json.loads(line) for line in (EXAMPLES / "questions.jsonl").read_text().splitlines()]
    asked = rows * rounds
    random.Random(0).shuffle(asked)
    with httpx.Client(base_url=url, timeout=60) as client:
        for row in asked:
            data = base64.b64encode((EXAMPLES / row["image"]).read_bytes()).decode()
            content: list[dict[str, Any]] = [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                {"type": "text", "text": row["question"]},
            ]
            body = {"model": "m3-auto", "messages": [{"role": "user", "content": content}]}
            client.post("/v1/chat/completions", json=body).raise_for_status()
    return len(asked)


def opened(browser: Browser, url: str, scheme: Any, size: Any) -> Page:
    context = browser.new_context(viewport=size, color_scheme=scheme, device_scale_factor=1.5)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(url)
    return page


def playground(page: Page, question: str) -> None:
    """Asks about the example that has this question, and at every scale."""
    page.locator("table.ladder").wait_for()
    rows = [json.loads(line) for line in (EXAMPLES / "questions.jsonl").read_text().splitlines()]
    [image] = [row["image"] for row in rows if row["question"] == question][:1]
    page.get_by_role("button", name=f"Example: {image}").click()
    page.get_by_role("button", name=question).click()
    page.locator("button[type=submit].first").click()
    page.locator(".answer .facts").wait_for()
    page.get_by_text("Answer at every scale").click()
    page.locator(".side dl").last.locator("dd").nth(3).wait_for()
    page.evaluate("window.scrollTo(0, 0)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    ask_examples(options.url, options.rounds)
    question = json.loads((EXAMPLES / "questions.jsonl").read_text().splitlines()[1])["question"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page_url = f"{options.url}/dashboard"
        for scheme, size, name in (("light", WIDE, ""), ("dark", WIDE, "-dark")):
            page = opened(browser, page_url, scheme, size)
            playground(page, question)
            page.screenshot(path=options.out / f"page-playground{name}.png", full_page=True)
        page = opened(browser, page_url, "dark", PHONE)
        playground(page, question)
        page.screenshot(path=options.out / "page-phone.png")
        for view in VIEWS:
            page = opened(browser, f"{page_url}?view={view}&range=15m", "light", WIDE)
            page.locator(".fresh:not(:empty)").last.wait_for()
            page.screenshot(path=options.out / f"page-{view}.png", full_page=view in WHOLE)
        browser.close()


if __name__ == "__main__":
    main()
