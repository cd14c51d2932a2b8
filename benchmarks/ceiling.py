"""How much of the oracle gap could anybody close? What is luck cannot be predicted from a picture.

The oracle knows what came out. A predictor can at best know how *probable* success is at each
scale, so this asks the model again about the same pictures, shifted by a pixel or two, which no
reasonable predictor can tell apart: `CEILING_LOOKS` (8) looks at `CEILING_PICTURES` (600) test
pictures, at every scale. A policy that knows how the other looks at this very picture came out then
chooses for the picture as it is, by the router's own rule. Its gap closed, beside the router's, the
family table's and the same for fewer looks, splits what is missing: up to this ceiling it is signal
that the router lacks, above it luck.

With few looks the estimate lies below the true ceiling; how it grows with their number shows by how
much. Looks are labelled into `runs/ceiling` (some eight minutes on two cores; a stopped run goes
on, and the same looks are not taken twice). Writes `results/ceiling.json`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.frontier import ARTIFACT
from benchmarks.results import OUTCOMES, ROOT, write
from predictor import artifact as artifacts
from predictor.bands import gaps_closed
from predictor.datasets import Row, world_rows
from predictor.image_features import MODEL_SIDE
from predictor.image_table import read_image_table, table_beside
from predictor.label import label
from predictor.labeller import Setup
from predictor.policies import Policy, by_key, by_probability
from predictor.records import OutcomeTable, read_outcomes
from predictor.shifts import OFFSETS, lossless, shifted
from predictor.train import design_matrix, log_loss, token_shares

LOOKS = int(os.environ.get("CEILING_LOOKS", "8"))
PICTURES = int(os.environ.get("CEILING_PICTURES", "600"))
JOBS = int(os.environ.get("CEILING_JOBS", str(os.cpu_count() or 1)))
DRAWN = 6400  # world pictures of the published outcomes; their test part is looked at again
MAX_TOKENS = 12  # as the published outcomes
SHOWN_COSTS = (5, 8, 12, 20, 35, 60, 100, 150, 200, 250, 300)
PRIOR_LOOKS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_MARK = "~"  # between a sample and its look

Floats = NDArray[np.float64]


def run() -> None:
    if not 1 <= LOOKS < len(OFFSETS):
        raise SystemExit(f"CEILING_LOOKS is 1 to {len(OFFSETS) - 1}")
    part, seen = looked_again(read_outcomes(OUTCOMES))
    report = judge(part, seen)
    print(f"\nceiling: {report['samples']} questions about {report['images']} test pictures")
    for row in report["policies"]:
        band = row["gap_closed"]["mean"]
        print(f"{row['label']:52} {band['value']:5.2f} ({band['low']:.2f} to {band['high']:.2f})")
    print(write("ceiling", report))


def looked_again(table: OutcomeTable) -> tuple[OutcomeTable, NDArray[np.bool_]]:
    """N published samples and what came of each at every look: N×L×S."""
    test = table.part("test")
    pictures = list(dict.fromkeys(test.image.tolist()))[:PICTURES]
    part = test.take(np.isin(test.image, pictures))
    out = (
        ROOT / "runs" / "ceiling" / f"looks-{table.source.identity[:12]}-{PICTURES}x{LOOKS}.parquet"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.is_file():
        with tqdm(total=len(part) * LOOKS, unit="question", desc="looks") as bar:
            label(
                looks(frozenset(pictures), frozenset(part.sample.tolist())),
                Setup(table.source.model, max_tokens=MAX_TOKENS),
                out,
                jobs=JOBS,
                progress=lambda done, _total: bar.update(done - bar.n) and None,
            )
    again = read_outcomes(out)
    if again.source != table.source:
        raise SystemExit(f"{out} is of other weights; remove it")
    at = {name: row for row, name in enumerate(again.sample.tolist())}
    rows = [[at.get(f"{s}{_MARK}{k}", -1) for k in range(1, LOOKS + 1)] for s in part.sample]
    complete = np.array([min(of_one) >= 0 for of_one in rows])
    found = np.array(rows)[complete]
    return part.take(complete), again.success("correctness")[found]


def looks(pictures: frozenset[str], samples: frozenset[str]) -> Iterator[Row]:
    """The same questions about shifted copies of the pictures."""
    copies: dict[int, bytes] = {}
    last = ""
    waiting: list[Row] = []
    for row in world_rows(DRAWN):
        if row.image != last:
            yield from _by_look(waiting)
            last, waiting, copies = row.image, [], {}
            if row.image in pictures:
                with Image.open(BytesIO(row.read_picture())) as picture:
                    upright = picture.convert("RGB")
                copies = {k: lossless(shifted(upright, k, MODEL_SIDE)) for k in range(1, LOOKS + 1)}
        if row.sample in samples:
            waiting += [
                replace(
                    row,
                    sample=f"{row.sample}{_MARK}{k}",
                    image=f"{row.image}{_MARK}{k}",
                    picture=copy,
                )
                for k, copy in copies.items()
            ]
    yield from _by_look(waiting)


def _by_look(rows: Sequence[Row]) -> list[Row]:
    """Rows about one (shifted) picture follow each other."""
    return sorted(rows, key=lambda row: row.image)


def judge(part: OutcomeTable, seen: NDArray[np.bool_]) -> dict[str, Any]:
    """The gap that each policy closes on the pictures as they are.

    Args:
        seen: N×L×S successes of the other looks.
    """
    loaded, version = artifacts.load(ARTIFACT)
    images = read_image_table(table_beside(OUTCOMES))
    matrix = design_matrix(part, images, loaded.projection)
    router = loaded.calibration.apply(loaded.model.predict(matrix))
    right, shares = part.success("correctness"), token_shares(part)
    train = read_outcomes(OUTCOMES).part("train")
    families = train.group, train.success("correctness")
    policies = [
        by_probability("router", "router", router, shares),
        by_key("family_lookup", "knows the family by name", families, part.group, shares),
    ]
    prior: dict[int, float] = {}
    for count in sorted({1, 2, 4, LOOKS} & set(range(1, LOOKS + 1))):
        known = seen[:, :count].sum(axis=1)
        prior[count] = min(
            PRIOR_LOOKS, key=lambda a, k=known, n=count: log_loss(_blend(k, n, router, a), right)
        )
        p = _blend(known, count, router, prior[count])
        label_ = f"knows {count} other looks at the same picture"
        policies.append(by_probability(f"looks_{count}", label_, p, shares))
    tokens = part.image_tokens.astype(np.float64)
    gaps = gaps_closed(policies, right, tokens, part.image, SHOWN_COSTS)
    return {
        "predictor": version,
        "samples": len(part),
        "images": len(set(part.image.tolist())),
        "looks": LOOKS,
        "prior_looks": prior,
        "log_loss": {p.name: _loss(p, right) for p in policies if p.p_success is not None},
        "policies": [
            {"name": p.name, "label": p.label, "gap_closed": asdict(gaps[p.name])} for p in policies
        ],
    }


def _blend(known: NDArray[np.int64], count: int, prior: Floats, weight: float) -> Floats:
    """Probability of success from `known` successes in `count` looks and the router's, N×S."""
    blended: Floats = (known + weight * prior) / (count + weight)
    return blended


def _loss(policy: Policy, right: NDArray[np.bool_]) -> float:
    assert policy.p_success is not None
    return log_loss(policy.p_success, right)
