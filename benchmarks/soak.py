"""Many requests, good and hostile, against the whole service: does memory grow, is the loop held?

`python -m benchmarks.soak [--requests 20000]` starts the service with small caches, so that what
grows is not what it was told to keep; sends the corpus of `tests/hostile` and cheap good requests,
in a shuffled order from a seed; and compares the memory of the ingress and the replica once all of
the corpus has been sent, and at least a tenth of the requests, with the end. The report is
`results/soak.json`; the exit status says whether it is as it has to be.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from benchmarks.results import write
from tests.conftest import unused_port
from tests.e2e.pictures import chat, picture
from tests.e2e.service import Service, sandbox, start, until
from tests.hostile.corpus import Case, corpus, encode
from tests.hostile.judging import faults

ROLES = {"ingress": "Ingress", "replica": "M3Replica", "proxy": "ProxyActor"}
SETTINGS = ("cache.memory=8MiB", "cache.private_memory=16MiB", "log_level=warning")
MOST_GROWTH = 0.10
MOST_LAG_S = 0.1
LIMIT_S = 60.0
LARGE_EVERY = 100  # one that is as long as may be, nearly eight megabytes of noise
SAMPLES = 40  # of memory, over the whole run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    figures = run(options.requests, options.clients, options.seed)
    print(json.dumps(figures, indent=2))
    print(write("soak", figures))
    sys.exit(0 if figures["passed"] else 1)


def run(requests: int = 20_000, clients: int = 4, seed: int = 0) -> dict[str, Any]:
    """The figures of one run."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    with sandbox() as box:
        service = start(*settings, port=unused_port(), box=box)
        try:
            return _soak(service, requests, clients, seed)
        finally:
            service.stop()


def _soak(service: Service, requests: int, clients: int, seed: int) -> dict[str, Any]:
    processes = {role: found(service, name) for role, name in ROLES.items()}
    local = threading.local()
    outcomes: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {}
    slowest: dict[str, float] = {}

    def ask(case: Case) -> None:
        if not hasattr(local, "client"):
            local.client = httpx.Client(base_url=service.url, timeout=LIMIT_S)
        content = case.pieces[0] if len(case.pieces) == 1 else iter(case.pieces)
        began = time.monotonic()
        try:
            response = local.client.request(
                case.method,
                case.path,
                content=content if case.pieces else None,
                headers=case.headers,
            )
        except httpx.HTTPError as error:
            outcomes[type(error).__name__] += 1
            wrong[case.name] = [repr(error)]
            return
        took = time.monotonic() - began
        slowest[case.name] = max(took, slowest.get(case.name, 0.0))
        outcomes[str(response.status_code)] += 1
        if said := faults(case, response):
            wrong[case.name] = said

    order = mixed(requests, seed)
    memory: list[dict[str, float]] = []
    warm_up = min(max(requests // 10, 2 * len(corpus(seed))), requests // 2)
    step = max(1, requests // SAMPLES)
    lag_before: dict[str, float] = {}
    began = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        for first in range(0, requests, step):
            list(pool.map(ask, (next(order) for _ in range(min(step, requests - first)))))
            memory.append({role: resident_mb(pid) for role, pid in processes.items()})
            if first < warm_up <= first + step:
                lag_before = service.metric("m3_event_loop_lag_seconds_bucket")
    took = time.monotonic() - began
    beats, late, worst = lags(lag_before, service.metric("m3_event_loop_lag_seconds_bucket"))
    warm, edge = memory[warm_up // step :], max(1, len(memory) // 10)
    growth = {
        role: statistics.median(m[role] for m in warm[-edge:])
        / statistics.median(m[role] for m in warm[:edge])
        - 1
        for role in ROLES
    }
    ours = ("ingress", "replica")
    return {
        "passed": not wrong and late == 0 and all(growth[role] <= MOST_GROWTH for role in ours),
        "requests": requests,
        "clients": clients,
        "seconds": round(took, 1),
        "outcomes": dict(sorted(outcomes.items())),
        "growth": {role: round(value, 4) for role, value in growth.items()},
        "memory_mb": {role: [round(m[role], 1) for m in memory] for role in ROLES},
        "loop_beats": beats,
        "loop_beats_later_than_100_ms": late,
        "loop_lag_below_s": worst,
        "slowest_s": {
            name: round(slowest[name], 2)
            for name in sorted(slowest, key=slowest.__getitem__, reverse=True)[:10]
        },
        "wrong": {name: said[:3] for name, said in sorted(wrong.items())},
    }


def found(service: Service, name: str) -> int:
    """The process of a deployment. Ray names its processes when they begin to work, not before."""

    def matches() -> list[int]:
        return [pid for pid, line in service.box.processes().items() if name in line]

    if not until(lambda: len(matches()) == 1):
        raise RuntimeError(f"not one process is {name}: {service.box.processes()}")
    return matches()[0]


def mixed(requests: int, seed: int) -> Iterator[Case]:
    """Half of it good and new, half of it hostile, the whole corpus before any of it again."""
    chance = random.Random(seed)
    large = [encode(chat(picture(n, side=1600), model="m3-1", max_tokens=2)) for n in range(4)]
    hostile: list[Case] = []
    for number in range(requests):
        if number % LARGE_EVERY == 1:
            yield Case("large", (chance.choice(large),))
        elif number % 2:
            body = chat(picture(number, side=48), model=chance.choice(("m3-1", "m3-9", "m3-auto")))
            yield Case("good", (encode(body | {"max_tokens": 2, "stream": number % 4 == 1}),))
        else:
            if not hostile:
                hostile = corpus(seed)
                chance.shuffle(hostile)
            yield hostile.pop()


def resident_mb(pid: int) -> float:
    """Resident memory of a process, without what it shares with others (Ray's object store)."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    kilobytes = {key: int(status[key].split()[0]) for key in ("VmRSS", "RssShmem")}
    return (kilobytes["VmRSS"] - kilobytes["RssShmem"]) / 1024


def lags(before: dict[str, float], after: dict[str, float]) -> tuple[int, int, str]:
    """Beats, those later than the bound, and the bucket of the latest."""
    counts = {
        labels.split('le="')[1].split('"')[0]: value - before.get(labels, 0.0)
        for labels, value in after.items()
    }
    total = counts["+Inf"]
    worst = min((float(bound) for bound, n in counts.items() if n == total), default=float("inf"))
    return int(total), int(total - counts[str(MOST_LAG_S)]), str(worst)


if __name__ == "__main__":
    main()
