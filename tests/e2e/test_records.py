"""Records of the whole service: real Ray, a private Redis, files that outlive it. And what comes of
them: feedback, a predictor that watches, others that take its place under load.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from deploy.predictors import PACKAGED
from predictor import artifact as artifacts
from predictor.record_store import CORRECTNESS, FEEDBACK, LABELS, REQUESTS, Kind, RecordStore
from predictor.registry import Registry
from predictor.routing_records import IMAGE_FEATURES
from tests.conftest import unused_port
from tests.e2e.pictures import chat, picture
from tests.e2e.service import Sandbox, Service, run, sandbox, start, until

CLIENTS = 4
SETTINGS = ("router.shadow.uniform_share=1", "router.feedback.answers_s=600")


@dataclass(frozen=True)
class Asked:
    """A request that was answered."""

    request_id: str
    scale: str
    predictor: str
    text: str


def test_every_request_is_in_a_file_when_the_service_has_stopped() -> None:
    began = datetime.now(UTC)
    with sandbox() as box:
        folder = box.state / "records"
        registry, versions = published(box)
        registry.observe(versions[1])
        settings = [word for each in SETTINGS for word in ("--set", each)]
        service = start(*settings, port=unused_port(), box=box)
        assert str(folder) in service.announcement
        sent = [ask(service.url, seed) for seed in range(3)]
        # Those are in a file by themselves, while it runs ...
        assert until(lambda: names(folder) == {each.request_id for each in sent})
        written = "m3_recorder_written_total"
        assert until(lambda: sum(service.metric(written).values()) >= 3)
        assert until(lambda: names(folder, LABELS) == {each.request_id for each in sent})
        for part in RecordStore(str(folder)).read(LABELS):
            for row in part.to_pylist():  # what regret is estimated from, without the artefact
                assert (row["target"], row["tightened_to"]) == ("correctness", None)
                assert 0.05 in row["certified_bounds"]
                assert len(row["certified_prices"]) == len(row["certified_bounds"])
        draws = service.metric("m3_shadow_draws_total")
        assert sum(count for labels, count in draws.items() if "labelled" in labels) == 3
        judged = feedback_goes_the_way_of_the_records(service, folder, sent)
        sent += promotions_drop_no_request(service, registry, versions)
        sent += [ask(service.url, seed) for seed in range(3, 6)]
        assert service.stop() == 0  # ... and these because it stops
        rows = read(folder)
        assert set(rows) == {each.request_id for each in sent}
        for each in sent:
            row = rows[each.request_id]
            assert str(row["images"][0]["scale"]) == each.scale
            assert row["predictor"] == each.predictor
            assert row["image_features"] == IMAGE_FEATURES
            assert (row["draw_stratum"], row["draw_probability"]) == ("uniform", 1.0)
            assert row["completion_tokens"] > 0
            assert timedelta(0) <= row["at"] - began < timedelta(minutes=10)
            # The one that watches knows what the others know, so it decides alike.
            assert row["observed_predictor"] == versions[1]
            assert [str(image["scale"]) for image in row["observed"]] == [each.scale]
        commands_sum_it_up(box, versions, len(sent), judged)
        assert until(lambda: not box.processes()), box.processes()
        assert box.remains() == []


def published(box: Sandbox) -> tuple[Registry, list[str]]:
    """A registry with the predictor that ships, twice, under two versions; none serves yet."""
    registry = Registry(box.state / "predictors")
    shipped, _ = artifacts.load(PACKAGED / "m3-tiny")
    for number in (1, 2):
        copy = replace(shipped, metrics=shipped.metrics | {"copy": float(number)})
        artifacts.save(copy, box.folder / "tmp/copy", f"2026-01-0{number}")
        registry.add(box.folder / "tmp/copy")
    for file in (box.folder / "tmp/copy").iterdir():
        file.unlink()
    return registry, [each.version for each in registry.versions()]


def feedback_goes_the_way_of_the_records(
    service: Service, folder: Path, sent: Sequence[Asked]
) -> int:
    """And what is right becomes a label of correctness. Gives the number of answers judged."""
    first, second, _ = sent
    told = say(service, request_id=first.request_id, answer=first.text)
    assert (told["status"], told["score"]) == ("recorded", 1.0)
    assert say(service, request_id=second.request_id, verdict="wrong")["score"] == 0.0
    again = say(service, request_id=second.request_id, verdict="wrong")
    assert again["status"] == "repeated"
    other = {"request_id": second.request_id, "verdict": "right"}
    refused = httpx.post(f"{service.url}/v1/feedback", json=other)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "feedback_conflict")
    assert until(lambda: names(folder, FEEDBACK) == {first.request_id, second.request_id})
    assert until(lambda: names(folder, CORRECTNESS) == {first.request_id})
    [label] = [
        row for table in RecordStore(str(folder)).read(CORRECTNESS) for row in table.to_pylist()
    ]
    served = label["scales"].index(int(first.scale))
    assert label["correct"][served] == 1.0
    counts = service.metric("m3_feedback_total")
    assert sum(count for name, count in counts.items() if "right" in name) == 1
    assert sum(count for name, count in counts.items() if "wrong" in name) == 1
    return 2


def promotions_drop_no_request(
    service: Service, registry: Registry, versions: Sequence[str]
) -> list[Asked]:
    """Switches predictors while clients ask without a pause."""
    one, two = versions
    model = registry.versions()[0].model_identity

    def serves(version: str) -> bool:
        return any(version in name for name in service.metric("m3_predictor_info"))

    with load(service.url) as answered:
        registry.promote(one, "test")
        assert until(lambda: serves(one))
        registry.promote(two, "test")
        assert until(lambda: serves(two))
        registry.rollback(model, "test")
        assert until(lambda: serves(one))
        registry.rollback(model, "test")
        assert until(lambda: not serves(one) and not serves(two))
    assert answered.failures == []
    seen = Counter(each.predictor for each in answered.asked)
    assert {one, two} < set(seen)  # and what ships, before and after
    print(f"{len(answered.asked)} requests under four switches, none dropped: {dict(seen)}")
    return answered.asked


@dataclass
class Answered:
    """What clients were answered."""

    asked: list[Asked] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def load(url: str) -> Iterator[Answered]:
    """Clients that ask one thing after the other."""
    answered, stopping = Answered(), threading.Event()

    def client(number: int) -> None:
        while not stopping.is_set():
            try:
                answered.asked.append(ask(url, number))
            except Exception as error:
                answered.failures.append(repr(error))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def commands_sum_it_up(box: Sandbox, versions: Sequence[str], requests: int, judged: int) -> None:
    """Replayed with what decided, what was observed, and what was said."""
    for chosen in (["--predictor", versions[0]], ["--observed", versions[1]]):
        told = run("replay", *chosen, "--json", box=box)
        assert told.returncode == 0, told.stderr
        found = json.loads(told.stdout)
        assert (found["requests"], found["changed"]) == (requests, 0.0)
        assert found["served"] == found["candidate"]
        assert found["labels"] >= 3
    shown = run("replay", "--predictor", versions[0], box=box).stdout
    assert "0.0% of them would have got other scales" in shown
    assert "mean image tokens" in shown
    said = json.loads(run("feedback", "--json", box=box).stdout)
    assert (said["overall"]["answers"], said["overall"]["right"]["value"]) == (judged, 0.5)
    assert "of 2 judged answers right" in run("feedback", box=box).stdout


def read(folder: Path) -> dict[str, dict[str, Any]]:
    parts = RecordStore(str(folder)).read(REQUESTS)
    return {row["request_id"]: row for part in parts for row in part.to_pylist()}


def names(folder: Path, kind: Kind = REQUESTS) -> set[str]:
    parts = RecordStore(str(folder)).read(kind, columns=["request_id"])
    return {name for part in parts for name in part["request_id"].to_pylist()}


def say(service: Service, **what: Any) -> dict[str, Any]:
    answer = httpx.post(f"{service.url}/v1/feedback", json=what, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ask(url: str, seed: int) -> Asked:
    answer = httpx.post(f"{url}/v1/chat/completions", json=chat(picture(seed)), timeout=60)
    assert answer.status_code == 200
    return Asked(
        answer.headers["x-m3-request-id"],
        answer.headers["x-m3-scale"],
        answer.headers["x-m3-predictor"],
        answer.json()["choices"][0]["message"]["content"],
    )
