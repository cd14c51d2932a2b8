"""A real Chromium, Debian's, and what it may not complain about."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

WIDE, PHONE = (1440, 900), (390, 844)
PATIENCE_MS = 60_000  # the machine may be busy


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser on the PATH; the test is skipped where there is none."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    if binary is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        # Its sandbox needs more than containers give; it opens nothing but our own service.
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visit:
    """An open page, and everything that went wrong in it."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    @property
    def sideways(self) -> int:
        """Pixels by which the page is wider than the window."""
        wide: int = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        return wide

    def accessibility(self, axe: str) -> list[str]:
        """What axe-core finds wrong, by rule and place."""
        self.page.evaluate(axe)
        found: dict[str, Any] = self.page.evaluate("axe.run()")
        return [
            f"{rule['id']}: {' '.join(map(str, node['target']))} {node['failureSummary']}"
            for rule in found["violations"]
            for node in rule["nodes"]
        ]


@contextmanager
def visiting(
    browser: Browser, url: str, size: tuple[int, int] = WIDE, scheme: Any = "light"
) -> Iterator[Visit]:
    """Opens a page in a profile of its own."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme
    )
    context.set_default_timeout(PATIENCE_MS)
    visit = Visit(context.new_page())

    def heard(kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            visit.complaints.append(text)

    visit.page.on("console", lambda message: heard(message.type, message.text))
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("dialog", lambda dialog: visit.complaints.append(f"dialog {dialog.message}"))
    visit.page.goto(url)
    yield visit
    context.close()
