"""A predictor trained once on synthetic outcomes, shared by the tests of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from predictor.artifact import Artifact
from predictor.image_table import ImageTable
from predictor.records import OutcomeTable
from predictor.train import fit
from tests.predictor import synthetic

PICTURES = 600


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """The models are tiny: a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def outcomes() -> OutcomeTable:
    return synthetic.outcome_table(PICTURES)


@pytest.fixture(scope="session")
def images() -> ImageTable:
    return synthetic.image_table(PICTURES)


@pytest.fixture(scope="session")
def artifact(outcomes: OutcomeTable, images: ImageTable) -> Artifact:
    return fit(outcomes, images, target="correctness", seed=3)
