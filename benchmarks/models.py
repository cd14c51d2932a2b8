"""Which model of success, and which features, are worth having: grouped cross-validation.

Alternatives to the predictor's model, and the model with a group of features blanked out, on the
parts `train`, `calibrate` and `threshold` of the published outcomes, at most 6,000 questions of
them; the test part is not looked at. Folds are by picture and the same for all. Writes
`results/models.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from benchmarks.results import OUTCOMES, RESULTS
from m3_backend.scales import ScaleLadder
from predictor.bands import gaps_closed
from predictor.calibration import expected_calibration_error
from predictor.chances import chances
from predictor.features import feature_names
from predictor.image_table import read_image_table, table_beside
from predictor.policies import by_probability
from predictor.query_features import QueryProjection
from predictor.records import Target, read_outcomes
from predictor.success import PARAMETERS, ScaleColumns, fit_success
from predictor.train import design_matrix, log_loss, token_shares

FOLDS = 3
MOST_PICTURES = 2000
TARGET: Target = "correctness"
GROUPS = {
    "pooling residuals": ("luma.lost", "chroma.lost"),
    "edges": ("edges.", "corners.", "contrast."),
    "strokes and glyphs": ("runs.", "ink.share", "glyphs.", "cross.text"),
    "regions": ("regions.", "cross.object"),
    "colours": ("colours.", "ground.", "ink.", "luma.entropy", "luma.mean", "chroma.mean"),
    "what the question names": ("named.",),
    "file": ("file.",),
    "question by hand": (
        "query.about",
        "query.form",
        "query.words",
        "query.char",
        "query.l",
        "query.digits",
    ),
    "question by n-grams": ("query.direction",),
}

Matrix = NDArray[np.float32]
Success = NDArray[np.bool_]
Predict = Callable[[Matrix], NDArray[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class Learning:
    """What an alternative learns from: what came about, and how probable that was."""

    matrix: Matrix
    success: Success
    chances: NDArray[np.float64]
    images: NDArray[np.object_]
    names: tuple[str, ...]
    ladder: ScaleLadder


def shipped(data: Learning) -> Predict:
    """The predictor's own model: one LightGBM with the scale as a feature, from probabilities."""
    model = fit_success(data.matrix, data.chances, data.images, data.names, data.ladder, seed=0)
    return model.predict


def from_successes(data: Learning) -> Predict:
    """The same, from what came about alone."""
    return shipped(replace(data, chances=data.success.astype(np.float64)))


def by_scale(data: Learning) -> Predict:
    """The same trees, one model per scale."""
    models = []
    for at in range(data.success.shape[1]):
        one = np.repeat(data.chances[:, at : at + 1], data.success.shape[1], axis=1)
        models.append(fit_success(data.matrix, one, data.images, data.names, data.ladder, seed=0))
    return lambda rows: np.stack(
        [model.predict(rows)[:, at] for at, model in enumerate(models)], axis=1
    )


def logistic(data: Learning) -> Predict:
    """L2 logistic regression per scale on standardised, rank-transformed features."""
    return _one_per_scale(
        data,
        lambda: make_pipeline(
            QuantileTransformer(n_quantiles=200, subsample=20_000),
            StandardScaler(),
            LogisticRegression(C=0.02, max_iter=400),
        ),
    )


def perceptron(data: Learning) -> Predict:
    """One hidden layer of 64, all scales at once."""
    model = make_pipeline(
        QuantileTransformer(n_quantiles=200, subsample=20_000),
        StandardScaler(),
        MLPClassifier(
            (64,), alpha=3.0, early_stopping=True, random_state=0, batch_size=128, max_iter=60
        ),
    ).fit(data.matrix, data.success.astype(int))
    return lambda rows: np.asarray(model.predict_proba(rows), np.float64)


def _one_per_scale(data: Learning, make: Callable[[], object]) -> Predict:
    models = []
    for column in data.success.T:
        model = make()
        model.fit(data.matrix, column.astype(int))  # type: ignore[attr-defined]
        models.append(model)
    return lambda rows: np.stack(
        [model.predict_proba(rows)[:, 1] for model in models],  # type: ignore[attr-defined]
        axis=1,
    )


def blend(data: Learning) -> Predict:
    """The mean of the shipped model and the logistic regressions."""
    one, other = shipped(data), logistic(data)
    return lambda rows: 0.5 * (one(rows) + other(rows))


def differences(data: Learning) -> Predict:
    """The shipped model, half of each difference to the finest scale learned as a difference.

    What all scales have in common, how hard a question is, does not matter to the choice and is
    noise to a model of differences no more.
    """
    shared = shipped(data)
    scales = data.success.shape[1]
    columns = ScaleColumns(data.names, data.ladder)

    def coarse(rows: Matrix) -> Matrix:
        expanded = columns.expand(rows)
        return expanded.reshape(len(rows), scales, -1)[:, :-1].reshape(-1, expanded.shape[1])

    gain = data.success[:, :-1].astype(np.float64) - data.success[:, -1:]
    parameters = {**PARAMETERS, "objective": "regression", "seed": 0}
    rounds = max(shared.__self__.booster.num_trees(), 50)  # type: ignore[attr-defined]
    trees = lgb.train(parameters, lgb.Dataset(coarse(data.matrix), gain.ravel()), rounds)

    def predict(rows: Matrix) -> NDArray[np.float64]:
        p = shared(rows)
        learned = np.zeros(p.shape)
        learned[:, :-1] = np.asarray(trees.predict(coarse(rows))).reshape(len(rows), -1)
        return np.clip(p[:, -1:] + 0.5 * (p - p[:, -1:] + learned), 1e-6, 1 - 1e-6)

    return predict


MODELS: dict[str, Callable[[Learning], Predict]] = {
    "shipped": shipped,
    "from what came about": from_successes,
    "one per scale": by_scale,
    "logistic regression": logistic,
    "perceptron": perceptron,
    "trees and logistic, mean": blend,
    "half of it differences": differences,
}


def run() -> None:
    table = read_outcomes(OUTCOMES).part("train", "calibrate", "threshold")
    drawn = np.random.default_rng(0).permutation(np.unique(table.image))[:MOST_PICTURES]
    table = table.take(np.isin(table.image, drawn))
    images = read_image_table(table_beside(OUTCOMES))
    projection = QueryProjection.fit(table.part("train").question.tolist())
    matrix = design_matrix(table, images, projection)
    names = feature_names(projection.size)
    success, ladder = table.success(TARGET), table.source.ladder
    probable = chances(success, table.reference_logprob, TARGET)
    fold = _folds(table.image)
    tokens, shares = table.image_tokens.astype(np.float64), token_shares(table)

    def judged(name: str, fit: Callable[[Learning], Predict], seen: Matrix) -> dict[str, object]:
        started = time.perf_counter()
        p = np.empty(success.shape)
        for held in range(FOLDS):
            inside = fold != held
            data = Learning(
                seen[inside], success[inside], probable[inside], table.image[inside], names, ladder
            )
            p[~inside] = fit(data)(seen[~inside])
        policy = by_probability(name, name, np.clip(p, 1e-6, 1 - 1e-6), shares)
        gap = gaps_closed([policy], success, tokens, table.image, (20, 100, 300), draws=100)[name]
        figures: dict[str, object] = {
            "log_loss": log_loss(p, success),
            "calibration_error": expected_calibration_error(p, success),
            "gap_closed": gap.mean.value,
            "low": gap.mean.low,
            "high": gap.mean.high,
            "at_tokens": {str(cost): each.value for cost, each in gap.at.items()},
            "seconds": time.perf_counter() - started,
        }
        print(
            f"{name:34} log loss {figures['log_loss']:.4f}  gap closed {gap.mean.value or 0:.3f} "
            f"({gap.mean.low or 0:.2f} to {gap.mean.high or 0:.2f}) {figures['seconds']:4.0f} s",
            flush=True,
        )
        return figures

    report: dict[str, dict[str, object]] = {"models": {}, "without": {}}
    print(f"\nmodels: {len(table)} questions, {FOLDS} folds by picture, {TARGET}")
    for name, fit in MODELS.items():
        report["models"][name] = judged(name, fit, matrix)
    for group, prefixes in GROUPS.items():
        blank = matrix.copy()
        blank[:, [name.startswith(prefixes) for name in names]] = 0
        report["without"][group] = judged(f"without {group}", shipped, blank)
    (RESULTS / "models.json").write_text(json.dumps(report, indent=1) + "\n")


def _folds(images: NDArray[np.object_]) -> NDArray[np.int64]:
    distinct, index = np.unique(images, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(distinct)) % FOLDS
    return np.asarray(fold[index])
