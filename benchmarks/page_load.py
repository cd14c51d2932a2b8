"""How long the page's views take to load in a real browser while the service answers requests.

    python -m benchmarks.page_load

Starts the service, keeps it busy with callers that ask about the example pictures without a pause,
and opens every view in Chromium (Debian's), each time in a profile of its own, so that nothing is
cached. A view counts as loaded when its figures are drawn. Prints one JSON object: seconds from the
navigation on, and requests answered a second meanwhile. The load, the browser and the service share
the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from typing import Any

import httpx
from playwright.sync_api import Browser

from deploy.announcement import EXAMPLES
from tests.browser.browsing import WIDE, chromium, visiting
from tests.conftest import unused_port
from tests.e2e.pictures import messages
from tests.e2e.service import sandbox, start, until

LOADED = {
    "playground": "table.ladder tbody tr",
    "cost": ".policies tbody tr",
    "quality": ".versions tbody tr",
    "decisions": ".requests > li",
    "frontier": ".frontier .now",
}


class Load:
    """Callers that ask one question after the other until they are stopped."""

    def __init__(self, url: str, callers: int) -> None:
        rows = map(json.loads, (EXAMPLES / "questions.jsonl").read_text().splitlines())
        self._bodies = [
            {"model": "m3-auto", "messages": messages(_bytes(r), question=r["question"])}
            for r in rows
        ]
        self._url, self.answered, self._stopping = url, 0, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(callers)]
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    @property
    def per_second(self) -> float:
        return self.answered / (time.monotonic() - self._began)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._stopping.is_set():
                body = self._bodies[number % len(self._bodies)]
                status = client.post("/v1/chat/completions", json=body).status_code
                self.answered += status == 200
                number += 7


def _bytes(row: dict[str, Any]) -> bytes:
    return (EXAMPLES / row["image"]).read_bytes()


def seconds(browser: Browser, url: str, view: str) -> float:
    """From the navigation to the last figure."""
    began = time.monotonic()
    with visiting(browser, f"{url}/dashboard?view={view}&range=15m", WIDE) as visit:
        visit.page.locator(LOADED[view]).first.wait_for()
        return time.monotonic() - began


def measure(looks: int, callers: int) -> dict[str, Any]:
    settings = ("--set", "router.shadow.uniform_share=0.5", "--set", "router.shadow.budget=0.5")
    with sandbox() as box, chromium() as browser:
        service = start(*settings, port=unused_port(), box=box)
        load = Load(service.url, callers)
        try:
            until(lambda: load.answered > 20)
            time.sleep(10)  # until the recorder has written
            took = {
                view: [seconds(browser, service.url, view) for _ in range(looks)] for view in LOADED
            }
            rate = load.per_second
        finally:
            load.stop()
            service.stop()
    return {
        "callers": callers,
        "answers_per_s": round(rate, 1),
        "median_s": {view: round(statistics.median(each), 3) for view, each in took.items()},
        "slowest_s": {view: round(max(each), 3) for view, each in took.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--looks", type=int, default=7)
    parser.add_argument("--callers", type=int, default=2)
    options = parser.parse_args()
    print(json.dumps(measure(options.looks, options.callers), indent=1))


if __name__ == "__main__":
    main()
