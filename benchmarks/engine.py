"""This engine against transformers' `generate` in static batches: same weights, same questions.

`workload`   m3-tiny's own questions and answers, 32 callers, at the scales that the packaged
             predictor chooses at two bounds: requests/s and accuracy of both sides, beside fixed
             576 tokens, with every picture new and with half of the requests about one seen before
`curve`      requests/s of this engine against mean tokens and reuse, beside what the measured costs
             of its stages predict
`latency`    time to the first token of a 9-token question while ten prompts of 576 tokens prefill,
             and of a second question about the same picture at the same scale
`grid`       fixed scales × 1, 8 and 32 callers, answers of 4 to 64 tokens; not run by default

Figures are medians over rounds, ratios are taken within a round. `ENGINE_PARTS`
(workload,curve,latency), `ENGINE_ROUNDS` (5), `ENGINE_REQUESTS` (96 per run), `ENGINE_CALLERS` of
the grid (1,8,32) and `ENGINE_THREADS` (all cores) change it. Parts that are not run keep what
`results/engine.json` has of them. Nothing else should run. On CPUs only so far: CUDA is unmeasured.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks import engine_grid, engine_latency
from benchmarks.engine_costs import StageCosts, measure_stages
from benchmarks.engine_requests import Requests, mean_tokens
from benchmarks.engine_sides import THREADS, Ours, Run, Theirs
from benchmarks.results import RESULTS, write
from m3_backend.checkpoint import Checkpoint, open_checkpoint
from predictor.drawing import ACCENT, MUTED, draw_grid, style

PARTS = tuple(os.environ.get("ENGINE_PARTS", "workload,curve,latency").split(","))
ROUNDS = int(os.environ.get("ENGINE_ROUNDS", "5"))
REQUESTS = int(os.environ.get("ENGINE_REQUESTS", "96"))
CALLERS = 32
FINEST = 576
BOUNDS = (0.04, 0.075)  # of regret: within a point of 576 tokens; 100 tokens or fewer
CURVE_BOUNDS = (0.0025, 0.03, 0.05, 0.075, 0.1, 0.2)
REUSES = (0.0, 0.5, 0.8)


def run() -> None:
    torch.set_num_threads(THREADS)
    checkpoint = open_checkpoint("m3-tiny", device="cpu")
    requests = Requests(checkpoint, ROUNDS * REQUESTS)
    parts: dict[str, Callable[[], Any]] = {
        "workload": lambda: workload(checkpoint, requests),
        "curve": lambda: curve(checkpoint, requests),
        "latency": lambda: engine_latency.measured(checkpoint, requests, ROUNDS),
        "grid": lambda: engine_grid.measured(checkpoint, requests, ROUNDS, REQUESTS // 3),
    }
    path = RESULTS / "engine.json"
    figures = json.loads(path.read_text()) if path.is_file() else {}
    for name in PARTS:
        figures[name] = {
            "rounds": ROUNDS,
            "requests": REQUESTS,
            "threads": THREADS,
            "dtype": str(checkpoint.dtype).removeprefix("torch."),
            "device": "cpu; CUDA is unmeasured",
            "rows": parts[name](),
        }
        write("engine", figures)  # after every part, so that one that is cut off loses only its own
        print(f"{name}: {path}", flush=True)
    if {"workload", "curve"} <= figures.keys():
        with style():
            plot(figures["workload"]["rows"], figures["curve"]["rows"]).savefig(
                RESULTS / "engine.png", dpi=160
            )


def workload(checkpoint: Checkpoint, requests: Requests) -> dict[str, Any]:
    """Both sides on the same questions, taking turns who is first."""
    with closing(Theirs(checkpoint, CALLERS)) as static, closing(Ours(checkpoint, CALLERS)) as own:
        sides: dict[str, tuple[Callable[..., Run], Any, float]] = {
            "transformers, 576, new": (static.run, requests.at(FINEST), 0.0),
            "transformers, 576, half seen": (static.run, requests.at(FINEST), 0.5),
            "this engine, 576, new": (own.run, requests.at(FINEST), 0.0),
        }
        for bound in BOUNDS:
            choose = requests.chosen(bound)
            sides[f"transformers, {bound:g}, new"] = (static.run, choose, 0.0)
            sides[f"this engine, {bound:g}, new"] = (own.run, choose, 0.0)
            sides[f"this engine, {bound:g}, half seen"] = (own.run, choose, 0.5)
        runs: dict[str, list[Run]] = {name: [] for name in sides}
        tokens: dict[str, list[float]] = {name: [] for name in sides}
        for side, choose, reuse in sides.values():
            side(requests.make(choose, CALLERS, -1, reuse))  # warm-up
        for number in range(ROUNDS):
            order = list(sides) if number % 2 else list(reversed(sides))
            for name in order:
                side, choose, reuse = sides[name]
                asked = requests.make(choose, REQUESTS, number, reuse)
                tokens[name].append(mean_tokens(asked))
                runs[name].append(side(asked))
    rows = {name: summary(runs[name], tokens[name]) for name in sides}
    ratios = {}
    for bound in BOUNDS:
        new, seen = runs[f"this engine, {bound:g}, new"], runs[f"this engine, {bound:g}, half seen"]
        ratios[f"{bound:g}"] = {
            "against static batches at the same scales": times(
                new, runs[f"transformers, {bound:g}, new"]
            ),
            "against static batches at 576, every picture new": times(
                new, runs["transformers, 576, new"]
            ),
            "against static batches at 576, half seen before": times(
                seen, runs["transformers, 576, half seen"]
            ),
            "accuracy above theirs at 576": accuracy_gap(new, runs["transformers, 576, new"]),
        }
    print_workload(rows, ratios)
    return {"sides": rows, "ratios": ratios}


def summary(runs: Sequence[Run], tokens: Iterable[float]) -> dict[str, float]:
    firsts = [statistics.median(one.first_s for one in run.took) for run in runs]
    further = [statistics.median(one.token_s for one in run.took) for run in runs]
    return {
        "mean_tokens": statistics.fmean(tokens),
        "requests_per_s": statistics.median(run.requests_per_s for run in runs),
        "accuracy": statistics.fmean(run.accuracy for run in runs),
        "ttft_ms": 1e3 * statistics.median(firsts),
        "token_ms": 1e3 * statistics.median(further),
        "peak_mib": statistics.median(run.peak_bytes for run in runs) / 2**20,
        "kv_tokens": statistics.median(run.kv_tokens for run in runs),
        "kv_of_in_flight": max(run.kv_share for run in runs),
    }


def times(own: Sequence[Run], other: Sequence[Run]) -> list[float]:
    """Requests/s as a multiple of the other's, of every round."""
    return [a.requests_per_s / b.requests_per_s for a, b in zip(own, other, strict=True)]


def accuracy_gap(own: Sequence[Run], other: Sequence[Run]) -> list[float]:
    """On the same questions, of every round."""
    return [a.accuracy - b.accuracy for a, b in zip(own, other, strict=True)]


def curve(checkpoint: Checkpoint, requests: Requests) -> dict[str, Any]:
    """Requests/s over operating points and reuse, beside one queue of the measured stages."""
    with closing(Ours(checkpoint, CALLERS)) as own:
        own.run(requests.make(requests.at(FINEST), CALLERS, -1))  # warm-up
        costs = measure_stages(checkpoint, CALLERS)
        rows = []
        for reuse in REUSES:
            for bound in CURVE_BOUNDS:
                choose = requests.chosen(bound)
                tokens, rates, predicted, right = [], [], [], []
                for number in range(ROUNDS):
                    asked = requests.make(choose, REQUESTS, number, reuse)
                    done = own.run(asked)
                    tokens.append(mean_tokens(asked))
                    rates.append(done.requests_per_s)
                    predicted.append(costs.requests_per_s(asked))
                    right.append(done.accuracy)
                rows.append(
                    {
                        "max_regret": bound,
                        "reuse": reuse,
                        "mean_tokens": statistics.fmean(tokens),
                        "requests_per_s": statistics.median(rates),
                        "predicted_per_s": statistics.median(predicted),
                        "accuracy": statistics.fmean(right),
                    }
                )
    print_curve(rows, costs)
    return {"stages": costs.as_dict(), "points": rows}


def print_workload(rows: dict[str, dict[str, float]], ratios: dict[str, Any]) -> None:
    print(f"\nengine, workload: {CALLERS} callers, {ROUNDS} × {REQUESTS} questions")
    print(
        f"{'side, bound on regret, pictures':32} {'tokens':>6} {'requests/s':>10} {'accuracy':>8} "
        f"{'TTFT ms':>7} {'ms/token':>8} {'peak MiB':>8} {'KV tokens':>9} {'of tokens':>9}"
    )
    for name, row in rows.items():
        print(
            f"{name:32} {row['mean_tokens']:6.0f} {row['requests_per_s']:10.1f} "
            f"{row['accuracy']:8.3f} {row['ttft_ms']:7.0f} {row['token_ms']:8.1f} "
            f"{row['peak_mib']:8.0f} {row['kv_tokens']:9.0f} {row['kv_of_in_flight']:9.2f}"
        )
    for bound, of_bound in ratios.items():
        for name, values in of_bound.items():
            print(
                f"bound {bound}, {name}: {statistics.median(values):.3f} "
                f"({min(values):.3f} to {max(values):.3f})"
            )


def print_curve(rows: Sequence[dict[str, float]], costs: StageCosts) -> None:
    print(f"\nengine, curve: {costs}")
    print(
        f"{'reuse':>5} {'bound':>6} {'tokens':>6} {'requests/s':>10} {'predicted':>9} {'right':>6}"
    )
    for row in rows:
        print(
            f"{row['reuse']:5.1f} {row['max_regret']:6.4g} {row['mean_tokens']:6.0f} "
            f"{row['requests_per_s']:10.1f} {row['predicted_per_s']:9.1f} {row['accuracy']:6.3f}"
        )


def plot(sides: dict[str, Any], points: dict[str, Any]) -> Figure:
    """Requests/s against mean tokens, per reuse, beside the predicted and the static batches."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for reuse, width in zip(REUSES, (1.8, 1.3, 0.8), strict=True):
        of_reuse = [row for row in points["points"] if row["reuse"] == reuse]
        tokens = [row["mean_tokens"] for row in of_reuse]
        measured = [row["requests_per_s"] for row in of_reuse]
        label = f"{reuse:.0%} seen before" if reuse else "every picture new"
        axes.plot(tokens, measured, color=ACCENT, linewidth=width, marker=".", label=label)
        predicted = [row["predicted_per_s"] for row in of_reuse]
        axes.plot(tokens, predicted, color=ACCENT, linewidth=width / 2, linestyle=":")
    static = [row for name, row in sides["sides"].items() if name.startswith("transformers")]
    axes.scatter(
        [row["mean_tokens"] for row in static],
        [row["requests_per_s"] for row in static],
        color=MUTED,
        s=14,
        label="transformers, static batches",
    )
    axes.set_xscale("log")
    axes.set_xlabel("mean image tokens; dotted: predicted from the costs of the stages")
    axes.set_ylabel("requests/s")
    axes.legend(frameon=False)
    draw_grid(axes)
    return figure
