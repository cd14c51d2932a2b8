"""A predictor trained once on synthetic outcomes, shared by the tests of this room."""

from __future__ import annotations

import pytest

from predictor.artifact import Artifact
from predictor.image_table import ImageTable
from predictor.records import OutcomeTable
from predictor.train import fit
from tests.predictor import synthetic

PICTURES = 600


@pytest.fixture(scope="session")
def outcomes() -> OutcomeTable:
    return synthetic.outcome_table(PICTURES)


@pytest.fixture(scope="session")
def images() -> ImageTable:
    return synthetic.image_table(PICTURES)


@pytest.fixture(scope="session")
def artifact(outcomes: OutcomeTable, images: ImageTable) -> Artifact:
    return fit(outcomes, images, target="correctness", seed=3)
