from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3_backend.costs import CostModel
from m3_backend.errors import InvalidImageError
from m3_backend.messages import ImageInput, ModelInfo, digest_of
from m3_backend.scales import ScaleLadder
from predictor import artifact as artifacts
from predictor import predictor as serving
from predictor.artifact import Artifact
from predictor.errors import ArtifactError
from predictor.image_table import ImageTable
from predictor.predictor import Predictor
from predictor.records import OutcomeTable
from predictor.train import design_matrix
from tests.predictor.synthetic import COUNT, GROUND, READ, SOURCE, draw, encoded

INFO = ModelInfo(
    name="imagined",
    identity=SOURCE.model_identity,
    processor=SOURCE.processor,
    ladder=SOURCE.ladder,
    tiling=None,
    max_context=2048,
    costs=CostModel(1.0, 1.0, 0.1, 1.0),
)


def picture(seed: int) -> ImageInput:
    data = encoded(draw(seed)[0])
    return ImageInput(data, digest_of(data), 336, 336)


@pytest.fixture
def predictor(artifact: Artifact, tmp_path: Path) -> Predictor:
    artifacts.save(artifact, tmp_path / "p", "2026-01-01T00:00:00+00:00")
    return Predictor.load(tmp_path / "p")


def test_it_serves_what_was_evaluated(
    predictor: Predictor, artifact: Artifact, outcomes: OutcomeTable, images: ImageTable
) -> None:
    few = outcomes.take(np.arange(0, 60, 7))
    offline = artifact.calibration.apply(
        artifact.model.predict(design_matrix(few, images, artifact.projection))
    )
    for p, name, question in zip(offline, few.image, few.question, strict=True):
        served = predictor.predict(picture(int(name.removesuffix(".png"))), question)
        assert served.p_success == tuple(p.tolist())


def test_it_says_what_it_is(predictor: Predictor, artifact: Artifact) -> None:
    assert len(predictor.version) == 16
    assert predictor.ladder == ScaleLadder()
    assert predictor.model_identity == SOURCE.model_identity
    assert predictor.target == "correctness"
    assert predictor.threshold(0.2) == artifact.thresholds.at(0.2)
    assert predictor.threshold(0.0) is None


def test_the_same_picture_with_other_questions_gets_other_probabilities(
    predictor: Predictor,
) -> None:
    tiny_text = next(seed for seed in range(600, 700) if draw(seed)[1].glyph < 12)
    reading = predictor.predict(picture(tiny_text), READ[0])
    ground = predictor.predict(picture(tiny_text), GROUND[0])
    assert reading.p_success[2] < 0.3
    assert ground.p_success[0] > 0.9
    assert reading.features is not None
    assert reading.features.names.index("file.aspect") == 1


def test_image_features_are_computed_once_per_picture_and_salt(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[bytes] = []
    compute = serving.image_vector
    monkeypatch.setattr(
        serving, "image_vector", lambda data: (computed.append(data), compute(data))[1]
    )
    for question in (*READ, *COUNT):
        predictor.predict(picture(1), question)
    assert len(computed) == 1
    predictor.predict(picture(2), READ[0])
    predictor.predict(picture(1), READ[0], salt="tenant")
    assert len(computed) == 3


def test_the_least_recently_used_picture_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[bytes] = []
    monkeypatch.setattr(
        serving, "image_vector", lambda data: (computed.append(data), np.zeros(1, np.float32))[1]
    )
    cache = serving._ImageVectors(2)
    one, two, three = (ImageInput(name, name.decode(), 1, 1) for name in (b"1", b"2", b"3"))
    for image in (one, two, one, three, one, two):
        cache.get(image, "")
    assert computed == [b"1", b"2", b"3", b"2"]


def test_a_broken_picture_is_the_callers_error(predictor: Predictor) -> None:
    broken = replace(picture(1), data=picture(1).data[:500])
    for _ in range(2):  # and its failure is not remembered as features
        with pytest.raises(InvalidImageError):
            predictor.predict(broken, READ[0])
    assert predictor.predict(picture(1), READ[0]).p_success


def test_threads_share_a_predictor(predictor: Predictor) -> None:
    work = [(picture(seed), question) for seed in range(6) for question in (*READ, *GROUND)] * 4
    alone = [predictor.predict(*each).p_success for each in work]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: predictor.predict(*each).p_success, work))
    assert together == alone


def test_a_predictor_serves_only_its_own_model(predictor: Predictor) -> None:
    predictor.require_model(INFO)
    for other in (
        replace(INFO, identity="9" * 64),
        replace(INFO, processor="9" * 64),
        replace(INFO, ladder=ScaleLadder((1, 576))),
    ):
        with pytest.raises(ArtifactError, match="was trained for imagined"):
            predictor.require_model(other)
