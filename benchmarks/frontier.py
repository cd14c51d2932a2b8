"""Accuracy against cost on held-out pictures: fixed scales, the router, the best anyone could do.

Judges the packaged predictor on the published outcomes of m3-tiny; no model runs. Writes
`results/frontier.json` and the README's picture, `results/frontier.png`.
"""

from __future__ import annotations

from benchmarks.results import OUTCOMES, RESULTS, ROOT
from predictor.evaluate import PLOT, REPORT, evaluate
from predictor.image_table import table_beside

ARTIFACT = ROOT / "predictor" / "artifacts" / "m3-tiny"


def run() -> None:
    report = evaluate(ARTIFACT, OUTCOMES, table_beside(OUTCOMES), RESULTS)
    (RESULTS / REPORT).replace(RESULTS / "frontier.json")
    test = report["parts"]["test"]
    print(f"\nfrontier: {test['samples']} held-out questions about {test['images']} pictures")
    print(f"{'policy':24} {'tokens':>8} {'accuracy':>9}")
    for fixed in test["fixed"]:
        print(
            f"{'fixed ' + str(fixed['scale']):24} {fixed['tokens']:8.1f} {fixed['accuracy']:9.3f}"
        )
    for point in test["operating_points"]:
        name = f"router, regret ≤ {point['max_regret']:g}"
        print(f"{name:24} {point['tokens']:8.1f} {point['accuracy']:9.3f}")
    for name, figures in test["gap_closed"].items():
        print(f"oracle gap closed by {name}: {figures['mean']:.2f} on average over 5–300 tokens")
    print(f"picture: {RESULTS / PLOT}")
