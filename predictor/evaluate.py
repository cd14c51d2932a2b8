"""What a predictor is worth on pictures it never saw: cost, accuracy, regret, and its peers.

Everything is computed from the outcomes, which hold every scale's answer: no model runs here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor import artifact as artifacts
from predictor.artifact import Artifact
from predictor.calibration import (
    PRICES,
    REGRET_BOUNDS,
    expected_calibration_error,
    per_image,
)
from predictor.errors import OutcomesError
from predictor.frontier import Curve, fixed_scales, gap_closed, hull, oracle, policy_points
from predictor.image_table import open_images
from predictor.records import OutcomeTable, Split, Target, read_outcomes
from predictor.selection import WHOLE_PRICE, select, select_many
from predictor.train import design_matrix, log_loss, token_shares

REPORT = "evaluation.json"
PLOT = "frontier.png"

Progress = Callable[[str, int, int], None]

_COSTS = np.arange(5.0, 301.0)  # mean tokens over which the closed gap is averaged
_SHOWN_COSTS = (5, 8, 12, 20, 35, 60, 100, 150, 200, 250, 300)
_PRICES = np.concatenate(([0.0], np.geomspace(1e-5, 1.0, 200)))  # accuracy per token


def evaluate(
    artifact: Path,
    outcomes: Path,
    images: Path,
    out: Path,
    *,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Judge an artefact on the test and shifted parts of some outcomes.

    Writes `evaluation.json` and `frontier.png` into `out` and returns the former's content.

    Args:
        images: the table of image features beside the outcomes, or the folder of the pictures.

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
    judge: Target = "agreement" if np.isnan(table.correct).any() else "correctness"
    features = open_images(
        images, table.image.tolist(), lambda done, total: progress("image features", done, total)
    )
    report: dict[str, Any] = {
        "predictor": version,
        "target": loaded.target,
        "accuracy_is": judge,
        "trained_on": loaded.outcomes,
        "evaluated_on": table.content_hash(),
        "parts": {},
    }
    learned_from = table.part("train")
    splits: tuple[Split, ...] = ("test", "shifted")
    for done, split in enumerate(splits):
        progress("evaluation", done, len(splits))
        part = table.part(split)
        if len(part):
            matrix = design_matrix(part, features, loaded.projection)
            p_success = loaded.calibration.apply(loaded.model.predict(matrix))
            report["parts"][split] = judge_part(part, p_success, loaded, judge, learned_from)
    if "test" not in report["parts"]:
        raise OutcomesError(f"{outcomes} has no samples in the split 'test'.")
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    _plot(report, out / PLOT)
    progress("evaluation", len(splits), len(splits))
    return report


def judge_part(
    part: OutcomeTable,
    p_success: NDArray[np.float64],
    artifact: Artifact,
    judge: Target,
    learned_from: OutcomeTable,
) -> dict[str, Any]:
    """Every figure of one part of the pictures, ready for JSON.

    Args:
        p_success: N×S calibrated probabilities.
        judge: the success that accuracy counts; regret counts the artefact's own target.
        learned_from: training outcomes, from which the family lookup takes its scales.
    """
    right = part.success(judge)
    tokens = part.image_tokens.astype(np.float64)
    fixed = hull(*fixed_scales(right, tokens))
    best = oracle(right, tokens)
    router = router_curve(p_success, right, tokens)
    lookup = lookup_curve(part, right, tokens, learned_from, judge)
    target = part.success(artifact.target)
    return {
        "samples": len(part),
        "images": len(set(part.image)),
        "failed": part.failed,
        "calibration_error": expected_calibration_error(p_success, target),
        "log_loss": log_loss(p_success, target),
        "fixed": [
            {"scale": scale, "tokens": cost, "ms": ms, "accuracy": accuracy}
            for scale, cost, ms, accuracy in zip(
                part.source.ladder.scales,
                tokens.mean(axis=0).tolist(),
                part.ms.mean(axis=0).tolist(),
                right.mean(axis=0).tolist(),
                strict=True,
            )
        ],
        "hull": _points(fixed),
        "oracle": _points(best.thinned()),
        "router": _points(router.thinned()),
        "family_lookup": _points(lookup.thinned()),
        "gap_closed": {
            "router": _gap_figures(router, fixed, best),
            "family_lookup": _gap_figures(lookup, fixed, best),
        },
        "operating_points": [
            _operating_point(part, p_success, artifact, right, target, fixed, bound)
            for bound in REGRET_BOUNDS
        ],
        "groups": {
            group: _group(part, p_success, right, tokens, part.group == group)
            for group in sorted(set(part.group))
        },
    }


def router_curve(
    p_success: NDArray[np.float64], right: NDArray[np.bool_], tokens: NDArray[np.float64]
) -> Curve:
    """The selection rule at every price at which success is all that counts."""
    shares = tokens / tokens[:, -1:]
    chosen = select_many(p_success, shares, PRICES[PRICES >= WHOLE_PRICE])
    return Curve.through(*policy_points(chosen, right, tokens))


def lookup_curve(
    part: OutcomeTable,
    right: NDArray[np.bool_],
    tokens: NDArray[np.float64],
    learned_from: OutcomeTable,
    judge: Target,
) -> Curve:
    """One fixed scale per family, chosen on training outcomes at every price of a token.

    It knows the family by name, which no request says; a family it never met gets the finest.
    """
    known = learned_from.success(judge)
    columns = np.full((len(part), len(_PRICES)), right.shape[1] - 1, dtype=np.intp)
    cost = tokens.mean(axis=0)
    for group in set(part.group) & set(learned_from.group):
        accuracy = known[learned_from.group == group].mean(axis=0)
        columns[part.group == group] = (accuracy - _PRICES[:, None] * cost).argmax(axis=1)
    return Curve.through(*policy_points(columns, right, tokens))


def _operating_point(
    part: OutcomeTable,
    p_success: NDArray[np.float64],
    artifact: Artifact,
    right: NDArray[np.bool_],
    target: NDArray[np.bool_],
    fixed: Curve,
    bound: float,
) -> dict[str, Any]:
    """What a caller with this `max_regret` gets, chosen sample by sample as the service does."""
    price = artifact.thresholds.at(bound)
    costs = part.image_tokens.mean(axis=0).tolist()
    served = zip(p_success.tolist(), token_shares(part).tolist(), strict=True)
    chosen = np.array([select(p, shares, price) for p, shares in served])[:, None]
    tokens, accuracy = policy_points(chosen, right, part.image_tokens.astype(np.float64))
    losses = target[:, -1:] & ~np.take_along_axis(target, chosen, axis=1)
    shares = np.bincount(chosen[:, 0], minlength=len(costs)) / len(part)
    affordable = [at for at, cost in enumerate(costs) if cost <= tokens[0]]
    best_fixed = max(affordable, key=lambda at: right[:, at].mean(), default=0)
    return {
        "max_regret": bound,
        "price": price,
        "regret": float(per_image(losses, part.image).mean()),
        "tokens": float(tokens[0]),
        "ms": float(np.take_along_axis(part.ms, chosen, axis=1).mean()),
        "accuracy": float(accuracy[0]),
        "scale_shares": shares.tolist(),
        "best_fixed_scale": part.source.ladder.scales[best_fixed],
        "best_fixed_accuracy": float(right[:, best_fixed].mean()),
        "hull_accuracy": float(fixed.at(tokens[0])),
    }


def _group(
    part: OutcomeTable,
    p_success: NDArray[np.float64],
    right: NDArray[np.bool_],
    tokens: NDArray[np.float64],
    members: NDArray[np.bool_],
) -> dict[str, Any]:
    right, tokens = right[members], tokens[members]
    fixed = hull(*fixed_scales(right, tokens))
    router = router_curve(p_success[members], right, tokens)
    return {
        "samples": int(members.sum()),
        "accuracy": right.mean(axis=0).tolist(),
        "gap_closed": _gap_figures(router, fixed, oracle(right, tokens)),
    }


def _gap_figures(policy: Curve, fixed: Curve, best: Curve) -> dict[str, Any]:
    closed = gap_closed(policy, fixed, best, _COSTS)
    finite = closed[np.isfinite(closed)]
    shown = gap_closed(policy, fixed, best, _SHOWN_COSTS)
    return {
        "mean": float(finite.mean()) if len(finite) else None,
        "at_tokens": {
            str(cost): float(value) if np.isfinite(value) else None
            for cost, value in zip(_SHOWN_COSTS, shown, strict=True)
        },
    }


def _points(curve: Curve) -> dict[str, list[float]]:
    return {"tokens": curve.cost.tolist(), "accuracy": curve.accuracy.tolist()}


def _plot(report: dict[str, Any], path: Path) -> None:
    # Only this function needs matplotlib, with the back end that needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    parts = report["parts"]
    figure = Figure(figsize=(6.5 * len(parts), 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, part) in zip(
        figure.subplots(1, len(parts), squeeze=False)[0], parts.items(), strict=True
    ):
        for curve, label, style in (
            ("oracle", "oracle", "k--"),
            ("router", "router", "C0-"),
            ("family_lookup", "one scale per family", "C1-"),
            ("hull", "random mixture", "C7-"),
        ):
            axes.plot(part[curve]["tokens"], part[curve]["accuracy"], style, label=label)
        fixed = part["fixed"]
        axes.plot(
            [point["tokens"] for point in fixed], [point["accuracy"] for point in fixed], "C7o"
        )
        certified = [point for point in part["operating_points"] if point["price"] is not None]
        axes.plot(
            [point["tokens"] for point in certified],
            [point["accuracy"] for point in certified],
            "C0o",
            label="certified bounds",
        )
        axes.set_xscale("log")
        axes.set_xlabel("mean image tokens")
        axes.set_ylabel(f"accuracy ({report['accuracy_is']})")
        axes.set_title(f"{name}: {part['samples']} questions, {part['images']} pictures")
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
