"""What it costs to be watched: counting, logging and tracing one request that is over, on its core.

The collector takes everything and keeps nothing, in a process of its own. Medians of one process,
nothing else running.
"""

from __future__ import annotations

import logging
import multiprocessing
import statistics
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.results import write
from deploy.logs import JsonFormatter
from m3_backend.messages import Finished, Sampling, Started
from router.config import TelemetryConfig
from router.policy import Decision, ImageChoice, Reason
from router.request_log import requests_log
from router.spans import CHAT_ENDPOINT
from router.stages import Stage
from router.telemetry import Telemetry
from router.trace import Facts, Trace
from router.tracing import open_tracing

REQUESTS = 3000
WAYS = {
    "counted": (False, None),
    "logged": (True, None),
    "traced": (True, 1.0),
    "one %": (True, 0.01),
}


def run() -> None:
    handler = logging.StreamHandler(open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    handler.setFormatter(JsonFormatter())
    requests_log.handlers, requests_log.propagate = [handler], False
    rows: list[dict[str, Any]] = []
    port, collector = collector_process()
    try:
        for way, (logged, ratio) in WAYS.items():
            requests_log.setLevel("INFO" if logged else "WARNING")
            config = TelemetryConfig(
                otlp_endpoint=None if ratio is None else f"http://127.0.0.1:{port}",
                sample_ratio=ratio or 0.0,
            )
            telemetry = Telemetry({"ingress": "one"}, [open_tracing(config)])
            rows.append({"way": way, **microseconds(telemetry)})
            telemetry.close()
    finally:
        collector.terminate()
    print("\nobserving: microseconds a request, after its answer was sent")
    for row in rows:
        print(f"{row['way']:10} median {row['median_us']:7.1f}   p99 {row['p99_us']:7.1f}")
    print(write("observing", {"rows": rows}))


def microseconds(telemetry: Telemetry) -> dict[str, float]:
    times = []
    for _ in range(REQUESTS):
        trace = finished()
        telemetry.begin()
        began = time.perf_counter()
        telemetry.end(trace)
        times.append((time.perf_counter() - began) * 1e6)
    return {
        "median_us": round(statistics.median(times), 1),
        "p99_us": round(statistics.quantiles(times, n=100)[98], 1),
    }


def finished() -> Trace:
    """A request with one image that was answered."""
    trace = Trace("0" * 32, endpoint=CHAT_ENDPOINT, predictor="0123456789ab", routing_s=0.004)
    began_s = trace.arrived
    for stage in Stage:
        trace.stages.add(stage, began_s, began_s + 0.0005)
        began_s += 0.0005
    trace.asked = Facts("m3-auto", "m3-tiny", Sampling(max_tokens=16), 576)
    trace.decision = Decision((ImageChoice(36, Reason.PREDICTED, 0.97, 36),), 0.05, 19.2)
    trace.handed_s = 0.004
    trace.saw(Started((36,), 56, ("miss",), 1.0, 0.5, 10.0, replica="one"))
    trace.ttft_s = 0.03
    trace.finished = Finished("stop", 4, 8.0, 6.0)
    return trace


def collector_process() -> tuple[int, multiprocessing.Process]:
    """The port that it listens on, and the process."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=collect, args=(there,), daemon=True)
    process.start()
    return int(here.recv()), process


def collect(ready: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Swallowing)
    ready.send(server.server_address[1])
    server.serve_forever()


class Swallowing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass
