"""The policies that the router is judged against, as far as a table of outcomes allows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from predictor.artifact import Artifact
from predictor.calibration import BetaCalibration
from predictor.features import feature_names
from predictor.image_table import ImageTable
from predictor.policies import (
    Policy,
    at_random,
    binned,
    by_key,
    by_probability,
    cascade_by_agreement,
    cascade_by_confidence,
)
from predictor.query_features import query_features
from predictor.records import OutcomeTable, Target
from predictor.success import SuccessModel
from predictor.train import learn, part_of, token_shares

# What a model that sees only one of the two may not know.
_OF_THE_QUESTION = ("query.", "cross.", "named.")
_HALVES = {"image_only": "image only", "query_only": "question only"}
_KEYWORDS = ("query.form_", "query.about_")
_MEASURED = {"resolution": "file.log_pixels", "edge_density": "edges.full"}


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What the scales said, for cascades.

    Args:
        text: N×S answers.
        confidence: N×S probability of the finest scale's answer at each scale; None if unknown.
    """

    text: NDArray[np.object_]
    confidence: NDArray[np.float64] | None


def read_answers(path: Path, table: OutcomeTable) -> Answers:
    """The answers of a table's samples, from the file it was read from."""
    columns = pq.read_table(path, columns=["sample", "scale", "answer", "reference_logprob"])
    row = {name: at for at, name in enumerate(table.sample)}
    scale = {name: at for at, name in enumerate(table.source.ladder.scales)}
    text = np.full(table.correct.shape, "", dtype=object)
    confidence = np.full(table.correct.shape, np.nan)
    for entry in columns.to_pylist():
        if (at := row.get(entry["sample"])) is not None:
            text[at, scale[entry["scale"]]] = entry["answer"]
            if entry["reference_logprob"] is not None:
                confidence[at, scale[entry["scale"]]] = np.exp(entry["reference_logprob"])
    return Answers(text, None if np.isnan(confidence).any() else confidence)


class Peers:
    """Baselines that have learned what they can from the training part.

    Args:
        train, calibrate: parts of the outcomes; without training samples there are only those
            baselines that need none.
    """

    def __init__(
        self,
        train: OutcomeTable,
        calibrate: OutcomeTable,
        images: ImageTable,
        artifact: Artifact,
        judge: Target,
        *,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._train = train
        self._artifact = artifact
        self._judge: Target = judge
        self._names = feature_names(artifact.projection.size)
        self._matrix = None
        self._halves: dict[str, tuple[SuccessModel, BetaCalibration]] = {}
        if not len(train):
            return
        own = part_of(train, images, artifact.projection, artifact.target)
        self._matrix = own.features
        if not len(calibrate):
            return
        held_out = part_of(calibrate, images, artifact.projection, artifact.target)
        for done, half in enumerate(_HALVES):
            progress(done, len(_HALVES))
            model, calibration = learn(
                replace(own, features=self._blank(own.features, half)),
                replace(held_out, features=self._blank(held_out.features, half)),
                self._names,
                train.source.ladder,
                seed=seed,
            )
            self._halves[half] = model, calibration

    def policies(
        self,
        part: OutcomeTable,
        matrix: NDArray[np.float32],
        p_success: NDArray[np.float64],
        answers: Answers,
    ) -> list[Policy]:
        """The router first, then its peers, on the samples of a part.

        Args:
            matrix: N×F features of these samples.
            p_success: N×S, the router's.
            answers: of these samples.
        """
        shares = token_shares(part)
        router = by_probability("router", "router", p_success, shares)
        found = [router, *self._lookups(part, matrix, shares)]
        for half, (model, calibration) in self._halves.items():
            p = calibration.apply(model.predict(self._blank(matrix, half)))
            found.append(by_probability(half, _HALVES[half], p, shares))
        if answers.confidence is not None:
            found.append(cascade_by_confidence(answers.confidence))
        return [*found, cascade_by_agreement(answers.text), at_random(router)]

    def _lookups(
        self, part: OutcomeTable, matrix: NDArray[np.float32], shares: NDArray[np.float64]
    ) -> Iterator[Policy]:
        if self._matrix is None:
            return
        success = self._train.success(self._judge)
        families = self._train.group, success
        yield by_key("family_lookup", "knows the family by name", families, part.group, shares)
        asked = _keywords(self._train.question), success
        yield by_key("keywords", "list of keywords", asked, _keywords(part.question), shares)
        for name, feature in _MEASURED.items():
            column = self._names.index(feature)
            keys, known = binned(
                self._matrix[:, column].astype(np.float64), matrix[:, column].astype(np.float64)
            )
            yield by_key(name, name.replace("_", " "), (keys, success), known, shares)

    def _blank(self, matrix: NDArray[np.float32], half: str) -> NDArray[np.float32]:
        """The matrix with zeros in the place of what that half may not know."""
        asked = np.array([name.startswith(_OF_THE_QUESTION) for name in self._names])
        typed = np.array([name.startswith("query.") for name in self._names])
        hidden = asked if half == "image_only" else ~typed
        blank = matrix.copy()
        blank[:, hidden] = 0
        return blank


def _keywords(questions: Sequence[str] | NDArray[np.object_]) -> NDArray[np.object_]:
    """Which of the hand-made topics and forms a question has, as one key."""
    keys = np.empty(len(questions), dtype=object)
    for at, question in enumerate(questions):
        features = query_features(question)
        keys[at] = " ".join(
            name for name, value in features.items() if value and name.startswith(_KEYWORDS)
        )
    return keys
