"""What another predictor would have decided: the rule that serves, on what records hold."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_backend.messages import ModelInfo
from predictor import artifact as artifacts
from predictor.artifact import Artifact
from predictor.label_records import decode as decode_labels
from predictor.predictor import Predictor
from predictor.record_store import LABELS, REQUESTS, RecordStore
from predictor.routing_records import decode, describe_question, encode
from predictor.train import fit
from router.config import RouterConfig
from router.observing import Observer
from router.records import record_of
from router.replay import Replayed, by_artifact, by_observer, milliseconds_a_token, replay
from router.service import RoutingService
from router.trace import Trace
from tests.fakes import MODEL, FakeBackend
from tests.predictor import synthetic
from tests.predictor.test_retrain import label
from tests.router.support import chat, image_part

COUNT = 40
SOURCE = synthetic.SOURCE


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return fit(synthetic.outcome_table(300), synthetic.image_table(300), target="agreement", seed=1)


@pytest.fixture(scope="module")
def serving(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("serving") / "one"
    artifacts.save(artifact, folder, "2026-01-01")
    return Predictor.load(folder)


def model() -> ModelInfo:
    return replace(
        MODEL,
        name=SOURCE.model,
        identity=SOURCE.model_identity,
        processor=SOURCE.processor,
        ladder=SOURCE.ladder,
    )


LIMITS: list[dict[str, Any]] = [
    {"m3": {"max_regret": 0.2}},
    {},
    {"m3": {"max_regret": 0.2, "min_scale": 9}},
    {"m3": {"max_scale": 9}},
    {"m3": {"max_regret": 0.2, "latency_budget_ms": 40.0}},
    {"model": "m3-144"},
]


def picture(number: int) -> bytes:
    return synthetic.encoded(synthetic.draw(number)[0])


async def served(predictor: Predictor, store: RecordStore) -> list[Trace]:
    """Traffic with all sorts of limits, two of it with two images, and its records."""
    table = synthetic.outcome_table(300)
    service = RoutingService(FakeBackend(model()), predictor, RouterConfig())
    traces, encoded = [], []
    for number in range(COUNT):
        images = [image_part(picture(number))]
        if number % 20 == 7:
            images.append(image_part(picture(number + 1), detail="low"))
        question = table.question[3 * number]
        body = chat(*images, question, **LIMITS[number % len(LIMITS)])
        trace = Trace(f"{3 * number:032x}", endpoint="/v1/chat/completions")
        answer = await service.handle(json.dumps(body).encode(), trace)
        async for _ in answer:
            pass
        traces.append(trace)
        encoded.append(encode(record_of(trace, "here", describe_question(question))))
    service.close()
    store.append(REQUESTS, decode(encoded)[0])
    return traces


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    return RecordStore(str(tmp_path_factory.mktemp("records")))


@pytest.fixture(scope="module")
def traffic(serving: Predictor, store: RecordStore) -> list[Trace]:
    traces = asyncio.run(served(serving, store))
    drawn = [at for at in range(COUNT) if at % 2 == 0]
    near = {"stratum": "threshold", "probability": 0.5}
    encoded = [label(3 * at, **(near if at % 4 else {})) for at in drawn]
    store.append(LABELS, decode_labels(encoded)[0])
    return traces


def run(store: RecordStore, artifact: Artifact) -> Replayed:
    per_token_ms = milliseconds_a_token(store, SOURCE.model_identity)
    return replay(store, by_artifact(artifact, per_token_ms), per_token_ms=per_token_ms)


def test_the_predictor_that_served_decides_as_it_did(
    traffic: list[Trace], store: RecordStore, artifact: Artifact
) -> None:
    """With floors, ceilings, forced scales, budgets and several images."""
    result = run(store, artifact)
    assert (result.requests, result.left_out, result.changed) == (COUNT, {}, 0.0)
    assert result.served == result.candidate
    scales = [scale for trace in traffic if trace.decision for scale in trace.decision.scales]
    assert len(set(scales)) >= 4
    shares = {scale: scales.count(scale) / len(scales) for scale in sorted(set(scales))}
    assert result.served.scales == pytest.approx(shares)
    assert result.regret_difference is not None
    assert result.regret_difference.value == 0.0


def test_regret_counts_by_how_seldom_a_request_was_drawn(
    traffic: list[Trace], store: RecordStore, artifact: Artifact
) -> None:
    result = run(store, artifact)
    table = synthetic.outcome_table(300)
    lost, weights = [], []
    for at in range(0, COUNT, 2):
        decision = traffic[at].decision
        assert decision is not None
        if len(decision.images) == 1:
            agrees = table.agrees[3 * at] >= 0.9
            lost.append(bool(agrees[-1] and not agrees[SOURCE.ladder.index(decision.scales[0])]))
            weights.append(1 / 0.5 if at % 4 else 1 / 0.02)
    assert result.labels == len(lost)
    assert result.uniform == sum(weight == 50 for weight in weights)
    assert result.served.regret is not None
    assert result.served.regret.value == pytest.approx(np.average(lost, weights=weights))
    assert any(lost)


def test_a_dearer_candidate_is_told_by_tokens_cost_and_regret(
    traffic: list[Trace], store: RecordStore, artifact: Artifact
) -> None:
    prices = (None,) * len(artifact.thresholds.bounds)
    careful = replace(artifact, thresholds=replace(artifact.thresholds, prices=prices))
    result = run(store, careful)
    assert result.changed > 0.2
    assert result.candidate.tokens > result.served.tokens
    assert result.candidate.regret is not None
    assert result.served.regret is not None
    assert result.candidate.regret.value < result.served.regret.value
    assert result.candidate.cost_ms is not None
    assert result.served.cost_ms is not None
    more = result.candidate.tokens - result.served.tokens
    # What a token costs is read off the records, whose prompts have a rough count of their text.
    assert result.candidate.cost_ms - result.served.cost_ms == pytest.approx(
        more * MODEL.costs.prefill_token_ms, rel=0.1
    )


async def test_what_an_observer_decided_is_summed_up_alike(
    serving: Predictor, artifact: Artifact, tmp_path: Path
) -> None:
    store = RecordStore(str(tmp_path / "observed"))
    traces = await served(serving, RecordStore(str(tmp_path / "plain")))
    observer = Observer()
    observer.use(serving)
    encoded = [
        encode(record_of(trace, "here", None, observed=observer.observe(trace))) for trace in traces
    ]
    encoded.append(encode(record_of(Trace("f" * 32), "here", None)))
    store.append(REQUESTS, decode(encoded)[0])
    for version in (serving.version, None):
        result = replay(store, by_observer(version, None))
        assert (result.requests, result.changed) == (COUNT, 0.0)
        assert result.left_out == {"not answered": 1}
        assert result.served == result.candidate
        assert result.served.cost_ms is None
        assert result.regret_difference is None
    other = replay(store, by_observer("other", None))
    assert other.left_out == {"not answered": 1, "not observed": COUNT}


def test_of_many_requests_a_sample_is_counted_and_every_label(
    traffic: list[Trace], store: RecordStore, artifact: Artifact
) -> None:
    everything = run(store, artifact)
    few = replay(store, by_artifact(artifact, None), most=10)
    assert 0 < few.requests < COUNT / 2
    assert (few.labels, few.served.regret) == (everything.labels, everything.served.regret)


def test_what_cannot_be_replayed_is_counted_by_why(
    traffic: list[Trace], artifact: Artifact, tmp_path: Path
) -> None:
    store = RecordStore(str(tmp_path))
    record = record_of(traffic[0], "here", describe_question("What?"))
    bare = replace(record.images[0], features=None)
    odd = [
        replace(record, request_id="1", model_identity="f" * 64),
        replace(record, request_id="2", code="overloaded"),
        replace(record, request_id="3", endpoint="/v1/route"),
        replace(record, request_id="4", images=(bare,)),
        replace(record, request_id="5", asks=None),
    ]
    store.append(REQUESTS, decode([encode(each) for each in odd])[0])
    result = run(store, artifact)
    assert result.requests == 0
    assert result.left_out == {"another model": 1, "not answered": 2, "without features": 2}


def test_milliseconds_are_not_made_up(tmp_path: Path) -> None:
    assert milliseconds_a_token(RecordStore(str(tmp_path)), None) is None
