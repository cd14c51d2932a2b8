"""P(success | features, scale): gradient-boosted trees over (image, question, scale).

One model serves every scale of every ladder: the scale enters as its number of tokens and, because
what matters is how large things are against the cells they are averaged in, as the sizes of glyphs
and regions in cells and the energy that this scale's grid destroys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from m3_backend.scales import ScaleLadder
from predictor.image_features import GRIDS, MODEL_SIDE

_AT_GRIDS = (
    "luma.lost_{}",
    "luma.lost_{}_max",
    "chroma.lost_{}",
    "named.cover_{}",
    "ink.cover_{}",
)
_SIZES = (
    "glyphs.height_q10",
    "glyphs.height_q50",
    "glyphs.height_q90",
    "regions.side_min",
    "regions.side_q25",
    "regions.side_q50",
    "cross.text_height",
    "cross.text_height_low",
    "cross.object_side",
    "cross.object_side_low",
    "named.rows",
    "named.tall",
    "named.wide",
    "named.height",
    "named.difference",
    "ink.rows",
    "colours.lead",
    "colours.trail",
)

PARAMETERS = {
    "objective": "cross_entropy",  # of what came about, or of how probable it was
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 200,  # rows: five scales of one question are hardly five observations
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "num_threads": 1,  # seconds on one core; on shared ones threads wait for each other
    "deterministic": True,
    "force_col_wise": True,
    "verbosity": -1,
}
_MOST_ROUNDS = 600
_PATIENCE = 30  # rounds without a better held-out likelihood


class SuccessModel:
    """A fitted model. Immutable and safe to share between threads.

    Args:
        booster: LightGBM model over F features followed by the columns of `scale_names`.
        names: the F features.
        ladder: the S scales to predict for.
    """

    def __init__(self, booster: lgb.Booster, names: Sequence[str], ladder: ScaleLadder) -> None:
        self.booster = booster
        self.names = tuple(names)
        self.ladder = ladder
        self._scales = ScaleColumns(self.names, ladder)
        if tuple(booster.feature_name()) != (*self.names, *scale_names()):
            raise ValueError("the model was trained on other features")

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Uncalibrated probability of success: N×F → N×S. One thread."""
        rows = self._scales.expand(features)
        flat = np.asarray(self.booster.predict(rows, num_threads=1), dtype=np.float64)
        return flat.reshape(len(features), len(self.ladder))

    def to_text(self) -> str:
        return str(self.booster.model_to_string())

    @classmethod
    def from_text(cls, text: str, names: Sequence[str], ladder: ScaleLadder) -> SuccessModel:
        """Read what `to_text` wrote.

        Raises:
            ValueError: not a LightGBM model, or one over other features.
        """
        try:
            booster = lgb.Booster(model_str=text)
        except lgb.basic.LightGBMError as error:
            raise ValueError("not a LightGBM model") from error
        return cls(booster, names, ladder)


def fit_success(
    features: NDArray[np.float32],
    labels: NDArray[np.float64],
    images: NDArray[np.object_],
    names: Sequence[str],
    ladder: ScaleLadder,
    *,
    seed: int,
    weights: NDArray[np.float64] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SuccessModel:
    """Fit on N samples; a tenth of the images chooses the number of trees, then all are used.

    Args:
        features: N×F.
        labels: N×S in [0, 1]: success, or its probability.
        weights: N, of the samples; None weighs all alike.
        images: N image names; questions about one picture stay on one side of the inner split.
        progress: called with (trees grown, most trees) as it goes.

    The same inputs and seed give the same model text, whatever the number of cores.
    """
    rows = ScaleColumns(tuple(names), ladder).expand(features)
    flat = labels.astype(np.float32).ravel()
    columns = [*names, *scale_names()]
    parameters = {**PARAMETERS, "seed": seed}

    held_out = np.isin(images, _tenth(images, seed)).repeat(len(ladder))
    weigh = None if weights is None else weights.repeat(len(ladder))

    def dataset(kept: NDArray[np.bool_] | slice, like: lgb.Dataset | None = None) -> lgb.Dataset:
        own = None if weigh is None else weigh[kept]
        return lgb.Dataset(rows[kept], flat[kept], weight=own, feature_name=columns, reference=like)

    inner = dataset(~held_out)
    outer = dataset(held_out, inner)
    stopped = lgb.train(
        parameters,
        inner,
        _MOST_ROUNDS,
        valid_sets=[outer],
        callbacks=[lgb.early_stopping(_PATIENCE, verbose=False), _reporter(progress, 0)],
    )
    rounds = max(stopped.best_iteration, 1)
    whole = dataset(slice(None))
    booster = lgb.train(parameters, whole, rounds, callbacks=[_reporter(progress, _MOST_ROUNDS)])
    progress(2 * _MOST_ROUNDS, 2 * _MOST_ROUNDS)
    return SuccessModel(booster, names, ladder)


def scale_names() -> tuple[str, ...]:
    """Names of the columns that describe a scale, in order."""
    here = (f"scale.{pattern.format('here')}" for pattern in _AT_GRIDS)
    return ("scale.log2_tokens", *here, *(f"scale.{name}_in_cells" for name in _SIZES))


class ScaleColumns:
    """Puts beside N×F features what they mean at each of S scales."""

    def __init__(self, names: tuple[str, ...], ladder: ScaleLadder) -> None:
        self._sides = np.array([ladder.side(scale) for scale in ladder.scales], dtype=np.float32)
        self._at_grids = [
            [names.index(pattern.format(grid)) for grid in GRIDS] for pattern in _AT_GRIDS
        ]
        self._sizes = [names.index(name) for name in _SIZES]
        # A ladder may have sides that were not measured: linear in log side between the measured.
        at = np.log(self._sides)
        known = np.log(np.array(GRIDS))
        self._between = np.stack([np.interp(at, known, unit) for unit in np.eye(len(GRIDS))])

    def expand(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """N×F → (N·S)×(F+C), the scales of a sample next to each other."""
        samples, width = features.shape
        rows = np.empty((samples, len(self._sides), width + len(scale_names())), dtype=np.float32)
        rows[..., :width] = features[:, None]
        rows[..., width] = 2 * np.log2(self._sides)
        for column, measured in enumerate(self._at_grids, width + 1):
            rows[..., column] = features[:, measured] @ self._between
        in_cells = rows[..., width + 1 + len(self._at_grids) :]
        in_cells[:] = features[:, None, self._sizes] * (self._sides[:, None] / MODEL_SIDE)
        return rows.reshape(samples * len(self._sides), -1)


def _tenth(images: NDArray[np.object_], seed: int) -> NDArray[np.object_]:
    distinct = np.unique(images)
    count = max(len(distinct) // 10, 1)
    return np.random.default_rng(seed).permutation(distinct)[:count]


def _reporter(
    progress: Callable[[int, int], None], before: int
) -> Callable[[lgb.callback.CallbackEnv], None]:
    def report(state: lgb.callback.CallbackEnv) -> None:
        progress(before + state.iteration + 1, 2 * _MOST_ROUNDS)

    return report
