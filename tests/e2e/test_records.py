"""Records of the whole service: real Ray, a private Redis, files that outlive it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from predictor.record_store import REQUESTS, RecordStore
from predictor.routing_records import IMAGE_FEATURES
from tests.conftest import unused_port
from tests.e2e.pictures import chat, picture
from tests.e2e.service import sandbox, start, until


def test_every_request_is_in_a_file_when_the_service_has_stopped() -> None:
    began = datetime.now(UTC)
    with sandbox() as box:
        folder = box.folder / "home/.local/state/m3-router/records"
        service = start(port=unused_port(), box=box)
        assert str(folder) in service.announcement
        sent = [ask(service.url, seed) for seed in range(3)]
        # Those are in a file by themselves, while it runs ...
        assert until(lambda: names(folder) == {answer for answer, _ in sent})
        written = "m3_recorder_written_total"
        assert until(lambda: sum(service.metric(written).values()) == 3)
        sent += [ask(service.url, seed) for seed in range(3, 6)]
        assert service.stop() == 0  # ... and these because it stops
        parts = RecordStore(str(folder)).read(REQUESTS)
        by_name = {row["request_id"]: row for part in parts for row in part.to_pylist()}
        assert set(by_name) == {name for name, _ in sent}
        for name, scale in sent:
            row = by_name[name]
            assert str(row["images"][0]["scale"]) == scale
            assert row["image_features"] == IMAGE_FEATURES
            assert row["completion_tokens"] > 0
            assert timedelta(0) <= row["at"] - began < timedelta(minutes=10)
        assert until(lambda: not box.processes()), box.processes()
        assert box.remains() == []


def names(folder: Path) -> set[str]:
    parts = RecordStore(str(folder)).read(REQUESTS, columns=["request_id"])
    return {name for part in parts for name in part["request_id"].to_pylist()}


def ask(url: str, seed: int) -> tuple[str, str]:
    """The request's id and scale."""
    answer = httpx.post(f"{url}/v1/chat/completions", json=chat(picture(seed)), timeout=60)
    assert answer.status_code == 200
    return answer.headers["x-m3-request-id"], answer.headers["x-m3-scale"]
