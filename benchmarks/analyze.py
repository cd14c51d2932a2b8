"""How long `m3-router analyze` takes on 20,000 samples at five scales, as a user runs it.

The table is made up, always the same: 7,000 pictures, 12 groups that need detail to different
degrees, a shifted split, and a noise null of five runs. No model runs. Wall-clock seconds include
the start of Python; processor seconds are what is left where the machine is busy with other things.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.results import write
from m3_backend.scales import ScaleLadder
from predictor.null_table import NullOutcome, null_table_beside, write_null_table
from predictor.records import Outcome, OutcomeSource, assign_split, write_outcomes

SAMPLES, PICTURES, GROUPS, RUNS = 20_000, 7_000, 12, 5
LADDER = ScaleLadder()
SOURCE = OutcomeSource("llava-1.5-7b", "1" * 64, "2" * 64, LADDER)


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder) / "made-up.parquet"
        make(outcomes)
        started, before = time.monotonic(), cpu_seconds()
        command = [sys.executable, "-m", "deploy.cli", "analyze", str(outcomes), "--json", "-"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, cpu = time.monotonic() - started, cpu_seconds() - before
        report = (outcomes.with_suffix(".analysis") / "report.html").stat().st_size
    figures = {
        "samples": SAMPLES,
        "scales": len(LADDER),
        "groups": GROUPS,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "report_kb": round(report / 1000),
    }
    print(
        f"\nanalyze: {SAMPLES:,} samples × {len(LADDER)} scales in {seconds:.1f} s "
        f"({cpu:.1f} s of processor time)"
    )
    print(write("analyze", figures))


def cpu_seconds() -> float:
    """Of all child processes that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def make(path: Path) -> None:
    """Write the table and its noise null."""
    rng = np.random.default_rng(0)
    picture = np.sort(rng.integers(0, PICTURES, SAMPLES))
    group = rng.integers(0, GROUPS, SAMPLES)
    # A question is right where the scale is fine enough for it, and now and then by luck.
    needs = rng.normal(group / 2, 2.0) + rng.normal(0, 1.0, PICTURES)[picture]
    detail = np.log2(LADDER.scales)
    chance = 0.05 + 0.9 / (1 + np.exp(needs[:, None] - detail))
    right = rng.random((SAMPLES, len(LADDER))) < chance
    again = rng.random((SAMPLES, RUNS)) < chance[:, 3:4]
    names = [
        (f"s{at:05}", f"p{of:04}", f"group-{kind:02}")
        for at, (of, kind) in enumerate(zip(picture, group, strict=True))
    ]
    splits = ["shifted" if of % 10 == 0 else assign_split(f"p{of:04}") for of in picture]
    write_outcomes(
        path,
        (
            Outcome(
                sample=sample,
                image=image,
                group=kind,
                split=splits[at],
                question="?",
                scale=scale,
                answer="",
                correct=float(right[at, column]),
                agrees=float(right[at, column] == right[at, -1]),
                reference_logprob=None,
                image_tokens=scale,
                ms=10 + 0.06 * scale,
            )
            for at, (sample, image, kind) in enumerate(names)
            for column, scale in enumerate(LADDER.scales)
        ),
        SOURCE,
    )
    write_null_table(
        null_table_beside(path),
        (
            NullOutcome(sample, image, kind, splits[at], number, "", float(again[at, number]))
            for at, (sample, image, kind) in enumerate(names)
            for number in range(RUNS)
        ),
        SOURCE,
        scale=144,
    )
