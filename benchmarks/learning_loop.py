"""The learning loop, seen whole: traffic that a predictor has never seen, until it has learned it.

The real service over HTTP with m3-tiny, Redis, recorder and registry. It starts with a predictor
that promises agreement and has learned from half of the families of questions only, those that
a coarse scale answers best. Then questions of all families arrive, about freshly drawn pictures:

before     until the labels say with confidence that the promise is broken, so that the policy
           tightens, and the drift warning is there
tightened  the traffic, at what was tightened
after      `m3-router retrain` on the labels has promoted another predictor; the same traffic again

So that this takes minutes on two cores, every request is drawn (`router.shadow.uniform_share: 1`),
labels may take all of the replica's time (`budget: 1`), the bound is a loose one and requests wait
for labels in between. Writes `results/learning_loop.json`, `docs/learning-loop.png`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import aiohttp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.open_loop import CHAT
from benchmarks.results import OUTCOMES, ROOT, write
from benchmarks.running import separate_cores, service
from benchmarks.scraping import Labels, metrics
from predictor import artifact as artifacts
from predictor.datasets import Row, world_rows
from predictor.drawing import ACCENT, INK, MUTED, draw_grid, style
from predictor.image_table import read_image_table, table_beside
from predictor.record_store import LABELS, RecordStore
from predictor.records import OutcomeTable, assign_split, read_outcomes
from predictor.registry import Registry
from predictor.regret import lost
from predictor.train import fit

REQUESTS = int(os.environ.get("LEARNING_LOOP_REQUESTS", "600"))  # of the traffic
MOST_BEFORE = 300
CHUNK, CALLERS = 50, 4
BOUND = 0.1
SETTINGS = {
    "model.dtype": "float32",
    "log_level": "warning",
    "records.every_s": 0.5,
    "router.max_regret": BOUND,
    "router.load.max_regret_ceiling": 0.0,  # load changes nothing here
    "router.shadow.uniform_share": 1.0,
    "router.shadow.budget": 1.0,
    "router.drift.every_s": 1.0,
}
LEAST_SAVED = 0.4
LABELLED_WITHIN_S = 120.0


def run() -> None:
    began = time.monotonic()
    before, traffic = questions()
    with tempfile.TemporaryDirectory() as folder:
        records, registry = Path(folder, "records"), Registry(Path(folder, "predictors"))
        first, families = half_trained(registry, Path(folder, "half"))
        settings = SETTINGS | {"predictor": str(registry.root), "records.store": str(records)}
        with service(settings) as running:
            separate_cores(running.process.pid)
            loop = Loop(running.url, time.monotonic())
            loop.send("before", before, until=lambda seen: seen.tightened and seen.drifted)
            loop.send("tightened", traffic)
            verdict = retrain(records, registry.root)
            loop.await_predictor(verdict["version"])
            loop.send("after", traffic)
        figures = judged(loop, records, verdict) | {
            "first": first,
            "families": families,
            "settings": SETTINGS,
            "minutes": (time.monotonic() - began) / 60,
            "retrained": verdict,
            "chunks": [asdict(chunk) for chunk in loop.chunks],
        }
    told(figures)
    print(write("learning_loop", figures))
    draw_loop(loop.chunks).savefig(ROOT / "docs" / "learning-loop.png", dpi=160)


def questions() -> tuple[list[Row], list[Row]]:
    """One about each freshly drawn picture: first ones, and the traffic."""
    rows = list(world_rows(MOST_BEFORE + REQUESTS, questions=1, seed=11))
    return rows[:MOST_BEFORE], rows[MOST_BEFORE:]


def half_trained(registry: Registry, folder: Path) -> tuple[str, list[str]]:
    """Promotes a predictor of half of the families; gives its version and those families."""
    table = read_outcomes(OUTCOMES)
    families = easiest_half(table)
    known = table.take(np.isin(table.group, families))
    images = read_image_table(table_beside(OUTCOMES))
    artifact = fit(known, images, target="agreement")
    artifacts.save(artifact, folder, datetime.now(UTC).isoformat(timespec="seconds"))
    registry.make()
    version = registry.add(folder).version
    registry.promote(version, "half of the families")
    return version, families


def easiest_half(table: OutcomeTable) -> list[str]:
    """The families of which nine tokens say most often what the finest scale says."""
    agrees = table.success("agreement")[:, 1]
    found = {family: agrees[table.group == family].mean() for family in sorted(set(table.group))}
    return sorted(found, key=lambda family: -found[family])[: len(found) // 2]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some requests that were answered and labelled, and what the service said then.

    Args:
        end_s: since the service was ready.
        requests: all so far.
        tokens: mean image tokens.
        regret, low, high: of the predictor's decisions at what they were tightened to.
        threshold_low: of the price certified for the bound, at least.
        psi: by kind.
    """

    phase: str
    end_s: float
    requests: int
    tokens: float
    predictor: str
    tightened_to: str | None
    regret: float
    low: float
    high: float
    threshold_low: float | None
    psi: dict[str, float]
    drifted: bool
    tightened: bool


@dataclass
class Loop:
    """Sends questions in chunks and waits until each of them has its label."""

    url: str
    began: float
    chunks: list[Chunk] = field(default_factory=list)
    sent: int = 0

    def send(self, phase: str, rows: Sequence[Row], until: Any = lambda seen: False) -> None:
        for start in range(0, len(rows), CHUNK):
            replies = asyncio.run(ask(self.url, phase, rows[start : start + CHUNK]))
            self.sent += len(replies)
            self.await_labels()
            self.chunks.append(self.seen(phase, replies))
            print(json.dumps(asdict(self.chunks[-1])), flush=True)
            if until(self.chunks[-1]):
                return

    def await_labels(self) -> None:
        """Until every request that was sent has its label, which an ingress has heard of."""
        deadline = time.monotonic() + LABELLED_WITHIN_S
        while (made := settled(metrics(self.url))) < self.sent:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{made} of {self.sent} requests were labelled")
            time.sleep(0.25)
        time.sleep(2.5)  # the recorder writes, the ingress looks

    def await_predictor(self, version: str) -> None:
        deadline = time.monotonic() + 30
        while ("version", version) not in next(iter(metrics(self.url)["m3_predictor_info"])):
            if time.monotonic() > deadline:
                raise RuntimeError(f"predictor {version} does not serve")
            time.sleep(0.25)

    def seen(self, phase: str, replies: Sequence[Answered]) -> Chunk:
        now, last = metrics(self.url), replies[-1]
        served = {"predictor": last.predictor, "tightened_to": last.tightened_to or "no"}
        threshold = {"predictor": last.predictor, "bound": f"{BOUND:g}"}
        low = pick(now["m3_threshold_regret_low"], threshold)
        return Chunk(
            phase,
            time.monotonic() - self.began,
            self.sent,
            fmean(reply.scale for reply in replies),
            last.predictor,
            last.tightened_to,
            *(pick(now[f"m3_regret{end}"], served) or 0.0 for end in ("", "_low", "_high")),
            low,
            {dict(names)["kind"]: psi for names, psi in now["m3_drift_psi"].items()},
            drifted=any(now["m3_drift_warning"].values()),
            tightened=any(now["m3_tightened"].values()),
        )


@dataclass(frozen=True, slots=True)
class Answered:
    scale: int
    predictor: str
    tightened_to: str | None


async def ask(url: str, phase: str, rows: Sequence[Row]) -> list[Answered]:
    """The answers' headers. Each phase has a salt, so that nothing is cached."""
    places = asyncio.Semaphore(CALLERS)
    async with aiohttp.ClientSession() as session:

        async def one(row: Row) -> Answered:
            picture = base64.b64encode(row.read_picture()).decode()
            content = [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                {"type": "text", "text": row.question},
            ]
            body = {
                "model": "m3-auto",
                "max_tokens": 12,
                "m3": {"cache_salt": phase},
                "messages": [{"role": "user", "content": content}],
            }
            async with places, session.post(url + CHAT, json=body) as response:
                response.raise_for_status()
                await response.read()
                told = response.headers
                return Answered(
                    int(told["x-m3-scale"]), told["x-m3-predictor"], told.get("x-m3-tightened-to")
                )

        return list(await asyncio.gather(*(one(row) for row in rows)))


def settled(found: dict[str, dict[Labels, float]]) -> float:
    """Drawn requests that became something."""
    return sum(found.get("m3_shadow_draws_total", {}).values())


def pick(series: dict[Labels, float], labels: dict[str, str]) -> float | None:
    found = (v for names, v in series.items() if labels.items() <= dict(names).items())
    return next(found, None)


def retrain(records: Path, registry: Path) -> dict[str, Any]:
    """`m3-router retrain`, as an operator would run it beside the service."""
    command = [sys.executable, "-m", "deploy.cli", "retrain", "--json", f"--max-regret={BOUND}"]
    command += [f"--records={records}", f"--registry={registry}"]
    began = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"nothing was promoted: {done.stdout} {done.stderr}")
    told = json.loads(done.stdout)
    recent = told["judged"]["recent"]
    return {
        "version": told["version"],
        "promoted": told["promoted"],
        "seconds": time.monotonic() - began,
        "gain": recent["gain"],
        "confidence": recent["confidence"],
    }


def judged(loop: Loop, records: Path, verdict: dict[str, Any]) -> dict[str, Any]:
    """The figures that are asked for."""
    tokens = {
        phase: fmean(chunk.tokens for chunk in loop.chunks if chunk.phase == phase)
        for phase in ("before", "tightened", "after")
    }
    last = {chunk.phase: chunk for chunk in loop.chunks}
    unseen, every = [], []
    for table in RecordStore(str(records)).read(LABELS):
        for row in table.to_pylist():
            if row["predictor"] == verdict["version"]:
                every.append(lost(row))
                if assign_split(row["image"]) == "test":
                    unseen.append(lost(row))
    return {
        "bound": BOUND,
        "requests": loop.sent,
        "tokens": tokens,
        "saved": 1 - tokens["after"] / tokens["tightened"],
        "regret": {phase: chunk.regret for phase, chunk in last.items()},
        "regret_after": {
            "all": fmean(every),
            "held_out": fmean(unseen),
            "held_out_of": len(unseen),
        },
        "tightened_to": last["tightened"].tightened_to,
    }


def told(figures: dict[str, Any]) -> None:
    tokens, regret, after = figures["tokens"], figures["regret"], figures["regret_after"]
    print(f"\nlearning loop: {figures['requests']} requests, {figures['minutes']:.1f} minutes")
    print(f"bound {BOUND:g}; tokens and regret by phase")
    for phase, mean in tokens.items():
        print(f"{phase:>10} {mean:7.1f} {regret[phase]:8.4f}")
    print(
        f"{figures['saved']:.1%} fewer tokens after than tightened (at least {LEAST_SAVED:.0%}); "
        f"regret after {after['all']:.4f}, on {after['held_out_of']} pictures that retraining held "
        f"out {after['held_out']:.4f}"
    )


def draw_loop(chunks: Sequence[Chunk]) -> Figure:
    """Regret beside its bound, tokens and drift over time, phases marked."""
    minutes = [chunk.end_s / 60 for chunk in chunks]
    starts = {}
    for chunk, at in zip(chunks, [0.0, *minutes], strict=False):
        starts.setdefault(chunk.phase, at)
    with style():
        figure = Figure(figsize=(7, 6.4), layout="constrained")
        regrets, tokens, drift = figure.subplots(3, sharex=True)
        for phase in starts:
            own = [(at, c) for at, c in zip(minutes, chunks, strict=True) if c.phase == phase]
            times = [at for at, _ in own]
            band = [c.low for _, c in own], [c.high for _, c in own]
            regrets.fill_between(times, *band, color=ACCENT, alpha=0.15, lw=0)
            label = "of what was served, with its 95% sequence" if phase == "before" else None
            regrets.plot(times, [c.regret for _, c in own], color=ACCENT, lw=1.6, label=label)
        lows = [float("nan") if c.threshold_low is None else c.threshold_low for c in chunks]
        own_price = "of the bound's own price, at least"
        regrets.plot(minutes, lows, color=INK, lw=1, ls="--", label=own_price)
        regrets.axhline(BOUND, color=INK, lw=1, ls=":", label="bound")
        regrets.set_ylim(0, 0.5)
        regrets.set_ylabel("agreement regret")
        tokens.step(minutes, [c.tokens for c in chunks], where="mid", color=ACCENT, lw=1.6)
        tokens.set_ylim(0, 600)
        tokens.set_ylabel("tokens per picture")
        for kind, colour in (("question", ACCENT), ("picture", INK), ("score", MUTED)):
            psi = [c.psi.get(kind, float("nan")) for c in chunks]
            drift.plot(minutes, psi, color=colour, lw=1.2, label=kind)
        drift.axhline(0.25, color=INK, lw=1, ls=":", label="warning")
        drift.set_ylim(bottom=0)
        drift.set_ylabel("largest stability index")
        drift.set_xlabel("minutes")
        axes: Axes
        for axes in (regrets, tokens, drift):
            draw_grid(axes)
            for start in starts.values():
                axes.axvline(start, color=MUTED, lw=0.6)
        for axes in (regrets, drift):
            axes.legend(frameon=False, loc="upper right", fontsize=8)
        for phase, start in starts.items():
            place = (start, 1.02)
            name = "retrained" if phase == "after" else phase
            regrets.annotate(name, place, xycoords=("data", "axes fraction"))
    return figure
