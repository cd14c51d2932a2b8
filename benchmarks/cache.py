"""Features in memory: what placement by picture is worth, and hit rate and latency of the cache.

**Placement.** Two services side by side, each with two model replicas in a real Ray Serve: one
places by picture (`serve.replica.affinity`), the other by power of two choices, which is Ray's own.
2,000 pictures are asked about by Zipf(1.0) at nine tokens; each replica's memory holds a tenth of
them, and there is no Redis. After a closed loop that fills the caches, both get the same arrivals
by turns, open loop, at a share of what the slower one can do. Hit rates stand beside those of one
feature cache (`m3_backend.feature_cache`) of the joint size, which sees the same requests in this
process; only its vision tower is left out. Then half of all requests are about one picture.

**Sweep.** One replica: memory, share of pictures seen before, scale.

Nothing is simulated. A hit is a picture that need not be encoded: its features are in memory, or
its tokens in KV memory, which is kept small (`model.kv_tokens`) so that the features decide.

Writes `results/cache.json` and `results/cache.png`. Seven minutes; `CACHE_PARTS=placement,sweep`
runs both parts or one, `CACHE_ROUNDS` (5) and `CACHE_ROUND_S` (20) change the first.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.open_loop import Body, Reply, arrivals, closed, opened
from benchmarks.results import RESULTS, write
from benchmarks.running import Running, service
from benchmarks.workload import (
    Asked,
    Pictures,
    again_or_new,
    by_popularity,
    options_of,
    quantile,
)
from m3_backend.checkpoint import open_checkpoint
from m3_backend.feature_cache import Encoded, FeatureCache, FeatureSource
from predictor.drawing import ACCENT, INK, MUTED, draw_grid, style

PARTS = os.environ.get("CACHE_PARTS", "placement,sweep").split(",")
ROUNDS = int(os.environ.get("CACHE_ROUNDS", "5"))
ROUND_S = float(os.environ.get("CACHE_ROUND_S", "20"))
PICTURES, SKEW, HELD = 2000, 1.0, 0.1
SCALE = 9
WARM_UP = 800  # requests of the closed loop that fills the caches
CALLERS = 8
LOAD = 0.6  # of what the slower side can do
HOT, HOT_ROUNDS = 0.5, 3
LOOK_S = 0.5  # between two looks at outstanding work
SETTINGS: dict[str, Any] = {
    "predictor": "none",
    "cache.redis": "none",
    "records.store": "none",
    "model.max_batch": 8,
    "model.kv_tokens": 1024,
    "log_level": "warning",
}
SIDES = {"affinity": True, "two choices": False}
LEVELS_HIT = ("prefix", "memory")
SCALES = (1, 9, 36, 144, 576)
SWEEP_REQUESTS, SWEEP_PICTURES = 200, 160
MEMORIES = (0.05, 0.2, 1.0)  # of the sweep's pictures
REUSES = (0.0, 0.5, 0.9)


def run() -> None:
    path = RESULTS / "cache.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    figures.pop("machine", None)
    sizes = Sizes()
    if "placement" in PARTS:
        pictures = Pictures(PICTURES, split="cache", seed=5)
        figures["placement"] = placement(pictures, sizes)
    if "sweep" in PARTS:
        figures["sweep"] = sweep(Pictures(SWEEP_PICTURES, split="cache", seed=6), sizes)
    print(write("cache", figures))
    with style():
        plot(figures).savefig(RESULTS / "cache.png", dpi=160)


class Sizes:
    """Bytes of m3-tiny's features, and sources of its entries."""

    def __init__(self) -> None:
        self._checkpoint = open_checkpoint("m3-tiny", device="cpu")
        self._token = self._checkpoint.shape.hidden * self._checkpoint.dtype.itemsize

    def memory(self, pictures: float, scale: int) -> int:
        """That holds so many pictures, each with its finest features and those of a scale."""
        finest = self._checkpoint.ladder.finest
        tokens = finest + (scale if scale != finest else 0)
        return int(pictures * tokens * self._token)

    def source(self, picture: int) -> FeatureSource:
        checkpoint = self._checkpoint
        return FeatureSource(
            image=str(picture),
            model=checkpoint.identity,
            processor=checkpoint.preprocessing.identity,
            salt="",
            ladder=checkpoint.ladder,
            tiles=1,
            hidden=checkpoint.shape.hidden,
            dtype=checkpoint.dtype,
        )


class OneCache:
    """A feature cache of this process that is asked for the same pictures."""

    def __init__(self, sizes: Sizes, memory: int) -> None:
        self._sizes, self._cache = sizes, FeatureCache(memory)

    def ask(self, picture: int) -> bool:
        source = self._sizes.source(picture)

        def encode() -> Encoded:
            return Encoded(torch.zeros(source.shape(source.ladder.finest), dtype=source.dtype), 1.0)

        return self._cache.get(source, SCALE, encode).level == "memory"


def placement(pictures: Pictures, sizes: Sizes) -> dict[str, Any]:
    """Both sides on the same requests."""
    rng = random.Random(1)
    memory = sizes.memory(HELD * PICTURES, SCALE)
    settings = SETTINGS | {"serve.replica.replicas": 2, "cache.memory": memory}
    order = by_popularity(200_000, PICTURES, SKEW, rng)
    rng.shuffle(ranks := list(range(PICTURES)))  # popularity says nothing about a picture's kind
    asked = [pictures.ask(ranks[number], rng) for number in order]
    with ExitStack() as running:
        services = {
            side: running.enter_context(service(settings | {"serve.replica.affinity": affinity}))
            for side, affinity in SIDES.items()
        }
        one = OneCache(sizes, 2 * memory)
        replies: dict[str, list[Reply]] = {side: [] for side in SIDES}
        speeds = {}
        for side, its in services.items():
            told = asyncio.run(
                closed(its.url, bodies(pictures, asked), callers=CALLERS, requests=WARM_UP)
            )
            late = [reply for reply in told if reply.number >= WARM_UP // 2]
            began = min(reply.due for reply in late)
            ended = max(reply.due + reply.seconds for reply in late)
            speeds[side] = len(late) / (ended - began)
            replies[side] += told
        hits = [one.ask(one_asked.picture) for one_asked in asked[:WARM_UP]]
        rate = LOAD * min(speeds.values())
        print(f"placement: {speeds} requests/s; arrivals at {rate:.1f}/s", flush=True)
        at = WARM_UP
        rounds: dict[str, list[list[Reply]]] = {side: [] for side in SIDES}
        for number in range(ROUNDS):
            count = len(arrivals([(rate, ROUND_S)], seed=number))
            body = bodies(pictures, asked[at : at + count])
            for side in in_turn(number):
                load = opened(services[side].url, body, [(rate, ROUND_S)], seed=number)
                rounds[side].append(asyncio.run(load))
            hits += [one.ask(one_asked.picture) for one_asked in asked[at : at + count]]
            at += count
        for side in SIDES:
            replies[side] += [reply for each in rounds[side] for reply in each]
        hot = hot_picture(services, pictures, asked[at:], rate)
    in_process = statistics.fmean(hits)
    in_process_later = statistics.fmean(hits[WARM_UP:])
    figures = {
        "pictures": PICTURES,
        "skew": SKEW,
        "scale": SCALE,
        "memory_bytes_per_replica": memory,
        "settings": settings,
        "rate": rate,
        "closed_requests_per_s": speeds,
        "in_process_hit_rate": in_process,
        "in_process_hit_rate_after_warm_up": in_process_later,
        "sides": {},
        "hot": hot,
    }
    for side in SIDES:
        later = [reply for each in rounds[side] for reply in each]
        figures["sides"][side] = {
            "requests": len(replies[side]),
            "errors": sum(reply.status != 200 for reply in replies[side]),
            "hit_rate": hit_rate(replies[side]),
            "hit_rate_after_warm_up": hit_rate(later),
            "levels": {level: levels(later, level) for level in ("prefix", "memory", "miss")},
            "of_in_process": hit_rate(replies[side]) / in_process,
            "of_in_process_after_warm_up": hit_rate(later) / in_process_later,
            **latencies(rounds[side]),
        }
    figures["p95_ratio"] = ratio(rounds)
    for side, row in figures["sides"].items():
        print(
            f"{side:>12}: hits {row['hit_rate_after_warm_up']:.1%} "
            f"({row['of_in_process_after_warm_up']:.2f} of one cache's {in_process_later:.1%}; "
            f"from the first request on {row['of_in_process']:.2f}), "
            f"p50 {row['p50_ms']:.0f} ms, p95 {row['p95_ms']:.0f} ms, errors {row['errors']}"
        )
    print(f"p95 of affinity ÷ p95 of two choices: {figures['p95_ratio']:.2f}")
    return figures


def hot_picture(
    services: Mapping[str, Running], pictures: Pictures, asked: Sequence[Asked], rate: float
) -> dict[str, Any]:
    """Half of all requests about one picture, a popular one of neither side."""
    rng = random.Random(2)
    hot = pictures.ask(PICTURES - 1, rng)
    mixed = [hot if rng.random() < HOT else one for one in asked]
    found: dict[str, Any] = {"share": HOT, "sides": {}}
    rounds: dict[str, list[list[Reply]]] = {side: [] for side in SIDES}
    work: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    before = {side: answered_by(its) for side, its in services.items()}
    at = 0
    for number in range(HOT_ROUNDS):
        count = len(arrivals([(rate, ROUND_S)], seed=100 + number))
        body = bodies(pictures, mixed[at : at + count])
        for side in in_turn(number):
            with watched(services[side]) as seen:
                load = opened(services[side].url, body, [(rate, ROUND_S)], seed=100 + number)
                rounds[side].append(asyncio.run(load))
            work[side] += seen
        at += count
    for side, its in services.items():
        after = answered_by(its)
        answered = {name: after[name] - before[side].get(name, 0) for name in after}
        names = sorted(answered, key=answered.__getitem__, reverse=True)
        means = {
            name: statistics.fmean(each.get(name, 0.0) for each in work[side]) for name in names
        }
        most = {name: max(each.get(name, 0.0) for each in work[side]) for name in names}
        found["sides"][side] = {
            "requests_by_replica": [answered[name] for name in names],
            "outstanding_tokens_mean": [means[name] for name in names],
            "outstanding_tokens_most": [most[name] for name in names],
            "hit_rate": hit_rate([reply for each in rounds[side] for reply in each]),
            "errors": sum(r.status != 200 for each in rounds[side] for r in each),
            **latencies(rounds[side]),
        }
        row = found["sides"][side]
        print(
            f"{side:>12}, one picture with {HOT:.0%}: requests {row['requests_by_replica']}, "
            f"outstanding tokens, mean {[round(v) for v in row['outstanding_tokens_mean']]}, most "
            f"{[round(v) for v in row['outstanding_tokens_most']]}, hits {row['hit_rate']:.1%}, "
            f"p50 {row['p50_ms']:.0f} ms, p95 {row['p95_ms']:.0f} ms"
        )
    found["p95_ratio"] = ratio(rounds)
    return found


def in_turn(number: int) -> list[str]:
    return list(SIDES) if number % 2 else list(SIDES)[::-1]


def bodies(pictures: Pictures, asked: Sequence[Asked], scale: int = SCALE, salt: str = "") -> Body:
    members: dict[str, Any] = {"model": f"m3-{scale}", "max_tokens": 8}
    if salt:
        members["m3"] = {"cache_salt": salt}
    options = options_of(members)
    return lambda number: pictures.body(asked[number], options)


def levels(replies: Sequence[Reply], level: str) -> float:
    told = [reply.cache for reply in replies if reply.status == 200]
    return sum(one == level for one in told) / max(len(told), 1)


def hit_rate(replies: Sequence[Reply]) -> float:
    return sum(levels(replies, level) for level in LEVELS_HIT)


def latencies(rounds: Sequence[Sequence[Reply]]) -> dict[str, float]:
    """Medians over the rounds, in milliseconds."""
    return {
        f"{name}_ms": 1e3 * statistics.median(took(each, share) for each in rounds)
        for name, share in (("p50", 0.5), ("p95", 0.95))
    }


def took(replies: Sequence[Reply], share: float) -> float:
    return quantile([reply.seconds for reply in replies if reply.status == 200], share)


def ratio(rounds: Mapping[str, Sequence[Sequence[Reply]]]) -> float:
    """Median over the rounds of p95 ÷ p95."""
    pairs = zip(rounds["affinity"], rounds["two choices"], strict=True)
    return statistics.median(took(ours, 0.95) / took(theirs, 0.95) for ours, theirs in pairs)


def answered_by(its: Running) -> dict[str, float]:
    """Requests that every replica has begun, by its name."""
    found: dict[str, float] = {}
    for name in ("prefix_hits", "feature_cache_memory_hits", "feature_cache_misses"):
        for replica, value in its.metric(f"m3_{name}_total", "replica").items():
            found[replica] = found.get(replica, 0.0) + value
    return found


@contextmanager
def watched(its: Running) -> Iterator[list[dict[str, float]]]:
    """Outstanding tokens by replica, looked at again and again."""
    seen: list[dict[str, float]] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_S):
            seen.append(its.metric("m3_replica_outstanding_tokens", "replica"))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def sweep(pictures: Pictures, sizes: Sizes) -> list[dict[str, Any]]:
    """Hit rate and latency of one replica against memory, reuse and scale."""
    rows: list[dict[str, Any]] = []
    for held in MEMORIES:
        memory = sizes.memory(held * SWEEP_PICTURES, SCALE)
        with service(SETTINGS | {"cache.memory": memory}) as its:
            warm = bodies(pictures, ask(pictures, [0] * 8), salt="warm")
            asyncio.run(closed(its.url, warm, callers=2, requests=8))
            popular = by_popularity(SWEEP_REQUESTS, SWEEP_PICTURES, SKEW, random.Random(3))
            rows.append(cell(its, pictures, popular, held, "popularity", SCALE))
            if held < max(MEMORIES):
                continue
            for reuse in REUSES:
                order = again_or_new(SWEEP_PICTURES, reuse, 0.0, random.Random(4))
                rows.append(cell(its, pictures, order, held, reuse, SCALE))
            order = again_or_new(SWEEP_PICTURES, 0.5, 0.0, random.Random(4))
            rows += [
                cell(its, pictures, order, held, 0.5, scale) for scale in SCALES if scale != SCALE
            ]
    return rows


def ask(pictures: Pictures, order: Sequence[int]) -> list[Asked]:
    rng = random.Random(5)
    return [pictures.ask(number, rng) for number in order]


def cell(
    its: Running,
    pictures: Pictures,
    order: Sequence[int],
    held: float,
    reuse: float | str,
    scale: int,
) -> dict[str, Any]:
    salt = f"{held}-{reuse}-{scale}"  # nothing is known from the cell before
    body = bodies(pictures, ask(pictures, order), scale, salt)
    replies = asyncio.run(closed(its.url, body, callers=2, requests=len(order)))
    by_level = {
        level: [1e3 * r.seconds for r in replies if r.cache == level]
        for level in (*LEVELS_HIT, "miss")
    }
    row = {
        "memory_share": held,
        "reuse": reuse,
        "scale": scale,
        "requests": len(replies),
        "errors": sum(reply.status != 200 for reply in replies),
        "hit_rate": hit_rate(replies),
        "p50_ms": 1e3 * took(replies, 0.5),
        "p95_ms": 1e3 * took(replies, 0.95),
        "p50_ms_by_level": {
            level: statistics.median(times) for level, times in by_level.items() if times
        },
    }
    print(
        f"memory {held:4.0%}  reuse {reuse!s:>10}  scale {scale:3}  hits {row['hit_rate']:5.1%}  "
        f"p50 {row['p50_ms']:5.0f} ms  p95 {row['p95_ms']:5.0f} ms  "
        + "  ".join(f"{level} {ms:.0f}" for level, ms in row["p50_ms_by_level"].items()),
        flush=True,
    )
    return row


def plot(figures: Mapping[str, Any]) -> Figure:
    """Hit rates of both placements beside one cache; latency by level and scale."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if "placement" in figures:
        of = figures["placement"]
        rates = [row["hit_rate_after_warm_up"] for row in of["sides"].values()]
        rates.append(of["in_process_hit_rate_after_warm_up"])
        left.bar([*of["sides"], "one cache"], rates, color=[ACCENT, MUTED, INK], width=0.6)
        left.set_ylabel("hit rate")
        left.set_ylim(0, 1)
    if "sweep" in figures:
        rows = [row for row in figures["sweep"] if row["reuse"] == 0.5]
        rows.sort(key=lambda row: row["scale"])
        for level, colour in (("miss", MUTED), ("memory", ACCENT), ("prefix", INK)):
            points = [
                (row["scale"], row["p50_ms_by_level"][level])
                for row in rows
                if level in row["p50_ms_by_level"]
            ]
            right.plot(*zip(*points, strict=True), marker="o", color=colour, label=level)
        right.set_xscale("log")
        right.set_xlabel("image tokens")
        right.set_ylabel("p50, ms")
        right.legend(frameon=False)
    for axes in (left, right):
        draw_grid(axes)
    return figure
