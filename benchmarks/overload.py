"""What happens when requests arrive faster than they can be answered: 1, 2, 5 and 10 times.

The whole service in a process of its own, over HTTP, open loop: `make serve` with a deadline of
five seconds. First it is measured what it can answer at its own bound, then arrivals rise in phases
and fall again. Every request is about two freshly drawn pictures, and is new to all caches. The
model computes in 32 bits and has a core of its own, as a cluster would give it a GPU; the front
door, Redis and the load generator share the others. Where all share all, what it costs to refuse
ten times of what fits is taken from the answers.

Writes `results/overload.json`, `results/overload.png` and `docs/overload.png`. Some five minutes;
`OVERLOAD_PHASE_S=10` shortens the phases.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import random
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.open_loop import Body, Reply, closed, opened
from benchmarks.results import RESULTS, ROOT, write
from benchmarks.running import separate_cores, service
from m3_backend.training.worlds import draw
from predictor.drawing import ACCENT, INK, MUTED, draw_grid, style

PHASE_S = float(os.environ.get("OVERLOAD_PHASE_S", "45"))
LOADS = (1.0, 2.0, 5.0, 10.0)
CALM = 0.3  # of capacity, afterwards
DEADLINE_S = 5.0
SETTINGS = {
    "model.dtype": "float32",
    "router.request_timeout_s": DEADLINE_S,
    "log_level": "warning",
}
CALLERS = 8  # of the closed loop: enough for a batch, and no pressure yet
PICTURES, PER_REQUEST = 200, 2
BIN_S = 1.0


def run() -> None:
    body = bodies()
    with service(SETTINGS) as running:
        separate_cores(running.process.pid)
        url = running.url
        asyncio.run(closed(url, body, callers=2, seconds=PHASE_S / 3))  # warm-up
        measured = asyncio.run(closed(url, strictly(body), callers=CALLERS, seconds=PHASE_S))
        capacity = sum(reply.status == 200 for reply in measured) / PHASE_S
        print(f"capacity at the service's own bound: {capacity:.1f} requests/s", flush=True)
        phases = [(load * capacity, PHASE_S) for load in LOADS] + [(CALM * capacity, PHASE_S)]
        replies = asyncio.run(opened(url, body, phases))
    figures = {
        "requests_per_s": capacity,
        "deadline_s": DEADLINE_S,
        "settings": SETTINGS,
        "phases": [
            phase_figures(load, replies, index * PHASE_S, (index + 1) * PHASE_S)
            for index, load in enumerate((*LOADS, CALM))
        ],
        **judged(replies),
        "seconds": timeline(replies),
    }
    for phase in figures["phases"]:
        print(
            f"{phase['load']:4g}×  goodput {phase['goodput_per_s']:5.1f}/s  "
            f"429 {phase['refused_share']:6.1%}  other {phase['other']}  "
            f"p95 {phase['p95_s'] or 0:.2f} s  tokens {phase['mean_tokens'] or 0:5.0f}  "
            f"loosened {phase['loosened_share']:.0%}"
        )
    print({key: figures[key] for key in judged(replies)})
    print(write("overload", figures))
    for folder in (RESULTS, ROOT / "docs"):
        draw_timeline(replies, capacity).savefig(folder / "overload.png", dpi=160)


def bodies(per_request: int = PER_REQUEST) -> Body:
    """Makes the body of request number n; each has a salt of its own, so nothing is cached.

    Args:
        per_request: pictures in each.
    """
    drawn = [draw("overload", index, seed=7) for index in range(PICTURES)]
    pieces = []
    for picture in drawn:
        file = io.BytesIO()
        picture.image.save(file, "JPEG", quality=90)
        url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        pieces.append(json.dumps({"type": "image_url", "image_url": {"url": url}}).encode())
    questions = [json.dumps(picture.questions[0].text).encode() for picture in drawn]
    run_id = random.getrandbits(32)

    def body(number: int) -> bytes:
        chosen = [pieces[(number * per_request + at) % PICTURES] for at in range(per_request)]
        return b"".join(
            (
                b'{"model":"m3-auto","max_tokens":16,"m3":{"cache_salt":"%d-' % run_id,
                b'%d"},"messages":[{"role":"user","content":[' % number,
                b",".join(chosen),
                b',{"type":"text","text":%s}]}]}' % questions[number * per_request % PICTURES],
            )
        )

    return body


def strictly(body: Body) -> Body:
    """The same, bound to what the service's default is, which load then does not loosen."""
    return lambda number: body(number).replace(b'"m3":{', b'"m3":{"max_regret":0.05,', 1)


def within(replies: Sequence[Reply], begin: float, end: float) -> list[Reply]:
    return [reply for reply in replies if begin <= reply.due < end]


def good(reply: Reply) -> bool:
    return reply.status == 200 and reply.seconds <= DEADLINE_S


def p95(seconds: Sequence[float]) -> float | None:
    return sorted(seconds)[int(0.95 * len(seconds))] if seconds else None


def phase_figures(
    load: float, replies: Sequence[Reply], begin: float, end: float
) -> dict[str, Any]:
    """What became of the requests that were due between two times, and the answers that came then.

    Answers count when they come: those who wait when a phase begins or ends are no goodput of it.
    """
    asked = within(replies, begin, end)
    answered = [reply for reply in asked if reply.status == 200]
    came = [reply for reply in replies if begin <= reply.due + reply.seconds < end]
    return {
        "load": load,
        "offered_per_s": len(asked) / (end - begin),
        "goodput_per_s": sum(map(good, came)) / (end - begin),
        "refused_share": sum(reply.status == 429 for reply in asked) / max(len(asked), 1),
        "other": sum(reply.status not in (200, 429) for reply in asked),
        "p95_s": p95([reply.seconds for reply in answered]),
        "p95_refused_s": p95([reply.seconds for reply in asked if reply.status == 429]),
        "mean_tokens": statistics.fmean(r.tokens for r in answered) if answered else None,
        "loosened_share": sum(reply.loosened for reply in answered) / max(len(answered), 1),
    }


def judged(replies: Sequence[Reply]) -> dict[str, Any]:
    """The figures that the design asks for."""
    phases = [
        phase_figures(load, replies, index * PHASE_S, (index + 1) * PHASE_S)
        for index, load in enumerate(LOADS)
    ]
    peak = max(phase["goodput_per_s"] for phase in phases)
    kept = [
        phase["goodput_per_s"] / min(peak, phase["offered_per_s"])
        for phase in phases
        if phase["load"] > 1 or phase["offered_per_s"] < peak
    ]
    dropped = PHASE_S * len(LOADS)
    first_429 = min((r.due for r in replies if r.status == 429), default=None)
    before = [
        r for r in replies if r.status == 200 and r.loosened and r.due < (first_429 or dropped)
    ]
    troubled = [
        reply.due + reply.seconds
        for reply in replies
        if reply.due >= dropped and (reply.status != 200 or reply.loosened)
    ]
    return {
        "goodput_of_peak": min(kept),  # of what was asked for, where that is less
        "p95_s": p95([reply.seconds for reply in replies if reply.status == 200]),
        "first_loosened_s": min((r.due for r in replies if r.loosened), default=None),
        "first_429_s": first_429,
        "loosened_before_first_429": len(before),
        "recovery_s": max(troubled, default=dropped) - dropped,
    }


def timeline(replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """Figures of every second."""
    end = max(reply.due for reply in replies)
    return [phase_figures(0.0, replies, at, at + BIN_S) for at in range(int(end) + 1)]


def draw_timeline(replies: Sequence[Reply], capacity: float) -> Figure:
    """Rates, refusals, tokens and latency over time, under each other."""
    seconds = timeline(replies)
    times = [at + BIN_S / 2 for at in range(len(seconds))]

    def series(name: str) -> list[float]:
        return [float("nan") if s[name] is None else s[name] for s in seconds]

    def mean(values: list[float], over: int = 5) -> list[float]:
        windows = (values[max(0, at - over + 1) : at + 1] for at in range(len(values)))
        present = ([v for v in window if not math.isnan(v)] for window in windows)
        return [statistics.fmean(p) if p else float("nan") for p in present]

    with style():
        figure = Figure(figsize=(7, 7.2), layout="constrained")
        rates, shares, tokens, latency = figure.subplots(4, sharex=True)
        rates.plot(times, mean(series("offered_per_s")), color=MUTED, lw=1, label="arrivals")
        rates.plot(times, mean(series("goodput_per_s")), color=ACCENT, lw=1.6, label="goodput")
        rates.set_yscale("log")
        rates.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        rates.yaxis.set_minor_formatter(NullFormatter())
        rates.set_ylabel("requests/s")
        shares.plot(times, mean(series("refused_share")), color=INK, lw=1.2, label="429")
        shares.plot(times, mean(series("loosened_share")), color=ACCENT, lw=1.2, label="loosened")
        shares.set_ylim(0, 1.02)
        shares.set_ylabel("share")
        tokens.plot(times, mean(series("mean_tokens")), color=ACCENT, lw=1.6)
        tokens.set_ylim(bottom=0)
        tokens.set_ylabel("tokens per picture")
        latency.plot(times, mean(series("p95_s")), color=ACCENT, lw=1.6, label="p95 of answers")
        latency.axhline(DEADLINE_S, color=INK, lw=1, ls=":", label="deadline")
        latency.set_ylim(0, DEADLINE_S * 1.2)
        latency.set_ylabel("seconds")
        latency.set_xlabel(f"seconds; arrivals in multiples of {capacity:.1f}/s")
        for axes in (rates, shares, tokens, latency):
            draw_grid(axes)
            for index in range(1, len(LOADS) + 1):
                axes.axvline(index * PHASE_S, color=MUTED, lw=0.6)
        for axes in (rates, shares, latency):
            axes.legend(frameon=False, loc="upper left", ncols=2)
        for index, load in enumerate((*LOADS, CALM)):
            rates.annotate(
                f"{load:g}×", ((index + 0.5) * PHASE_S, 1), xycoords=("data", "axes fraction")
            )
    return figure
