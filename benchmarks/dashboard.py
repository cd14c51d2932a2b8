"""How long the page's views take over many records, and how long it takes to add those up.

    python -m benchmarks.synthetic_records FOLDER --records 10000000 --days 30
    python -m benchmarks.dashboard FOLDER

Prints one JSON object: seconds to read everything once, and the slowest of five looks at every view
and range, as the page asks for them.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

from router.dashboard.looks import RANGES, VIEW_NAMES, Known, Looked
from router.dashboard.rollups import RollUps
from router.dashboard.views import Price, Views

LOOKS = 5
# As certified for the predictor that ships; any prices take as long.
PRICES = tuple((bound, 20 * bound) for bound in (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3))


def measure(folder: Path) -> dict[str, object]:
    """Seconds, records and memory."""
    began = time.perf_counter()
    rollups = RollUps(str(folder))
    records = rollups.refresh()
    read_s = time.perf_counter() - began
    views = Views(rollups, Price(1.0), time.time)
    slowest: dict[str, float] = {}
    for view in VIEW_NAMES:
        for back in RANGES:
            looked = Looked(view, back, known=Known(0.05, 0.05, PRICES))
            times = []
            for _ in range(LOOKS):
                began = time.perf_counter()
                json.dumps(views.show(looked))
                times.append(time.perf_counter() - began)
            slowest[f"{view} {back}"] = round(max(times), 4)
    return {
        "records": records,
        "read_s": round(read_s, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "slowest_look_s": max(slowest.values()),
        "looks_s": slowest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(json.dumps(measure(parser.parse_args().folder), indent=1))


if __name__ == "__main__":
    main()
