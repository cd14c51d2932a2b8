"""What comes of a request after its response, on the thread that makes records: alone, with a
predictor that watches, and the receipt for feedback. Medians of one process, nothing else running.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks.results import write
from deploy.predictors import PACKAGED
from m3_backend.messages import ModelInfo
from predictor import artifact as artifacts
from predictor.predictor import Predictor
from predictor.routing_records import describe_question, encode
from router.config import RouterConfig
from router.observing import Observer
from router.receipts import receipt_of
from router.records import record_of
from router.service import RoutingService
from router.trace import Trace
from tests.e2e.pictures import chat, picture
from tests.fakes import MODEL, FakeBackend

REQUESTS = 500


def run() -> None:
    predictor = Predictor.load(PACKAGED / "m3-tiny")
    traces = asyncio.run(answered(predictor))
    observer = Observer()
    observer.use(predictor)

    def record(trace: Trace, watched: bool) -> None:
        assert trace.evidence is not None
        observed = observer.observe(trace) if watched else None
        asks = describe_question(trace.evidence.question)
        encode(record_of(trace, "one", asks, observed=observed))

    ways: dict[str, Callable[[Trace], Any]] = {
        "record": lambda trace: record(trace, False),
        "record, observed": lambda trace: record(trace, True),
        "receipt": receipt_of,
    }
    rows = [{"way": way, "median_us": median_us(tell, traces)} for way, tell in ways.items()]
    print("\nwatching: microseconds a request, after its response, off its way")
    for row in rows:
        print(f"{row['way']:18} {row['median_us']:7.1f}")
    print(write("watching", {"rows": rows}))


def median_us(tell: Callable[[Trace], Any], traces: list[Trace]) -> float:
    times = []
    for trace in traces:
        began = time.perf_counter()
        tell(trace)
        times.append((time.perf_counter() - began) * 1e6)
    return round(statistics.median(times), 1)


async def answered(predictor: Predictor) -> list[Trace]:
    """Requests about one picture, decided by the predictor that ships."""
    source = artifacts.load(PACKAGED / "m3-tiny")[0].source
    info = ModelInfo(
        name=source.model,
        identity=source.model_identity,
        processor=source.processor,
        ladder=source.ladder,
        tiling=None,
        max_context=2048,
        costs=MODEL.costs,
    )
    service = RoutingService(FakeBackend(info), predictor, RouterConfig())
    traces = []
    for number in range(REQUESTS):
        trace = Trace(f"{number:032x}", endpoint="/v1/chat/completions")
        question = f"What colour is the square left of circle {number}?"
        body = json.dumps(chat(picture(1), question=question)).encode()
        async for _ in await service.handle(body, trace):
            pass
        traces.append(trace)
    service.close()
    return traces
