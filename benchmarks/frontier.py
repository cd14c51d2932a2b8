"""Accuracy against cost on held-out pictures: fixed scales, the router, its peers, the oracle.

Judges the packaged predictor on the published outcomes of m3-tiny; no model runs. Writes
`results/frontier.json`, the report `results/frontier.html`, what every policy chose,
`results/choices.parquet`, and the README's picture, `results/frontier.png`.
"""

from __future__ import annotations

from benchmarks.results import OUTCOMES, RESULTS, ROOT
from m3_backend.shapes import find_shape
from predictor.evaluate import CHOICES, PAGE, PLOT, REPORT, evaluate
from predictor.image_table import table_beside
from predictor.null_table import null_table_beside, read_null_table

ARTIFACT = ROOT / "predictor" / "artifacts" / "m3-tiny"


def run() -> None:
    null = null_table_beside(OUTCOMES)
    report = evaluate(
        ARTIFACT,
        OUTCOMES,
        table_beside(OUTCOMES),
        RESULTS,
        null=read_null_table(null) if null.is_file() else None,
        shape=find_shape("m3-tiny"),
    )
    (RESULTS / REPORT).replace(RESULTS / "frontier.json")
    (RESULTS / PAGE).replace(RESULTS / "frontier.html")
    test = report["parts"]["test"]
    print(f"\nfrontier: {test['samples']} held-out questions about {test['images']} pictures")
    print(f"{'policy':24} {'tokens':>8} {'accuracy':>9} {'regret':>8}")
    for fixed in test["fixed"]:
        print(
            f"{'fixed ' + str(fixed['scale']):24} {fixed['tokens']:8.1f} {fixed['accuracy']:9.3f}"
        )
    for point in test["operating_points"]:
        name = f"router, regret ≤ {point['max_regret']:g}"
        print(f"{name:24} {point['tokens']:8.1f} {point['accuracy']:9.3f} {point['regret']:8.3f}")
    for name, figures in test["gap_closed"].items():
        if figures["mean"] is not None:
            band = (
                "" if figures["low"] is None else f" ({figures['low']:.2f}–{figures['high']:.2f})"
            )
            print(f"oracle gap closed by {name}: {figures['mean']:.2f}{band}, mean of 5–300 tokens")
    print(f"picture: {RESULTS / PLOT}, choices: {RESULTS / CHOICES}")
