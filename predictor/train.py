"""Outcomes in, artefact out: learn on some pictures, calibrate and certify on others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_backend.scales import ScaleLadder
from predictor import artifact as artifacts
from predictor.artifact import Artifact
from predictor.calibration import BetaCalibration, certify, expected_calibration_error
from predictor.chances import chances
from predictor.drift import Reference, reference_names
from predictor.errors import OutcomesError
from predictor.features import extract, feature_names
from predictor.image_table import ImageTable, open_images
from predictor.query_features import QueryProjection
from predictor.records import OutcomeSource, OutcomeTable, Split, Target, read_outcomes
from predictor.success import SuccessModel, fit_success

Progress = Callable[[str, int, int], None]

FEWEST_IMAGES = 20
USED_SPLITS: tuple[Split, ...] = ("train", "calibrate", "threshold")


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The samples of one split, as numbers.

    Args:
        features: N×F, as `features.extract` gives them with one projection.
        success: N×S.
        images: N names.
        shares: N×S image tokens as a share of the finest scale's.
        chances: N×S, how probable each success was; None where nobody knows.
        weights: N, in learning; None weighs all alike.
    """

    features: NDArray[np.float32]
    success: NDArray[np.bool_]
    images: NDArray[np.object_]
    shares: NDArray[np.float64]
    chances: NDArray[np.float64] | None = None
    weights: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.features)


def train(
    outcomes: Path,
    images: Path,
    out: Path,
    *,
    target: Target = "agreement",
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> str:
    """Train a predictor and write its artefact.

    Args:
        outcomes: table written by `label`.
        images: the table of image features beside it, or the folder of its pictures.
        out: folder to write; an artefact already there is replaced.
        target: what success means.
        progress: called with (stage, done, total).

    Returns:
        The artefact's version.

    Raises:
        ArtifactError: `out` holds something that is not an artefact.
        OutcomesError: a table that cannot be used, or a split with too few pictures.
    """
    artifacts.require_replaceable(out)
    table = read_outcomes(outcomes)
    features = open_images(
        images, table.image.tolist(), lambda done, total: progress("image features", done, total)
    )
    artifact = fit(table, features, target=target, seed=seed, progress=progress)
    return artifacts.save(artifact, out, clock().isoformat(timespec="seconds"))


def fit(
    table: OutcomeTable,
    images: ImageTable,
    *,
    target: Target,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Artifact:
    """Train on outcomes in memory. The same table and seed give the same artefact."""
    tables: dict[Split, OutcomeTable] = {split: _part(table, split) for split in USED_SPLITS}
    projection = QueryProjection.fit(tables["train"].question.tolist(), seed=seed)
    parts = {split: part_of(own, images, projection, target) for split, own in tables.items()}
    return fit_parts(
        parts,
        projection,
        table.source,
        target=target,
        outcomes=table.content_hash(),
        seed=seed,
        progress=progress,
    )


def fit_parts(
    parts: Mapping[Split, Part],
    projection: QueryProjection,
    source: OutcomeSource,
    *,
    target: Target,
    outcomes: str,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Artifact:
    """Learn on one part, calibrate on another, certify on a third.

    Args:
        parts: by split, of USED_SPLITS.
        projection: that the parts' features were made with.
        outcomes: hash of what they were made from.
    """
    train_part, calibrate_part, threshold_part = (parts[split] for split in USED_SPLITS)
    names = feature_names(projection.size)
    model, calibration = learn(
        train_part,
        calibrate_part,
        names,
        source.ladder,
        seed=seed,
        progress=lambda done, total: progress("trees", done, total),
    )

    progress("calibration", 1, 2)
    held_out = calibration.apply(model.predict(threshold_part.features))
    success = threshold_part.success
    thresholds = certify(held_out, success, threshold_part.images, threshold_part.shares)
    progress("calibration", 2, 2)
    compared = np.hstack((threshold_part.features, held_out)).astype(np.float32)
    return Artifact(
        source=source,
        target=target,
        projection=projection,
        model=model,
        calibration=calibration,
        thresholds=thresholds,
        outcomes=outcomes,
        metrics={
            "train_samples": float(len(train_part)),
            "calibrate_samples": float(len(calibrate_part)),
            "threshold_samples": float(len(threshold_part)),
            "trees": float(model.booster.num_trees()),
            "log_loss": log_loss(held_out, success),
            "calibration_error": expected_calibration_error(held_out, success),
        },
        reference=Reference.of(reference_names(names, source.ladder.scales), compared),
    )


def learn(
    train_part: Part,
    calibrate_part: Part,
    names: Sequence[str],
    ladder: ScaleLadder,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[SuccessModel, BetaCalibration]:
    """A model of success and its calibration. It learns from what came about or from how probable
    that was: whichever foretells better what came about on the calibration part.

    Args:
        progress: called with (done, total).
    """
    labels = [train_part.success.astype(np.float64)]
    if train_part.chances is not None and (train_part.chances != train_part.success).any():
        labels.append(train_part.chances)
    found = []
    for at, own in enumerate(labels):
        model = fit_success(
            train_part.features,
            own,
            train_part.images,
            names,
            ladder,
            seed=seed,
            weights=train_part.weights,
            progress=lambda done, total, at=at: progress(at * total + done, len(labels) * total),  # type: ignore[misc]
        )
        raw = model.predict(calibrate_part.features)
        calibration = BetaCalibration.fit(raw, calibrate_part.success)
        loss = log_loss(calibration.apply(raw), calibrate_part.success)
        found.append((loss, at, model, calibration))
    *_, model, calibration = min(found, key=lambda each: each[:2])
    return model, calibration


def part_of(
    table: OutcomeTable, images: ImageTable, projection: QueryProjection, target: Target
) -> Part:
    """A table's samples as numbers."""
    success = table.success(target)
    return Part(
        design_matrix(table, images, projection),
        success,
        table.image,
        token_shares(table),
        chances(success, table.reference_logprob, target),
    )


def design_matrix(
    table: OutcomeTable, images: ImageTable, projection: QueryProjection
) -> NDArray[np.float32]:
    """N×F features of the samples of a table, row by row what serving computes."""
    rows = images.rows(table.image)
    vectors = [
        extract(row, question, projection).values
        for row, question in zip(rows, table.question, strict=True)
    ]
    return np.stack(vectors)


def token_shares(table: OutcomeTable) -> NDArray[np.float64]:
    """N×S image tokens as a share of the finest scale's, what the selection rule prices."""
    return table.image_tokens / table.image_tokens[:, -1:]


def log_loss(p_success: NDArray[np.float64], success: NDArray[np.bool_]) -> float:
    """Mean negative log-likelihood in nats."""
    likelihood = np.where(success, p_success, 1 - p_success)
    return float(-np.log(np.maximum(likelihood, 1e-12)).mean())


def _part(table: OutcomeTable, split: Split) -> OutcomeTable:
    part = table.part(split)
    count = len(set(part.image))
    if count < FEWEST_IMAGES:
        raise OutcomesError(
            f"The split {split!r} has {count} pictures, at least {FEWEST_IMAGES} are needed; "
            "label more, or assign splits again."
        )
    return part
