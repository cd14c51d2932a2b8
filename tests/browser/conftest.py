from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.browsing import chromium
from tests.npm import installed


# Of a module, not of the session: as long as Playwright runs, its event loop is the main thread's,
# and no other test could have one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core."""
    packages = installed(Path(__file__).parent)
    return (packages / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
