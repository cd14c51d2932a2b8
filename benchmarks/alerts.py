"""Which alerts a real Prometheus fires, each in a fault that it is there for.

    make alerts

Starts the service, with a registry, small limits and every request labelled, and a Prometheus
(Debian's) that scrapes it and evaluates a copy of deploy/prometheus/rules.yaml in which all times
(windows, `for`, offsets) are divided by one factor, 360: an hour is ten seconds, a day four
minutes. Thresholds are as they are. Then every expression of the Grafana dashboard is asked over
the whole run. It needs some five minutes, most of them for the day that the alert about the cache
looks back, and a quiet machine: five minutes are less than a second here, and where scrapes come
too late (`scrapes_answered`) such alerts are missed. A smaller factor gives them time
(ARGS='--factor 60 --every 1s', half an hour).

Prints one JSON object, and ends with an error if an alert did not fire or a panel had no data.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import yaml

from deploy import grafana_dashboard
from predictor import artifact
from predictor.registry import Registry
from tests.conftest import unused_port
from tests.e2e.pictures import chat, picture
from tests.e2e.service import Sandbox, Service, sandbox, start
from tests.prometheus import BINARY, Prometheus, prometheus

DEPLOY = Path(grafana_dashboard.__file__).parent
RULES = DEPLOY / "prometheus" / "rules.yaml"
SHIPPED = Path(artifact.__file__).parent / "artifacts" / "m3-tiny"
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
FIRES_WITHIN_S = 120.0
GOOD_S = 25.0  # of cached pictures, which the alert about the cache looks back to
CROWD, RUSH_S = 32, 5.0
TIGHTENED = {"M3PolicyTightened"}
SETTINGS = {
    "model.max_batch": 2,
    "serve.replica.max_ongoing_requests": 4,
    "router.load.max_wait_s": 0.2,
    "router.shadow.uniform_share": 1.0,
    "router.shadow.budget": 1.0,
    "records.every_s": 1,
    "router.drift.every_s": 1,
}


@dataclass
class Run:
    """A service that is watched, and the alerts that were seen firing, each in which fault."""

    service: Service
    watching: Prometheus
    records: Path
    registry: Registry
    wanted: set[str]
    began: float = field(default_factory=time.time)
    fault: str = "none"
    seen: dict[str, list[str]] = field(default_factory=dict)  # faults, by alert

    def watch(self, over: threading.Event) -> None:
        """Notes what fires, until it is over."""
        while not over.wait(0.1):
            for name in self.watching.firing():
                faults = self.seen.setdefault(name, [])
                if self.fault not in faults:
                    faults.append(self.fault)

    def until_firing(self, fault: str, alerts: set[str], again: Callable[[], object]) -> None:
        """Does something again and again until these alerts have fired."""
        self._until(lambda: not alerts & self.watching.firing(), lambda: time.sleep(0.2))
        self.fault = fault
        self._until(lambda: not self._missing(alerts), again)
        missing = self._missing(alerts)
        self.fault = "none"
        print(f"{fault}: {'no ' + ', '.join(missing) if missing else 'seen'}", file=sys.stderr)

    def _missing(self, alerts: set[str]) -> set[str]:
        return {name for name in alerts if self.fault not in self.seen.get(name, [])}

    def _until(self, come_true: Callable[[], bool], again: Callable[[], object]) -> None:
        deadline = time.monotonic() + FIRES_WITHIN_S
        while not come_true() and time.monotonic() < deadline:
            again()

    def ask(self, seed: int, **options: Any) -> int:
        body = chat(picture(seed), **({"max_tokens": 2} | options))
        try:
            return httpx.post(
                f"{self.service.url}/v1/chat/completions", json=body, timeout=60
            ).status_code
        except httpx.TransportError:  # it is held, or away
            return 0

    def judge(self, seed: int) -> None:
        """Asks, and says that the answer was right."""
        body = chat(picture(seed), max_tokens=2)
        answer = httpx.post(f"{self.service.url}/v1/chat/completions", json=body, timeout=60)
        said = {"request_id": answer.headers["x-m3-request-id"], "verdict": "right"}
        httpx.post(f"{self.service.url}/v1/feedback", json=said, timeout=60).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factor", type=float, default=360.0, help="that times are divided by")
    parser.add_argument("--every", default="200ms", help="between two scrapes")
    options = parser.parse_args()
    factor = options.factor
    if BINARY is None:
        sys.exit("prometheus is not on the PATH (Debian: apt-get install prometheus)")
    rules = scaled(yaml.safe_load(RULES.read_text()), factor)
    wanted = {
        rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule
    }
    with sandbox() as box:
        registry = broken_promise(box)
        settings = SETTINGS | {"predictor": str(registry.root)}
        given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        service = start(*given, port=unused_port(), box=box)
        records = box.folder / "home/.local/state/m3-router/records"
        folder = box.folder / "prometheus"
        folder.mkdir()
        with prometheus(folder, service.url, every=options.every, rules=rules) as watching:
            run = Run(service, watching, records, registry, wanted)
            with watched(run):
                faults(run, UNITS_S["d"] / factor)
            figures = told(run, factor)
        service.stop()
    print(json.dumps(figures, indent=1))
    sys.exit(bool(figures["not_seen"] or figures["panels_without_data"]))


@contextmanager
def watched(run: Run) -> Iterator[None]:
    over = threading.Event()
    watcher = threading.Thread(target=run.watch, args=(over,))
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def scaled(rules: Any, factor: float) -> Any:
    """Rules with every time in expressions and `for` divided by a factor."""
    if isinstance(rules, Mapping):
        return {
            key: _divided(value, factor) if key in ("expr", "for") else scaled(value, factor)
            for key, value in rules.items()
        }
    return [scaled(rule, factor) for rule in rules] if isinstance(rules, list) else rules


def _divided(text: str, factor: float) -> str:
    def less(found: re.Match[str]) -> str:
        return f"{round(int(found[1]) * UNITS_S[found[2]] / factor * 1000)}ms"

    return re.sub(r"\b(\d+)([smhd])\b", less, text)


def broken_promise(box: Sandbox) -> Registry:
    """A registry whose predictor promises agreement and gives everything the coarsest scale."""
    loaded, _ = artifact.load(SHIPPED)
    loose = loaded.thresholds.prices[-1]
    thresholds = replace(loaded.thresholds, prices=(loose,) * len(loaded.thresholds.bounds))
    folder = box.folder / "artefact"
    artifact.save(
        replace(loaded, target="agreement", thresholds=thresholds), folder, "2026-01-01T00:00:00Z"
    )
    registry = Registry(box.folder / "predictors")
    registry.make()
    version = registry.add(folder).version
    registry.promote(version, "a promise that it cannot keep")
    registry.observe(version)  # so that its panel has something to show
    return registry


def faults(run: Run, day_s: float) -> None:
    """One after the other; each ends before the next begins."""
    good_until = time.monotonic() + GOOD_S
    while time.monotonic() < good_until:
        run.ask(seed=1, m3={"scale": 9})
        time.sleep(0.1)
    for _ in range(3):
        run.judge(seed=1)
        time.sleep(1.0)
    collapses_from = time.monotonic() - GOOD_S + day_s + GOOD_S / 2

    with ThreadPoolExecutor(CROWD) as crowd:

        def ask_on(caller: int) -> None:
            until = time.monotonic() + RUSH_S
            while time.monotonic() < until:
                run.ask(1000 + caller, max_tokens=32)
                time.sleep(0.05)

        def rush() -> None:
            list(crowd.map(ask_on, range(CROWD)))

        burns = {"M3Overloaded", "M3ErrorBudgetBurnsFast", "M3ErrorBudgetBurnsSlowly"}
        run.until_firing("more requests than can be answered", burns, rush)

    seeds = iter(range(2000, 100_000))

    def calmly() -> None:
        run.ask(next(seeds))
        time.sleep(0.4)

    if TIGHTENED & run.wanted:
        run.until_firing("a predictor that breaks its promise", TIGHTENED, calmly)

    with ThreadPoolExecutor(4) as callers:

        def few() -> None:
            list(callers.map(run.ask, [next(seeds) for _ in range(4)]))

        run.until_firing("pictures of a kind that is new", {"M3TrafficMoved"}, few)

    [current] = run.registry.root.glob("*/CURRENT")
    broken = current.resolve().with_name("0" * 16)
    shutil.copytree(current.resolve(), broken)
    (broken / "model.txt").write_text("nothing")
    serves = current.readlink()
    _point(current, broken.name)
    run.until_firing("a predictor whose file is damaged", {"M3PredictorRefused"}, _wait)
    _point(current, str(serves))

    ingress = run.service.child("ray::ServeReplica:m3-router:Ingress")
    run.until_firing(
        "an ingress that gets no processor", {"M3EventLoopHeld"}, lambda: _hold(ingress)
    )

    away = run.records.with_name("records-away")
    run.records.rename(away)
    run.records.write_text("in the way")
    run.until_firing("a store that takes no files", {"M3RecordsNotWritten"}, calmly)
    run.records.unlink()
    away.rename(run.records)

    with _stopped(run.service.child("redis-server")):
        run.until_firing("a Redis that does not answer", {"M3RedisBreakerOpen"}, calmly)

    while time.monotonic() < collapses_from - 5:
        run.ask(seed=1, m3={"scale": 9})
        time.sleep(0.1)
    run.until_firing(
        "pictures that nobody has asked about", {"M3CacheCollapsed"}, lambda: run.ask(next(seeds))
    )


def told(run: Run, factor: float) -> dict[str, Any]:
    asks = grafana_dashboard.expressions(rate_interval="3s")
    without = [ask for ask in asks if not run.watching.query_range(ask, run.began, 1.0)]
    return {
        "times_divided_by": factor,
        "scrapes_answered": _mean(run.watching.query_range("up", run.began, 1.0)),
        "alerts_seen_firing": dict(sorted(run.seen.items())),
        "not_seen": sorted(name for name in run.wanted if {"none"} >= set(run.seen.get(name, []))),
        "panels_asked": len(asks),
        "panels_without_data": without,
    }


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def _point(link: Path, target: str) -> None:
    beside = link.with_name("next")
    beside.symlink_to(target)
    beside.replace(link)


def _wait() -> None:
    time.sleep(0.2)


def _hold(process: int) -> None:
    """Keeps a process from running for a quarter of a second."""
    with _stopped(process):
        time.sleep(0.25)
    time.sleep(0.4)


@contextmanager
def _stopped(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


if __name__ == "__main__":
    main()
