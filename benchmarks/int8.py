"""What keeping features in eight bits changes: answers per scale, against bytes.

The same questions about drawn pictures that m3-tiny was not trained on, at every scale, through two
engines that differ in `cache.storage` only, one request at a time: how many greedy answers are not
the same, how many are right by the metric of the evaluation, and what an entry takes. Two runs of
the same engine give the same answers, so every difference is the storage's.

Writes `results/int8.json`. Some four minutes; `INT8_PICTURES` (250) changes that. Another
checkpoint: `INT8_CHECKPOINT`.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
from typing import Any

from benchmarks.results import write
from benchmarks.workload import Asked, Pictures
from m3_backend.engine import EngineSettings, TorchEngine
from m3_backend.feature_cache import FeatureCache, Storage
from m3_backend.messages import Delta, GenerationRequest, ImageSlot, Sampling, Turn
from predictor.metrics import score

PICTURES = int(os.environ.get("INT8_PICTURES", "250"))
CHECKPOINT = os.environ.get("INT8_CHECKPOINT", "m3-tiny")
STORAGES: tuple[Storage, ...] = ("exact", "int8")
MAX_TOKENS = 16


def run() -> None:
    pictures = Pictures(PICTURES, split="int8", seed=9)
    rng = random.Random(0)
    asked = [pictures.ask(number, rng) for number in range(PICTURES)]
    told: dict[Storage, dict[int, list[str]]] = {}
    held: dict[Storage, float] = {}
    for storage in STORAGES:
        told[storage], held[storage] = answers(pictures, asked, storage)
    rows = [row(scale, asked, told["exact"][scale], told["int8"][scale]) for scale in told["exact"]]
    figures: dict[str, Any] = {
        "checkpoint": CHECKPOINT,
        "questions": PICTURES,
        "bytes_per_picture": held,
        "bytes_share": held["int8"] / held["exact"],
        "rows": rows,
    }
    print(
        f"\nint8: {held['int8'] / 1e3:.0f} kB a picture instead of {held['exact'] / 1e3:.0f} "
        f"({figures['bytes_share']:.0%}), {PICTURES} questions at every scale"
    )
    for one in rows:
        print(
            f"scale {one['scale']:3}: {one['changed']:3} answers changed "
            f"({one['changed_share']:.1%}), right {one['accuracy']['exact']:.1%} → "
            f"{one['accuracy']['int8']:.1%} ({one['gained']} gained, {one['lost']} lost)"
        )
    print(write("int8", figures))


def answers(
    pictures: Pictures, asked: list[Asked], storage: Storage
) -> tuple[dict[int, list[str]], float]:
    """By scale, and the bytes of a picture's entries at all scales together."""
    engine = TorchEngine.open(
        CHECKPOINT,
        dtype="auto",
        device="auto",
        cache=FeatureCache(8 << 30, storage=storage),
        settings=EngineSettings(max_batch=1, threads=os.cpu_count() or 1),
    )

    async def all_of_them() -> dict[int, list[str]]:
        return {
            scale: [await answer(engine, pictures, one, scale) for one in asked]
            for scale in engine.info.ladder.scales
        }

    try:
        found = asyncio.run(all_of_them())
        return found, engine.stats().cache.bytes / len(asked)
    finally:
        engine.close()


async def answer(engine: TorchEngine, pictures: Pictures, one: Asked, scale: int) -> str:
    request = GenerationRequest(
        request_id=f"{one.picture}-{scale}",
        turns=(Turn("user", (ImageSlot(0), one.question)),),
        images=(pictures.image(one.picture),),
        scales=(scale,),
        sampling=Sampling(max_tokens=MAX_TOKENS),
    )
    events = [event async for event in engine.generate(request)]
    return "".join(event.text for event in events if isinstance(event, Delta))


def row(scale: int, asked: list[Asked], exact: list[str], int8: list[str]) -> dict[str, Any]:
    changed = sum(one != other for one, other in zip(exact, int8, strict=True))
    right = {
        storage: [score("exact", said, [one.answer]) for said, one in zip(of, asked, strict=True)]
        for storage, of in (("exact", exact), ("int8", int8))
    }
    pairs = list(zip(right["exact"], right["int8"], strict=True))
    return {
        "scale": scale,
        "changed": changed,
        "changed_share": changed / len(asked),
        "accuracy": {storage: statistics.fmean(values) for storage, values in right.items()},
        "gained": sum(after > before for before, after in pairs),
        "lost": sum(after < before for before, after in pairs),
    }
