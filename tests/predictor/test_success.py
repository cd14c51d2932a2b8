from __future__ import annotations

import numpy as np
import pytest

from m3_backend.scales import ScaleLadder
from predictor.artifact import Artifact
from predictor.features import feature_names
from predictor.image_table import ImageTable
from predictor.records import OutcomeTable
from predictor.success import SuccessModel
from predictor.train import design_matrix, fit, log_loss


def test_it_learns_which_scale_is_enough(
    artifact: Artifact, outcomes: OutcomeTable, images: ImageTable
) -> None:
    test = outcomes.part("test")
    p = artifact.model.predict(design_matrix(test, images, artifact.projection))
    success = test.success("correctness")

    train = outcomes.part("train")
    per_group = {
        group: train.success("correctness")[train.group == group].mean(axis=0)
        for group in set(train.group)
    }
    lookup = np.stack([per_group[group] for group in test.group])
    assert log_loss(p, success) < 0.75 * log_loss(lookup, success)


def test_one_sample_is_predicted_as_among_many(
    artifact: Artifact, outcomes: OutcomeTable, images: ImageTable
) -> None:
    matrix = design_matrix(outcomes.take(np.arange(20)), images, artifact.projection)
    together = artifact.model.predict(matrix)
    alone = np.concatenate([artifact.model.predict(row[None]) for row in matrix])
    assert together.tolist() == alone.tolist()


def test_a_model_predicts_for_a_ladder_it_was_not_trained_on(
    artifact: Artifact, outcomes: OutcomeTable, images: ImageTable
) -> None:
    matrix = design_matrix(outcomes.take(np.arange(20)), images, artifact.projection)
    model = artifact.model
    other = SuccessModel(model.booster, model.names, ScaleLadder((1, 16, 36, 576)))
    assert (
        other.predict(matrix)[:, [0, 2, 3]].tolist() == model.predict(matrix)[:, [0, 2, 4]].tolist()
    )


def test_the_same_data_and_seed_give_the_same_trees(
    outcomes: OutcomeTable, images: ImageTable
) -> None:
    few = outcomes.take(np.isin(outcomes.image, np.unique(outcomes.image)[:250]))
    first, again, other = (
        fit(few, images, target="agreement", seed=seed).model.to_text() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_progress_ends_at_its_total(outcomes: OutcomeTable, images: ImageTable) -> None:
    few = outcomes.take(np.isin(outcomes.image, np.unique(outcomes.image)[:250]))
    seen: list[tuple[str, int, int]] = []
    fit(few, images, target="correctness", progress=lambda *step: seen.append(step))
    for stage in ("trees", "calibration"):
        steps = [(done, total) for name, done, total in seen if name == stage]
        assert steps[-1][0] == steps[-1][1]
        assert steps == sorted(steps)


def test_text_that_is_no_model_is_refused(artifact: Artifact) -> None:
    ladder = artifact.source.ladder
    with pytest.raises(ValueError, match="not a LightGBM model"):
        SuccessModel.from_text("tree\nversion=v4\n", artifact.model.names, ladder)
    with pytest.raises(ValueError, match="trained on other features"):
        names = feature_names(artifact.projection.size + 1)
        SuccessModel.from_text(artifact.model.to_text(), names, ladder)
