"""Does the regret bound hold? 200 random splits by picture, for both targets.

For each target a predictor learns and is calibrated on its own parts of the published outcomes. The
pictures of `threshold` and `test` are then split at random, a fifth to certify prices, the rest to
measure regret, 200 times. Regret above the bound in more than 16 of 200 would contradict a promise
of 95%. Held-out styles (`shifted`) are not covered by the promise; their drift is shown.
Writes `results/guarantee.json`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.results import OUTCOMES, RESULTS
from predictor.calibration import PRICES, per_image, regret_losses
from predictor.guarantee import repeat_certification
from predictor.image_table import ImageTable, read_image_table, table_beside
from predictor.records import OutcomeTable, Target, read_outcomes
from predictor.train import design_matrix, fit, token_shares

BOUNDS = (0.01, 0.02, 0.05, 0.1)
SPLITS = 200
MOST_EXCEEDED = 16


def run() -> None:
    table, images = read_outcomes(OUTCOMES), read_image_table(table_beside(OUTCOMES))
    targets: tuple[Target, ...] = ("agreement", "correctness")
    report = {target: of_target(table, images, target) for target in targets}
    (RESULTS / "guarantee.json").write_text(json.dumps(report, indent=1) + "\n")
    for target, figures in report.items():
        print(f"\nguarantee, {target}: {SPLITS} splits of {figures['pictures']} pictures")
        print(" bound  exceeded  promised    mean  highest  shifted")
        for row in figures["bounds"]:
            shifted = "-" if row["shifted"] is None else f"{row['shifted']:.3f}"
            print(
                f"{row['bound']:6.3f} {row['exceeded']:9} {row['promised']:9} "
                f"{row['mean_regret']:7.4f} {row['highest_regret']:8.4f} {shifted:>8}"
            )
    worst = max(row["exceeded"] for each in report.values() for row in each["bounds"])
    print(f"\nmost often exceeded: {worst} of {SPLITS}; {MOST_EXCEEDED} are allowed")


def of_target(table: OutcomeTable, images: ImageTable, target: Target) -> dict[str, Any]:
    """Trials at every bound, and the regret of held-out styles at the artefact's own price."""
    artifact = fit(table, images, target=target)

    def losses(part: OutcomeTable) -> np.ndarray:
        matrix = design_matrix(part, images, artifact.projection)
        p = artifact.calibration.apply(artifact.model.predict(matrix))
        each = regret_losses(p, part.success(target), token_shares(part), PRICES)
        return per_image(each, part.image)

    fresh = losses(table.part("threshold", "test"))
    trials = repeat_certification(fresh, BOUNDS, splits=SPLITS)
    shifted = table.part("shifted")
    drifted = losses(shifted).mean(axis=0) if len(shifted) else None
    rows = []
    for trial in trials:
        price = artifact.thresholds.at(trial.bound)
        drift = None
        if drifted is not None:
            drift = 0.0 if price is None else float(drifted[np.searchsorted(PRICES, price)])
        rows.append({**asdict(trial), "price": price, "shifted": drift})
    return {"pictures": len(fresh), "bounds": rows}
