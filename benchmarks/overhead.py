"""What the router costs: the whole service against a no-op Serve app with the same number of hops.

Both apps run in one Ray Serve at the same time. In the service only the model is missing: its
replica answers at once, with the same events. The no-op app's ingress reads the body, hands it to a
replica over a streaming handle, and sends three events back as JSON (the service packs them into
two messages). Both get the same requests, by turns, at half of the rate at which the service
saturates: about pictures whose features the predictor has, and about new ones (336 × 336, decoded
and looked at in the ingress). The difference is the router: parsing, images, predictor, decision,
admission, headers, metrics, records.

All of it in each of Ray Serve's modes, which its environment switches (`MODES`). Differences of
quantiles are medians of the rounds; `pooled` are those of all requests of a side together.

Writes `results/overhead.json` and `results/overhead.png`. Some seven minutes; `OVERHEAD_ROUNDS`
(5), `OVERHEAD_ROUND_S` (4) and `OVERHEAD_MODES` (all, comma-separated) change that.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from matplotlib.figure import Figure

from benchmarks.open_loop import Body, Reply, closed, opened
from benchmarks.results import RESULTS, ROOT, write
from benchmarks.running import READY_WITHIN_S, is_ready, metric, unused_port
from benchmarks.workload import Pictures, options_of, quantile
from predictor.drawing import ACCENT, MUTED, draw_grid, style

ROUNDS = int(os.environ.get("OVERHEAD_ROUNDS", "5"))
ROUND_S = float(os.environ.get("OVERHEAD_ROUND_S", "4"))
MODES: dict[str, dict[str, str]] = {
    "default": {},
    "throughput": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1"},
    "both": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"},
}
CHOSEN = os.environ.get("OVERHEAD_MODES", ",".join(MODES)).split(",")
SETTINGS = {"router.shadow.uniform_share": 0, "log_level": "warning"}
PICTURES = 64
CALLERS = 16  # of the closed loop that saturates
NOOP = "/noop"
SIDES = ("router", "noop")


def run() -> None:
    pictures = Pictures(PICTURES, split="overhead", seed=11)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for mode in CHOSEN:
        try:
            with both_apps(MODES[mode]) as url:
                rows += [measured(mode, url, pictures, workload) for workload in ("seen", "new")]
        except RuntimeError as error:
            failed[mode] = str(error)
            print(f"{mode}: {error}", flush=True)
    figures = {
        "rounds": ROUNDS,
        "round_s": ROUND_S,
        "settings": SETTINGS,
        "modes": MODES,
        "rows": rows,
        "failed": failed,
    }
    print_table(rows)
    print(write("overhead", figures))
    with style():
        plot(rows).savefig(RESULTS / "overhead.png", dpi=160)


def measured(mode: str, url: str, pictures: Pictures, workload: str) -> dict[str, Any]:
    """Both sides by turns at half of the service's saturating rate."""
    body = bodies(pictures, new=workload == "new")
    urls = {"router": url, "noop": url + NOOP}
    for side in SIDES:
        asyncio.run(closed(urls[side], body, callers=4, requests=4 * PICTURES))  # warm-up
    most = {
        side: saturating(asyncio.run(closed(urls[side], body, callers=CALLERS, seconds=ROUND_S)))
        for side in SIDES
    }
    rate = most["router"] / 2
    before = stages(url)
    replies: dict[str, list[list[Reply]]] = {side: [] for side in SIDES}
    for number in range(ROUNDS):
        for side in SIDES if number % 2 else SIDES[::-1]:
            time.sleep(0.3)  # let what the other left behind be done
            load = opened(urls[side], body, [(rate, ROUND_S)], seed=number)
            replies[side].append(asyncio.run(load))
    by_stage = difference(before, stages(url))
    row: dict[str, Any] = {
        "mode": mode,
        "workload": workload,
        "rate": rate,
        "saturating": most,
        "requests": {side: sum(map(len, replies[side])) for side in SIDES},
        "errors": {
            side: sum(not reply.answered for each in replies[side] for reply in each)
            for side in SIDES
        },
        "stages_ms": by_stage,
    }
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        by_side = {side: [quantile_ms(each, share) for each in replies[side]] for side in SIDES}
        pairs = zip(by_side["router"], by_side["noop"], strict=True)
        row[f"{name}_ms"] = {side: statistics.median(by_side[side]) for side in SIDES}
        row[f"{name}_above_ms"] = statistics.median(ours - theirs for ours, theirs in pairs)
        pooled = {
            side: quantile_ms([reply for each in replies[side] for reply in each], share)
            for side in SIDES
        }
        row[f"{name}_pooled_above_ms"] = pooled["router"] - pooled["noop"]
    print_row(row)
    return row


def bodies(pictures: Pictures, *, new: bool) -> Body:
    """Requests about the pictures in turn; under a salt of their own they are new to all caches."""
    rng = random.Random(0)
    asked = [pictures.ask(number, rng) for number in range(len(pictures))]
    members = {"model": "m3-auto", "max_tokens": 16}
    plain = [pictures.body(one, options_of(members)) for one in asked]
    if not new:
        return lambda number: plain[number % len(plain)]
    run_id = random.SystemRandom().getrandbits(32)
    count = iter(range(10**9))

    def body(number: int) -> bytes:
        salt = b'{"m3":{"cache_salt":"%d-%d"},' % (run_id, next(count))
        return salt + plain[number % len(plain)][1:]

    return body


def saturating(replies: Sequence[Reply]) -> float:
    ended = max(reply.due + reply.seconds for reply in replies)
    return sum(reply.answered for reply in replies) / ended


def quantile_ms(replies: Sequence[Reply], share: float) -> float:
    return 1e3 * quantile([reply.seconds for reply in replies if reply.answered], share)


def stages(url: str) -> dict[str, tuple[float, float]]:
    """Seconds and requests of every stage so far; `routing` is all of them and what is between."""
    text = httpx.get(f"{url}/metrics", timeout=10).text
    name = "m3_routing_stage_seconds"
    sums, counts = (metric(text, f"{name}_{of}", "stage") for of in ("sum", "count"))
    found = {stage: (sums[stage], counts[stage]) for stage in sums}
    whole = (metric(text, f"m3_routing_seconds_{of}", "") for of in ("sum", "count"))
    total, count = (sum(values.values()) for values in whole)
    return found | {"routing": (total, count)}


def difference(
    before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]
) -> dict[str, float]:
    """Mean milliseconds of each stage in between."""
    means = {}
    for stage, (seconds, count) in after.items():
        seconds_then, count_then = before.get(stage, (0.0, 0.0))
        if count > count_then:
            means[stage] = 1e3 * (seconds - seconds_then) / (count - count_then)
    return means


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    print("\noverhead: milliseconds of the service above the no-op app, at half of saturation")
    for row in rows:
        print_row(row)


def print_row(row: dict[str, Any]) -> None:
    told = "  ".join(f"{stage} {ms:.2f}" for stage, ms in row["stages_ms"].items())
    print(
        f"{row['mode']:>10} {row['workload']:>4} at {row['rate']:5.1f}/s "
        f"(saturating {row['saturating']['router']:.0f}, no-op {row['saturating']['noop']:.0f})  "
        f"p50 {row['p50_ms']['router']:5.1f} − {row['p50_ms']['noop']:4.1f}: "
        f"{row['p50_above_ms']:5.2f}  p99 {row['p99_ms']['router']:5.1f} − "
        f"{row['p99_ms']['noop']:4.1f}: {row['p99_above_ms']:5.2f} "
        f"(pooled {row['p99_pooled_above_ms']:.2f})  {told}",
        flush=True,
    )


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Median latency of both sides by mode and workload."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for side, colour, shift in (("router", ACCENT, -0.2), ("noop", MUTED, 0.2)):
        heights = [row["p50_ms"][side] for row in rows]
        places = [at + shift for at in range(len(rows))]
        axes.bar(places, heights, width=0.38, color=colour, label=side)
    axes.set_xticks(range(len(rows)), [f"{row['mode']}\n{row['workload']}" for row in rows])
    axes.set_ylabel("p50, ms")
    axes.legend(frameon=False)
    draw_grid(axes)
    return figure


@contextmanager
def both_apps(environment: dict[str, str]) -> Iterator[str]:
    """The URL of a Serve that runs both, in processes of its own.

    Raises:
        RuntimeError: they did not become ready; the message is the last thing that was said.
    """
    port = unused_port()
    log = RESULTS / "overhead.log"
    RESULTS.mkdir(exist_ok=True)
    with log.open("wb") as said:
        host = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.overhead", str(port)],
            cwd=ROOT,
            env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not (is_ready(url) and is_ready(url + NOOP)):
            if host.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the apps did not start: {log.read_text()[-600:]}")
            time.sleep(0.5)
        yield url
    finally:
        host.send_signal(signal.SIGINT)
        host.wait(timeout=60)
        log.unlink(missing_ok=True)


def host(port: int) -> None:
    """Runs both apps until it is interrupted."""
    from deploy.config import load  # noqa: PLC0415
    from deploy.local import (  # noqa: PLC0415
        StopSignals,
        private_folder,
        private_redis,
        ray_session,
    )
    from deploy.orphans import none_left  # noqa: PLC0415

    with StopSignals() as stop, ExitStack() as running:
        try:
            folder = running.enter_context(private_folder())
            running.enter_context(none_left())
            changes = SETTINGS | {"serve.port": port, "records.store": str(folder / "records")}
            config = load("local.yaml", changes)
            redis = running.enter_context(private_redis(config, folder, print))
            config = config.with_changes({"cache.redis": redis})
            running.enter_context(ray_session(config, folder, verbose=False))
            stop.listen()
            deploy_both(config)
            while not stop.requested:
                signal.pause()
        except KeyboardInterrupt:
            pass
        finally:
            stop.ignore()


def deploy_both(config: Any) -> None:
    from ray import serve  # noqa: PLC0415 - after the environment is set

    from benchmarks.overhead_apps import NoModel, noop_application  # noqa: PLC0415
    from deploy.app import APP_NAME, LOGGING, application  # noqa: PLC0415

    http = {"host": config.serve.host, "port": config.serve.port}
    serve.start(http_options=http, logging_config=LOGGING)
    serve.run(application(config, model=NoModel), name=APP_NAME)
    serve.run(noop_application(config), name="noop", route_prefix=NOOP)


if __name__ == "__main__":
    host(int(sys.argv[1]))
