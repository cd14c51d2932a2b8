"""Does the live estimate of regret cover the truth? 100 replays of recorded traffic.

The published outcomes stand for traffic, of which the agreement regret of every request is known.
A predictor promises agreement, learned from its own parts of them; the others, in another order
each time, arrive as requests, a share of which is drawn and labelled. At the end of a replay the
95% confidence sequences of what was served and of every threshold are compared with the regret of
all requests. Writes `results/coverage.json`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.results import OUTCOMES, write
from predictor.image_table import read_image_table, table_beside
from predictor.label_records import UNIFORM
from predictor.records import AGREES_FROM, read_outcomes
from predictor.regret import RegretLedger, Served
from predictor.selection import select_many
from predictor.train import design_matrix, fit, token_shares

REPLAYS, LEAST_COVERED = 100, 90
SHARE = 0.1  # of the requests that get a label
BOUND = 0.05
VERSION = "replayed"


def run() -> None:
    table, images = read_outcomes(OUTCOMES), read_image_table(table_beside(OUTCOMES))
    artifact = fit(table, images, target="agreement")
    traffic = table.part("test", "shifted")
    p = artifact.calibration.apply(
        artifact.model.predict(design_matrix(traffic, images, artifact.projection))
    )
    pairs = zip(artifact.thresholds.bounds, artifact.thresholds.prices, strict=True)
    certified = [(bound, price) for bound, price in pairs if price is not None]
    chosen = select_many(p, token_shares(traffic), [price for _, price in certified])
    lost = ~(np.take_along_axis(traffic.agrees, chosen, axis=1) >= AGREES_FROM)
    truth = dict(zip((bound for bound, _ in certified), lost.mean(axis=0).tolist(), strict=True))
    price = artifact.thresholds.at(BOUND)
    served = select_many(p, token_shares(traffic), [price])[:, 0]
    ladder = list(table.source.ladder.scales)
    rows: list[dict[str, Any]] = [
        {
            "at": 0,
            "stratum": UNIFORM,
            "predictor": VERSION,
            "bound": BOUND,
            "scale": ladder[at],
            "scales": ladder,
            "agrees": agrees,
            "tightened_to": None,
            "target": "agreement",
            "certified_bounds": [bound for bound, _ in certified],
            "certified_prices": [price for _, price in certified],
            "p_success": success,
            "tokens_per_scale": tokens,
        }
        for at, agrees, success, tokens in zip(
            served.tolist(),
            traffic.agrees.tolist(),
            p.tolist(),
            traffic.image_tokens.tolist(),
            strict=True,
        )
    ]
    replays = [replay(rows, number) for number in range(REPLAYS)]
    figures = {
        "requests": len(rows),
        "labels": [int(np.mean([labels for labels, *_ in replays]))],
        "replays": REPLAYS,
        "regret": truth[BOUND],
        "covered": sum(low <= truth[BOUND] <= high for _, (low, high), _ in replays),
        "width": float(np.mean([high - low for _, (low, high), _ in replays])),
        "thresholds": [
            {
                "bound": bound,
                "regret": regret,
                "covered": sum(b[bound][0] <= regret <= b[bound][1] for *_, b in replays),
            }
            for bound, regret in truth.items()
        ],
    }
    print(
        f"\ncoverage: {figures['covered']} of {REPLAYS} replays (at least {LEAST_COVERED}); regret "
        f"of all {len(rows)} requests {truth[BOUND]:.4f}, mean width {figures['width']:.4f}"
    )
    for row in figures["thresholds"]:
        print(f"{row['bound']:7g} regret {row['regret']:.4f} covered {row['covered']}")
    print(write("coverage", figures))


Interval = tuple[float, float]


def replay(rows: list[dict[str, Any]], seed: int) -> tuple[int, Interval, dict[float, Interval]]:
    """Labels that were made, and the final intervals of what was served and of each threshold."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))
    drawn = order[rng.random(len(rows)) < SHARE]
    ledger = RegretLedger()
    labels = [rows[at] | {"request_id": str(at)} for at in drawn.tolist()]
    ledger.add(pa.Table.from_pylist(labels))
    served = ledger.estimates()[Served(VERSION)]
    found = ledger.thresholds()[VERSION]
    return (
        served.labels,
        (served.low, served.high),
        {bound: (each.low, each.high) for bound, each in found.items()},
    )
