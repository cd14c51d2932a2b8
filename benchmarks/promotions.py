"""Predictors that are switched under load: the whole service, clients that ask without a pause, a
promotion or a rollback every few seconds. Every request must be answered, by one of the versions.
"""

from __future__ import annotations

import time
from collections import Counter

from benchmarks.results import write
from tests.conftest import unused_port
from tests.e2e.service import sandbox, start
from tests.e2e.test_records import load, published

SWITCHES, EVERY_S = 20, 3.0


def run() -> None:
    with sandbox() as box:
        registry, (one, two) = published(box)
        model = registry.versions()[0].model_identity
        service = start(port=unused_port(), box=box)
        began_s = time.monotonic()
        with load(service.url) as answered:
            for switch in range(SWITCHES):
                time.sleep(EVERY_S)
                if switch % 4 < 2:
                    registry.promote((one, two)[switch % 2], "benchmark")
                else:
                    registry.rollback(model, "benchmark")
            time.sleep(EVERY_S)
        seconds = time.monotonic() - began_s
        service.stop()
    predictors = Counter(each.predictor for each in answered.asked)
    row = {
        "switches": SWITCHES,
        "seconds": round(seconds, 1),
        "answered": len(answered.asked),
        "failed": len(answered.failures),
        "by_predictor": sorted(predictors.values()),
    }
    print("\npromotions:", ", ".join(f"{name} {value}" for name, value in row.items()))
    print(write("promotions", row))
    if answered.failures:
        raise SystemExit(f"failed: {Counter(answered.failures).most_common(3)}")
