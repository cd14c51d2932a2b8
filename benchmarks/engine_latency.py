"""Time to the first token where others are in the way, and where the picture was seen before."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from benchmarks.engine_requests import Asked, Requests
from benchmarks.engine_sides import Ours, ask
from m3_backend.checkpoint import Checkpoint
from m3_backend.engine import TorchEngine
from m3_backend.messages import Sampling, Started

OTHERS, COARSE, FINE = 10, 9, 576
_PER_ROUND = 8


def measured(checkpoint: Checkpoint, requests: Requests, rounds: int) -> dict[str, Any]:
    with closing(Ours(checkpoint, 16)) as own:
        engine = own.engine
        asyncio.run(_unloaded(engine, requests, -1))
        asyncio.run(_loaded(engine, requests, -1))
        behind: dict[str, list[float]] = {"alone": [], "loaded": []}
        for number in range(rounds):
            behind["alone"].append(asyncio.run(_unloaded(engine, requests, number)))
            behind["loaded"].append(asyncio.run(_loaded(engine, requests, number)))
        again = {
            scale: [asyncio.run(_twice(engine, requests, scale, n)) for n in range(rounds)]
            for scale in checkpoint.ladder.scales
        }
    pairs = zip(behind["loaded"], behind["alone"], strict=True)
    ratios = [loaded / alone for loaded, alone in pairs]
    rows = {
        "behind_ten_prompts": {
            "alone_ms": 1e3 * statistics.median(behind["alone"]),
            "loaded_ms": 1e3 * statistics.median(behind["loaded"]),
            "times": ratios,
        },
        "second_question": {
            scale: {
                "first_ms": 1e3 * statistics.median(first for first, _ in of_scale),
                "second_ms": 1e3 * statistics.median(second for _, second in of_scale),
                "share": [second / first for first, second in of_scale],
            }
            for scale, of_scale in again.items()
        },
    }
    _print(rows)
    return rows


async def _unloaded(engine: TorchEngine, requests: Requests, number: int) -> float:
    """Median seconds to the first token of a question about a new picture, nobody else there."""
    firsts = []
    for one in requests.make(requests.at(COARSE), _PER_ROUND, number):
        firsts.append((await ask(engine, replace(one, limit=1))).first_s)
    return statistics.median(firsts)


async def _loaded(engine: TorchEngine, requests: Requests, number: int) -> float:
    """The same while ten prompts of 576 tokens, whose pictures are known, are being prefilled."""
    firsts = []
    for at, one in enumerate(requests.make(requests.at(COARSE), _PER_ROUND, number)):
        others = requests.make(requests.at(FINE), OTHERS, number * _PER_ROUND + at)
        for other in others:  # their features, and nothing of the prompt
            await ask(engine, replace(other, scale=1, limit=1))
        begun = asyncio.Event()
        tasks = [asyncio.create_task(_begin(engine, other, begun)) for other in others]
        await begun.wait()
        firsts.append((await ask(engine, replace(one, limit=1))).first_s)
        assert not all(task.done() for task in tasks), "the prompts were done before the question"
        await asyncio.gather(*tasks)
    return statistics.median(firsts)


async def _begin(engine: TorchEngine, one: Asked, begun: asyncio.Event) -> None:
    """Ends with the first token; `begun` when the prompt is taken up."""
    stream = engine.generate_ids(one.prompt, [one.image], [one.scale], Sampling(max_tokens=1))
    async for event in stream:
        if isinstance(event, Started):
            begun.set()


async def _twice(
    engine: TorchEngine, requests: Requests, scale: int, number: int
) -> tuple[float, float]:
    """Median seconds to the first token of a first and a second question about one picture.

    Fails if anything of the picture was decoded, encoded or prefilled for the second.
    """
    firsts, seconds = [], []
    ones: Sequence[Asked] = requests.make(requests.at(scale), _PER_ROUND, number)
    others = requests.make(requests.at(scale), _PER_ROUND, number + 1)
    for first, other in zip(ones, others, strict=True):
        firsts.append((await ask(engine, first)).first_s)
        before = engine.stats()
        again = replace(first, question=other.question)
        seconds.append((await ask(engine, again)).first_s)
        after = engine.stats()
        assert after.cache == before.cache, "features were looked up"
        assert after.memory.joined == before.memory.joined + 1, "the prefix was not joined"
    return statistics.median(firsts), statistics.median(seconds)


def _print(rows: dict[str, Any]) -> None:
    behind = rows["behind_ten_prompts"]
    print(
        f"\nengine, latency: {COARSE} tokens {behind['alone_ms']:.1f} ms alone, "
        f"{behind['loaded_ms']:.1f} while {OTHERS} prompts of {FINE} tokens prefill: "
        f"{statistics.median(behind['times']):.2f} times"
    )
    for scale, row in rows["second_question"].items():
        print(
            f"{scale:4} tokens: first question {row['first_ms']:6.1f} ms, second about the same "
            f"picture {row['second_ms']:6.1f}: {statistics.median(row['share']):.0%}"
        )
