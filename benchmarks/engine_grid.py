"""Both sides over fixed scales and a mixture, by 1, 8 and 32 callers, answers of 4 to 64 tokens.

Every picture is new. The mixture is what the packaged predictor chooses at the service's own bound.
Answers are as long as they are told to be, whatever they say. Hours at the full size: take few
rounds or `ENGINE_CALLERS=32`.
"""

from __future__ import annotations

import os
import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from benchmarks.engine_requests import Asked, Requests, mean_tokens
from benchmarks.engine_sides import Ours, Run, Theirs
from m3_backend.checkpoint import Checkpoint
from router.config import RouterConfig

CALLERS = tuple(map(int, os.environ.get("ENGINE_CALLERS", "1,8,32").split(",")))
ANSWERS = (4, 64)
MIXED = "mixed"


def measured(
    checkpoint: Checkpoint, requests: Requests, rounds: int, count: int
) -> list[dict[str, Any]]:
    """One row per workload and number of callers; one caller asks a quarter of `count`.

    Both sides take the very same requests, since only one of them has a cache.
    """
    rows = []
    for callers in CALLERS:
        asks = count if callers > 1 else max(count // 4, 2)
        with (
            closing(Theirs(checkpoint, callers)) as static,
            closing(Ours(checkpoint, callers)) as own,
        ):
            sides: dict[str, Callable[[Sequence[Asked]], Run]] = {
                "m3": own.run,
                "transformers": static.run,
            }
            for workload in (*checkpoint.ladder.scales, MIXED):
                rows.append(_row(requests, sides, workload, callers, rounds, asks))
    return rows


def _row(
    requests: Requests,
    sides: dict[str, Callable[[Sequence[Asked]], Run]],
    workload: int | str,
    callers: int,
    rounds: int,
    count: int,
) -> dict[str, Any]:
    choose = (
        requests.at(workload)
        if isinstance(workload, int)
        else requests.chosen(RouterConfig().max_regret)
    )
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    tokens: list[float] = []
    for number in range(-1, rounds):
        asked = requests.make(choose, count if number >= 0 else min(callers, count), number)
        rng = random.Random(number)
        asked = [replace(one, limit=rng.randint(*ANSWERS), whole=True) for one in asked]
        for name in sorted(sides, reverse=bool(number % 2)):
            done = sides[name](asked)
            if number >= 0:  # the first does not count
                runs[name].append(done)
        tokens.append(mean_tokens(asked))
    row: dict[str, Any] = {
        "workload": workload,
        "callers": callers,
        "mean_image_tokens": statistics.fmean(tokens[1:]),
        "times": [
            a.requests_per_s / b.requests_per_s
            for a, b in zip(runs["m3"], runs["transformers"], strict=True)
        ],
    }
    for name, of_side in runs.items():
        firsts = [statistics.median(one.first_s for one in run.took) for run in of_side]
        further = [statistics.median(one.token_s for one in run.took) for run in of_side]
        row[name] = {
            "requests_per_s": statistics.median(run.requests_per_s for run in of_side),
            "ttft_ms": 1e3 * statistics.median(firsts),
            "token_ms": 1e3 * statistics.median(further),
            "peak_mib": statistics.median(run.peak_bytes for run in of_side) / 2**20,
            "kv_tokens": statistics.median(run.kv_tokens for run in of_side),
        }
    own, other = row["m3"], row["transformers"]
    print(
        f"{workload!s:>6} × {callers:2}: {own['requests_per_s']:6.1f}/"
        f"{other['requests_per_s']:6.1f} requests/s, {statistics.median(row['times']):.2f} times; "
        f"TTFT {own['ttft_ms']:.0f}/"
        f"{other['ttft_ms']:.0f} ms; {own['token_ms']:.1f}/{other['token_ms']:.1f} ms/token; peak "
        f"{own['peak_mib']:.0f}/{other['peak_mib']:.0f} MiB",
        flush=True,
    )
    return row
