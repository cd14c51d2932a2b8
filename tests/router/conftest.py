from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes import FakeBackend, FakePredictor
from tests.router.support import app_of, serving


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """Base URL of a router over real HTTP, with a predictor and a body limit of 1 MB."""
    with serving(app_of(FakeBackend(), FakePredictor(), max_body_bytes=1_000_000)) as url:
        yield url
