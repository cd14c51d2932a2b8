"""Retraining on labels of imagined traffic: better ones promoted, worse ones refused, and why."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from predictor import artifact as artifacts
from predictor import retrain as module
from predictor.errors import OutcomesError
from predictor.features import extract, extract_recorded
from predictor.image_table import ImageTable
from predictor.label_records import decode, encode
from predictor.predictor import Predictor
from predictor.query_features import QueryProjection
from predictor.record_store import LABELS, RecordStore
from predictor.records import OutcomeTable
from predictor.registry import Registry
from predictor.retrain import Result, fit, judge, retrain
from predictor.routing_records import IMAGE_FEATURES, QUESTION_FEATURES, describe_question
from predictor.samples import Samples, mixed, of_labels, of_outcomes
from predictor.train import fit as fit_on_text
from tests.predictor import synthetic

COUNT = 700
BOUND = 0.1
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@cache
def traffic() -> tuple[OutcomeTable, ImageTable]:
    """What was asked, three questions about each picture, and what became of it."""
    return synthetic.outcome_table(COUNT), synthetic.image_table(COUNT)


def label(row: int, **changes: object) -> bytes:
    """What the recorder would be given of one sample of the imagined traffic."""
    table, images = traffic()
    asks = describe_question(table.question[row])
    known: dict[str, object] = {
        "request_id": f"{row:032x}",
        "at": round((NOW.timestamp() + row) * 1e6),
        "labelled_at": round((NOW.timestamp() + row + 5) * 1e6),
        "stratum": "uniform",
        "probability": 0.02,
        "pressure": 0.0,
        "served": synthetic.SOURCE.model,
        "model_identity": synthetic.SOURCE.model_identity,
        "processor": synthetic.SOURCE.processor,
        "replica": "replica",
        "predictor": None,
        "bound": 0.05,
        "scale": 576,
        "reason": "no_predictor",
        "scales": list(synthetic.LADDER.scales),
        "grid_side": synthetic.LADDER.grid_side,
        "tokens_per_scale": list(synthetic.LADDER.scales),
        "p_success": None,
        "agrees": table.agrees[row].tolist(),
        "reference_logprob": [0.0] * 5,
        "answer_tokens": 3,
        "ms": 5.0,
        "image": table.image[row],
        "image_features": IMAGE_FEATURES,
        "features": images.values[row // 3],
        "question_features": QUESTION_FEATURES,
        "question_values": asks.values,
        "named_colours": asks.colours,
        "ngram_buckets": asks.buckets,
        "ngram_counts": asks.counts,
    }
    return encode(known | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RecordStore:
    """The labels of all imagined traffic."""
    made = RecordStore(str(tmp_path_factory.mktemp("records")))
    table, broken = decode([label(row) for row in range(3 * COUNT)])
    assert broken == []
    made.append(LABELS, table)
    made.append(LABELS, table.slice(0, 100))  # as after a recorder was killed
    return made


@pytest.fixture(scope="module")
def samples(store: RecordStore) -> Samples:
    return of_labels(store)


@pytest.fixture(scope="module")
def candidate(samples: Samples) -> artifacts.Artifact:
    return fit(samples)


def shuffled(samples: Samples) -> Samples:
    """The same with the labels of other samples."""
    rows = np.random.default_rng(0).permutation(len(samples))
    return replace(samples, success=samples.success[rows], chances=samples.chances[rows])


def test_labels_are_read_as_they_were_written(store: RecordStore, samples: Samples) -> None:
    table = synthetic.outcome_table(COUNT)
    assert len(samples) == 3 * COUNT
    assert samples.source == synthetic.SOURCE
    assert np.array_equal(samples.success, table.success("agreement"))
    assert np.array_equal(samples.images, table.image)
    assert np.array_equal(samples.splits, table.split)  # made of nothing but the image's name
    assert set(samples.groups) >= {"text"}


def test_features_of_a_record_are_those_that_serving_computes() -> None:
    table, images = synthetic.outcome_table(60), synthetic.image_table(60)
    questions = [*table.question, "Is the red square left of the blue one?", ""]
    counted = [
        dict(zip(a.buckets, a.counts, strict=True)) for a in map(describe_question, questions)
    ]
    for projection in (QueryProjection.fit(questions), QueryProjection.fit_counts(counted)):
        for question in questions:
            served = extract(images.values[0], question, projection)
            recorded = extract_recorded(images.values[0], describe_question(question), projection)
            assert served.names == recorded.names
            assert np.array_equal(served.values, recorded.values)


def test_the_first_predictor_is_trained_of_traffic_and_served(
    samples: Samples, tmp_path: Path
) -> None:
    registry = Registry(tmp_path)
    result = retrain(samples, registry, bound=BOUND)
    assert result.reasons == []
    assert result.promoted
    verdict = result.judged["recent"]
    assert verdict.serving is None
    assert verdict.gain > 0.4
    serving = Predictor.load(registry.link(synthetic.SOURCE.model_identity))
    assert serving.version == result.version
    assert serving.threshold(BOUND) is not None
    again = retrain(samples, registry, bound=BOUND)
    assert again.version == result.version
    assert not again.promoted  # and it is not better than itself
    assert "not better" in again.reasons[0]


def test_a_candidate_of_shuffled_labels_is_refused(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learned nonsense and is judged on what really happened."""
    registry = Registry(tmp_path)
    first = retrain(samples, registry, bound=BOUND)
    real = fit(samples)
    worse = fit(shuffled(samples))
    monkeypatch.setattr(module, "fit", lambda *_, **__: worse)
    result = retrain(samples, registry, bound=BOUND)
    assert not result.promoted
    assert any("not better" in reason for reason in result.reasons)
    current = registry.current(synthetic.SOURCE.model_identity)
    assert current is not None
    assert current.version == first.version
    verdict = judge(real, worse, samples.part("test"), BOUND, None, 0)
    assert verdict.better, verdict.refused


def test_trained_on_half_of_the_questions_it_is_replaced_by_one_of_all(
    samples: Samples, tmp_path: Path
) -> None:
    half = samples.take(samples.groups != "text")
    registry = Registry(tmp_path)
    version = retrain(half, registry, bound=BOUND).version
    registry.promote(version, "the start")
    result = retrain(samples, registry, bound=BOUND)
    assert result.promoted, result.reasons
    assert result.version != version
    history = registry.history(synthetic.SOURCE.model_identity)
    assert "tokens saved at equal regret" in history[-1].reason


def test_one_that_promises_something_else_is_judged_alike(
    samples: Samples, candidate: artifacts.Artifact, tmp_path: Path
) -> None:
    shipped = tmp_path / "shipped"
    artifacts.save(replace(candidate, target="correctness"), shipped, "2026-01-01")
    result = retrain(samples, Registry(tmp_path / "registry"), shipped=shipped, bound=BOUND)
    assert result.judged["recent"].serving == result.judged["recent"].candidate
    assert (result.target, result.instead_of) == ("agreement", "correctness")
    assert not result.promoted  # it decides alike


def test_a_regression_set_counts_what_got_worse_only(
    samples: Samples, candidate: artifacts.Artifact, tmp_path: Path
) -> None:
    everything = of_outcomes(
        synthetic.outcome_table(COUNT), synthetic.image_table(COUNT), "agreement"
    )
    result = retrain(samples, Registry(tmp_path), regression=everything, bound=BOUND)
    assert result.promoted, result.reasons
    assert set(result.judged) == {"recent", "regression"}
    hopeless = replace(everything, success=np.tile([False] * 4 + [True], (len(everything), 1)))
    refused = retrain(samples, Registry(tmp_path / "other"), regression=hopeless, bound=BOUND)
    assert not refused.promoted
    assert all(reason.startswith("regression: regret") for reason in refused.reasons)


def test_a_candidate_may_be_looked_at_without_serving(samples: Samples, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    result: Result = retrain(samples, registry, bound=BOUND, promote=False)
    assert (result.promoted, result.reasons) == (False, [])
    assert registry.current(synthetic.SOURCE.model_identity) is None
    assert (result.folder / "retrain.json").is_file()


def test_the_same_labels_and_seed_give_the_same_version(
    samples: Samples, candidate: artifacts.Artifact, tmp_path: Path
) -> None:
    turned = samples.take(np.arange(len(samples))[::-1])
    assert turned.content_hash() == samples.content_hash()
    one = artifacts.save(candidate, tmp_path / "one", "2026-01-01")
    other = artifacts.save(fit(samples), tmp_path / "other", "2026-01-02")
    assert one == other
    assert artifacts.save(fit(samples, seed=1), tmp_path / "third", "2026-01-01") != one


def test_only_the_uniform_stratum_certifies(samples: Samples) -> None:
    near = replace(samples, uniform=np.zeros(len(samples), dtype=bool))
    with pytest.raises(OutcomesError, match="uniform"):
        fit(near)


def test_labels_weigh_by_how_seldom_they_are_drawn(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    often = {"stratum": "threshold", "probability": 0.5}
    store.append(LABELS, decode([label(0), label(1, **often), label(2)])[0])
    samples = of_labels(store)
    assert samples.uniform.tolist() == [True, False, True]
    assert samples.weights[0] / samples.weights[1] == pytest.approx(25)
    assert samples.weights.mean() == pytest.approx(1)


def test_labels_of_other_models_releases_and_times_are_left_out(tmp_path: Path) -> None:
    store = RecordStore(str(tmp_path))
    encoded = [
        label(0),
        label(1, model_identity="f" * 64),
        label(2, image_features="image-0"),
        label(3),
    ]
    store.append(LABELS, decode(encoded)[0])
    wanted = synthetic.SOURCE.model_identity
    assert of_labels(store).names.tolist() == [f"{row:032x}" for row in (0, 3)]
    late = of_labels(store, since=NOW + timedelta(seconds=2), model_identity=wanted)
    assert late.names.tolist() == [f"{3:032x}"]
    with pytest.raises(OutcomesError, match="no labels of that model"):
        of_labels(store, model_identity="e" * 64)
    with pytest.raises(OutcomesError, match="no labels"):
        of_labels(RecordStore(str(tmp_path / "empty")))


def test_what_is_no_label_costs_no_other() -> None:
    broken = [b"", b"[]", label(1, scale="fine"), label(1, image=None), label(1, grid_side=2**40)]
    table, positions = decode([label(0), *broken, label(2)])
    assert positions == [1, 2, 3, 4, 5]
    assert table["request_id"].to_pylist() == [f"{row:032x}" for row in (0, 2)]


def test_of_many_labels_as_many_are_read_as_fit(store: RecordStore) -> None:
    few = of_labels(store, most=500)
    assert 380 < len(few) < 620
    assert few.names.tolist() == of_labels(store, most=500).names.tolist()


def test_sources_of_one_model_are_mixed_by_weight(samples: Samples) -> None:
    outcomes = of_outcomes(synthetic.outcome_table(60), synthetic.image_table(60), "agreement")
    both = mixed([(samples, 1.0), (outcomes, 0.25)])
    assert len(both) == len(samples) + len(outcomes)
    assert set(both.weights[len(samples) :]) == {0.25}
    other = replace(outcomes, source=replace(outcomes.source, model_identity="f" * 64))
    with pytest.raises(OutcomesError, match="different models"):
        mixed([(samples, 1.0), (other, 1.0)])


def test_one_trained_on_text_can_be_judged_by_records(samples: Samples) -> None:
    """What ships knows n-grams, records know buckets."""
    shipped = fit_on_text(
        synthetic.outcome_table(COUNT), synthetic.image_table(COUNT), target="agreement"
    )
    verdict = judge(shipped, None, samples.part("test"), BOUND, None, 0)
    assert verdict.better, verdict.refused
