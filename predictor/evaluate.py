"""What a predictor is worth on pictures it never saw: cost, accuracy, regret, and its peers.

Everything is computed from the outcomes, which hold every scale's answer: no model runs here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from m3_backend.costs import ModelShape
from predictor import artifact as artifacts
from predictor.analysis_costs import PAPER_TEXT_TOKENS
from predictor.choices import choices, write_choices
from predictor.errors import OutcomesError
from predictor.evaluation_report import render, write_plot
from predictor.image_table import open_images
from predictor.judgement import Floats, judge_part
from predictor.noise_null import NoiseNull, noise_null
from predictor.null_table import NullTable
from predictor.peers import Peers, read_answers
from predictor.records import OutcomeTable, Split, Target, read_outcomes
from predictor.train import design_matrix

REPORT = "evaluation.json"
PAGE = "evaluation.html"
PLOT = "frontier.png"
CHOICES = "choices.parquet"

Progress = Callable[[str, int, int], None]


def evaluate(
    artifact: Path,
    outcomes: Path,
    images: Path,
    out: Path,
    *,
    null: NullTable | None = None,
    shape: ModelShape | None = None,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Judge an artefact on the test and shifted parts of some outcomes.

    Writes `evaluation.json`, `evaluation.html`, `frontier.png` and `choices.parquet` (of the test
    part) into `out` and returns the first one's content.

    Args:
        images: the table of image features beside the outcomes, or the folder of the pictures.
        null: the noise null, to tell luck from missing signal.
        shape: the language model's shape, for floating-point operations.
        seed: of the baselines that are trained here and of the bootstrap.

    Raises:
        ArtifactError: a folder that is not a predictor of this release.
        OutcomesError: outcomes of another model than the predictor's, or without a test part.
    """
    loaded, version = artifacts.load(artifact)
    table = read_outcomes(outcomes)
    if table.source != loaded.source:
        raise OutcomesError(
            f"The predictor was trained for {loaded.source.model} and {outcomes} was answered by "
            f"{table.source.model}, or by other weights of it; label again with one checkpoint."
        )
    evaluated_on = table.content_hash()
    judge, table, unlabelled = _judged_by(table)
    if not len(table.part("test")):
        known = " with ground truth" if unlabelled else ""
        raise OutcomesError(f"{outcomes} has no samples{known} in the split 'test'.")
    features = open_images(
        images, table.image.tolist(), lambda done, total: progress("image features", done, total)
    )
    peers = Peers(
        table.part("train"),
        table.part("calibrate"),
        features,
        loaded,
        judge,
        seed=seed,
        progress=lambda done, total: progress("baselines", done, total),
    )
    report: dict[str, Any] = {
        "predictor": version,
        "model": loaded.source.model,
        "target": loaded.target,
        "accuracy_is": judge,
        "trained_on": loaded.outcomes,
        "evaluated_on": evaluated_on,
        "unlabelled": unlabelled,
        "parts": {},
    }
    out.mkdir(parents=True, exist_ok=True)
    splits: tuple[Split, ...] = ("test", "shifted")
    for done, split in enumerate(splits):
        progress("evaluation", done, len(splits))
        part = table.part(split)
        if not len(part):
            continue
        matrix = design_matrix(part, features, loaded.projection)
        p_success = loaded.calibration.apply(loaded.model.predict(matrix))
        policies = peers.policies(part, matrix, p_success, read_answers(outcomes, part))
        report["parts"][split] = judge_part(
            part,
            policies,
            loaded,
            judge,
            costs_of(part, shape),
            _null_of(part, null, judge),
            seed=seed,
        )
        if split == "test":
            write_choices(out / CHOICES, choices(part, policies, loaded, judge))
    (out / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    (out / PAGE).write_text(render(report), encoding="utf-8")
    write_plot(report, out / PLOT)
    progress("evaluation", len(splits), len(splits))
    return report


def _judged_by(table: OutcomeTable) -> tuple[Target, OutcomeTable, int]:
    """What accuracy counts, the samples that tell, and how many do not.

    Correctness if anybody knows it: without ground truth nowhere, agreement.
    """
    known = np.asarray(~np.isnan(table.correct).any(axis=1))
    if not known.any():
        return "agreement", table, 0
    return "correctness", table.take(known), int((~known).sum())


def costs_of(part: OutcomeTable, shape: ModelShape | None) -> dict[str, Floats]:
    """N×S cost of every scale by unit.

    Milliseconds are a scale's mean: of one question they are mostly the machine's mood, which an
    oracle must not choose by.
    """
    costs: dict[str, Floats] = {"tokens": part.image_tokens.astype(np.float64)}
    if shape is not None:
        lengths, at = np.unique(part.image_tokens, return_inverse=True)
        flops = np.array([shape.prefill_flops(PAPER_TEXT_TOKENS + n) for n in lengths.tolist()])
        costs["flops"] = flops[at.reshape(part.image_tokens.shape)]
    costs["ms"] = np.broadcast_to(part.ms.mean(axis=0), part.ms.shape)
    return costs


def _null_of(part: OutcomeTable, null: NullTable | None, judge: Target) -> NoiseNull | None:
    """The noise null of these samples, if any of them were asked again."""
    if null is None or judge != "correctness" or not np.isin(part.sample, null.sample).any():
        return None
    return noise_null(part, part.success(judge), null)
