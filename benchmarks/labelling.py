"""What shadow labels cost the requests: the whole service with 5% of its time for them or without.

Over HTTP, the model on a core of its own, all else on the other. First what can be answered at
most, by callers in a closed loop; then open loops at a tenth, a half and all of what fits without
labels, with the same arrivals and pictures both times. A fifth of the requests is drawn, which is
more than the budget takes at half load. Labels are counted by what came of them within each phase.
Writes `results/labelling.json`. Some seven minutes; `LABELLING_PHASE_S=10` shortens the phases.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.open_loop import Body, Reply, closed, opened
from benchmarks.overload import CALLERS, SETTINGS, bodies, p95, strictly
from benchmarks.results import write
from benchmarks.running import separate_cores, service, take_all_cores
from benchmarks.scraping import metrics

PHASE_S = float(os.environ.get("LABELLING_PHASE_S", "40"))
LOADS = {"low": 0.1, "half": 0.5, "full": 1.0}
BUDGET, DRAWN = 0.05, 0.2


def run() -> None:
    body = strictly(bodies(per_request=1))
    without = measured(body, drawn=0.0)
    labelled = measured(body, drawn=DRAWN, capacity=without["throughput_per_s"])
    figures = {
        "budget": BUDGET,
        "drawn": DRAWN,
        "phase_s": PHASE_S,
        "without": without,
        "with": labelled,
        "throughput_change": labelled["throughput_per_s"] / without["throughput_per_s"] - 1,
        "p95_change": {
            load: labelled["loads"][load]["p95_s"] / without["loads"][load]["p95_s"] - 1
            for load in LOADS
        },
    }
    print(f"\nlabelling with {BUDGET:.0%} of replica time, {DRAWN:.0%} of requests drawn")
    print(
        f"throughput {without['throughput_per_s']:.2f} -> {labelled['throughput_per_s']:.2f}/s "
        f"({figures['throughput_change']:+.1%})"
    )
    for load in LOADS:
        before, after = without["loads"][load], labelled["loads"][load]
        print(
            f"{load:5} load: p95 {before['p95_s'] * 1e3:.0f} -> {after['p95_s'] * 1e3:.0f} ms "
            f"({figures['p95_change'][load]:+.1%}), median {before['median_s'] * 1e3:.0f} -> "
            f"{after['median_s'] * 1e3:.0f} ms, {after['labels_per_s']:.2f} labels/s "
            f"({after['labelled_share']:.1%} of requests), "
            f"{after['replica_share']:.1%} of replica time"
        )
    print(write("labelling", figures))


def measured(body: Body, *, drawn: float, capacity: float | None = None) -> dict[str, Any]:
    """Throughput, then every load; `capacity` in requests a second, None takes what is found."""
    with tempfile.TemporaryDirectory() as records:
        settings = SETTINGS | {
            "records.store": records,
            "router.shadow.uniform_share": drawn,
            "router.shadow.near_share": 0.0,
            "router.shadow.budget": BUDGET,
        }
        take_all_cores()
        with service(settings) as running:
            separate_cores(running.process.pid)
            url = running.url
            asyncio.run(closed(url, later(body, 0), callers=2, seconds=PHASE_S / 3))  # warm-up
            most = asyncio.run(closed(url, later(body, 1), callers=CALLERS, seconds=PHASE_S))
            throughput = answered(most) / PHASE_S
            loads = {
                load: phase(url, body, share * (capacity or throughput), number)
                for number, (load, share) in enumerate(LOADS.items(), start=2)
            }
    return {"throughput_per_s": throughput, "loads": loads}


def later(body: Body, phase: int) -> Body:
    """The requests of a phase, new to all caches."""
    return lambda number: body(number + 1_000_000 * phase)


def phase(url: str, body: Body, rate: float, number: int) -> dict[str, Any]:
    before = labels(url)
    replies = asyncio.run(opened(url, later(body, number), [(rate, PHASE_S)], seed=number))
    after = labels(url)
    good = [reply.seconds for reply in replies if reply.status == 200]
    made, seconds = (b - a for a, b in zip(before, after, strict=True))
    return {
        "offered_per_s": rate,
        "requests": len(replies),
        "refused": len(replies) - len(good),
        "p95_s": p95(good),
        "median_s": statistics.median(good),
        "labels_per_s": made / PHASE_S,
        "labelled_share": made / len(replies),
        "replica_share": seconds / PHASE_S,
    }


def labels(url: str) -> tuple[float, float]:
    """Labels made so far, and the seconds they took."""
    found = metrics(url)
    made = sum(
        value
        for names, value in found.get("m3_shadow_draws_total", {}).items()
        if ("outcome", "labelled") in names
    )
    return made, sum(found.get("m3_shadow_seconds_total", {}).values())


def answered(replies: Sequence[Reply]) -> int:
    return sum(reply.status == 200 for reply in replies)
