"""Labels that say how probable an outcome was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from predictor.chances import chances
from predictor.features import feature_names
from predictor.query_features import QueryProjection
from predictor.train import Part, learn, log_loss, part_of
from tests.predictor import synthetic

SUCCESS = np.array([[False, True, True], [True, False, False]])
LOGPROB = np.log([[0.2, 0.6, 0.9], [0.3, 0.8, 1.0]])


def test_agreement_is_as_probable_as_the_finest_answer() -> None:
    assert np.allclose(chances(SUCCESS, LOGPROB, "agreement"), [[0.2, 0.6, 0.9], [0.3, 0.8, 1.0]])


def test_a_wrong_finest_answer_leaves_the_rest_to_the_right_one() -> None:
    assert np.allclose(chances(SUCCESS, LOGPROB, "correctness"), [[0.2, 0.6, 0.9], [0.7, 0, 0]])


def test_where_nobody_has_asked_what_came_about_stands() -> None:
    logprob = LOGPROB.copy()
    logprob[0] = np.nan
    for target in ("agreement", "correctness"):
        assert np.array_equal(chances(SUCCESS, logprob, target)[0], [0, 1, 1])


def parts() -> tuple[Part, Part, NDArray[np.float64]]:
    """Of traffic whose true probabilities are known."""
    table = synthetic.outcome_table(240)
    truth = np.array(
        [
            synthetic.chances(scene, group)
            for _, scene, _ in synthetic.pictures(240)
            for group in ("read", "count", "ground")
        ]
    )
    projection = QueryProjection.fit(table.question.tolist())
    part = part_of(table, synthetic.image_table(240), projection, "correctness")
    half = np.arange(len(table)) % 2 == 0

    def rows(kept: NDArray[np.bool_]) -> Part:
        values = (part.features, part.success, part.images, part.shares)
        return Part(*(value[kept] for value in values))

    return rows(half), rows(~half), truth[half]


def test_the_better_labels_are_learned_from() -> None:
    train, calibrate, truth = parts()
    names = feature_names(train.features.shape[1] - len(feature_names(0)))

    def loss(one: Part) -> float:
        model, calibration = learn(one, calibrate, names, synthetic.LADDER)
        p = calibration.apply(model.predict(calibrate.features))
        return log_loss(p, calibrate.success)

    alone = loss(train)
    informed = loss(replace(train, chances=truth))
    misled = loss(replace(train, chances=1 - truth))
    assert informed < alone
    assert misled == alone
