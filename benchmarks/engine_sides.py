"""The two sides of `engine`: this engine, and transformers' `generate` in static batches.

Same weights, same type, same threads. A static batch decodes and encodes its pictures, is padded
to its longest prompt, and ends with its longest answer. It runs transformers' own vision tower and
language model; how many pictures its tower takes at once is what is quickest here. It has a process
to itself, because this engine changes how its process gets memory (m3_backend/allocator.py).
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from benchmarks.engine_requests import Asked
from benchmarks.timing import quickest_s
from m3_backend import checkpoint as checkpoints
from m3_backend.checkpoint import Checkpoint, open_checkpoint
from m3_backend.engine import EngineSettings, TorchEngine
from m3_backend.feature_cache import FeatureCache
from m3_backend.kernels import CAPACITIES
from m3_backend.messages import Delta, Sampling
from m3_backend.runner import ModelRunner
from m3_backend.vision import pool

CONTEXT = 1024
THREADS = int(os.environ.get("ENGINE_THREADS", str(os.cpu_count() or 1)))
_TOWER_BATCHES = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Took:
    """Of one request: seconds to the first token and per further one, and whether it was right."""

    first_s: float
    token_s: float
    right: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One side's run over some requests.

    Args:
        peak_bytes: of the process, above what it had before.
        kv_tokens: most rows of KV memory in use; of a static batch its padded rectangle.
        kv_share: the same against the tokens in flight at that moment, shared prefixes once: the
            largest value over all steps.
    """

    seconds: float
    took: list[Took]
    peak_bytes: int
    kv_tokens: int
    kv_share: float

    @property
    def requests_per_s(self) -> float:
        return len(self.took) / self.seconds

    @property
    def accuracy(self) -> float:
        return statistics.fmean(one.right for one in self.took)


@dataclass(slots=True)
class _KvWatch:
    """KV memory after every scheduling, which is when a step's memory has been granted."""

    rows: int = 0
    share: float = 0.0

    def attach(self, engine: TorchEngine) -> None:
        scheduler = engine._scheduler
        schedule = scheduler.schedule

        def watched() -> Any:
            step = schedule()
            prefixes = {}
            tokens = 0
            for job in scheduler.running:
                tokens += job.length
                if job.holding is not None and job.holding.shared and job.prefix is not None:
                    tokens -= job.prefix.tokens
                    prefixes[job.prefix.key] = job.prefix.tokens
            in_flight = tokens + sum(prefixes.values())
            held = scheduler.memory.held
            self.rows = max(self.rows, held)
            if in_flight:
                self.share = max(self.share, held / in_flight)
            return step

        scheduler.schedule = watched  # type: ignore[method-assign]


class Ours:
    """One engine for all its runs; every run's pictures are new to it."""

    def __init__(
        self, checkpoint: Checkpoint, callers: int, *, cache_bytes: int = 64 << 20, **settings: Any
    ) -> None:
        defaults: dict[str, Any] = {"max_batch": callers, "max_context": CONTEXT}
        # Of requests that are many, each on one core, rather than every product on all of them.
        if callers > 1:
            defaults |= {"threads": 1, "towers": THREADS, "preparation_threads": 4 * THREADS}
        else:
            defaults |= {"threads": THREADS}
        self.engine = TorchEngine(
            checkpoint, FeatureCache(cache_bytes), EngineSettings(**defaults | settings)
        )
        self._callers = callers

    def run(self, asked: Sequence[Asked]) -> Run:
        """`callers` that ask one question after the other."""
        watch = _KvWatch()
        watch.attach(self.engine)
        took: list[Took] = []
        line = iter(asked)

        async def caller() -> None:
            for one in line:
                took.append(await ask(self.engine, one))

        async def everybody() -> float:
            began = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(self._callers)))
            return time.perf_counter() - began

        with peak_memory() as peak:
            seconds = asyncio.run(everybody())
        del self.engine._scheduler.schedule  # the watch; the method is the class's
        return Run(seconds, took, peak[0], watch.rows, watch.share)

    def close(self) -> None:
        self.engine.close()


async def ask(engine: TorchEngine, one: Asked) -> Took:
    sampling = Sampling(max_tokens=one.limit)
    began, first_at, answer, tokens = time.perf_counter(), 0.0, "", 0
    stream = engine.generate_ids(
        one.prompt, [one.image], [one.scale], sampling, ignore_eos=one.whole
    )
    async for event in stream:
        if isinstance(event, Delta):
            first_at = first_at or time.perf_counter()
            answer += event.text
            tokens += len(event.token_ids)
    ended = time.perf_counter()
    first_at = first_at or ended  # an empty answer
    rest = (ended - first_at) / max(tokens - 1, 1)
    return Took(first_at - began, rest, one.is_right(answer))


class FirstToken(StoppingCriteria):  # type: ignore[misc]
    """Notes when generate has its first token; stops nothing."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self, input_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        self.at = self.at or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Theirs:
    """Static batches of `callers` requests, in a process of their own until it is closed."""

    def __init__(self, checkpoint: Checkpoint, callers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, checkpoint.name, str(checkpoint.device), callers)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()

    def run(self, asked: Sequence[Asked]) -> Run:
        self._pipe.send(list(asked))
        run: Run = self._pipe.recv()  # EOFError: it has failed, and said why
        return run

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def _serve(pipe: Connection, name: str, device: str, callers: int) -> None:
    # Memory as it is without us.
    checkpoints.keep_freed_memory = lambda: None  # type: ignore[assignment]
    checkpoints.keep_few_kernels = lambda: None  # type: ignore[assignment]
    for capacity in CAPACITIES:
        os.environ.pop(capacity, None)
    batches = _StaticBatches(open_checkpoint(name, device=device), callers)
    while (asked := pipe.recv()) is not None:
        pipe.send(batches.run(asked))


@dataclass(slots=True)
class _StaticBatches:
    checkpoint: Checkpoint
    callers: int
    _runner: ModelRunner = field(init=False)
    _tower_batch: int = 0

    def __post_init__(self) -> None:
        self.checkpoint.model.vision_tower.set_attn_implementation("sdpa")  # transformers' own
        self._runner = ModelRunner(self.checkpoint, tokens=1)

    @torch.inference_mode()
    def run(self, asked: Sequence[Asked]) -> Run:
        torch.set_num_threads(THREADS)
        if not self._tower_batch:
            self._tower_batch = self._quickest(asked[0])
        took: list[Took] = []
        rectangle, share = 0, 0.0
        with peak_memory() as peak:
            began = time.perf_counter()
            for first in range(0, len(asked), self.callers):
                batch, held, needed = self._batch(asked[first : first + self.callers])
                took += batch
                rectangle, share = max(rectangle, held), max(share, held / needed)
            seconds = time.perf_counter() - began
        return Run(seconds, took, peak[0], rectangle, share)

    def _quickest(self, one: Asked) -> int:
        pixels = self._runner.pixels(one.image)

        def picture_s(count: int) -> float:
            several = pixels.repeat(count, 1, 1, 1)
            return quickest_s(lambda: self.checkpoint.model.encode(several)) / count

        return min(_TOWER_BATCHES, key=picture_s)

    def _batch(self, batch: Sequence[Asked]) -> tuple[list[Took], int, int]:
        """What its requests took, and the tokens of its rectangle of keys and values: all, used."""
        began = time.perf_counter()
        checkpoint = self.checkpoint
        pixels = torch.cat([self._runner.pixels(one.image) for one in batch])
        encoded = map(checkpoint.model.encode, pixels.split(self._tower_batch))
        prompts = []
        for one, features in zip(batch, torch.cat(list(encoded)), strict=True):
            pooled = pool(features[None], checkpoint.ladder, one.scale)
            prompts.append(self._runner.embed(one.prompt, [one.image], [pooled]))
        flipped = pad_sequence([prompt.flip(0) for prompt in prompts], batch_first=True)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = torch.arange(flipped.shape[1]) < lengths[:, None]
        longest = max(one.limit for one in batch)
        whole = any(one.whole for one in batch)
        first = FirstToken()
        given = checkpoint.model.language_model.generate(
            inputs_embeds=flipped.flip(1),
            attention_mask=mask.flip(1).long(),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=longest,
                min_new_tokens=longest if whole else 0,
                eos_token_id=sorted(checkpoint.eos),
                pad_token_id=0,
            ),
            stopping_criteria=StoppingCriteriaList([first]),
        )
        ended = time.perf_counter()
        first_s = first.at - began
        token_s = (ended - first.at) / max(given.shape[1] - 1, 1)
        took = [
            Took(first_s, token_s, one.is_right(self._text(tokens)))
            for one, tokens in zip(batch, given.tolist(), strict=True)
        ]
        held = len(batch) * (flipped.shape[1] + given.shape[1])
        return took, held, int(lengths.sum()) + sum(map(self._length, given.tolist()))

    def _text(self, tokens: list[int]) -> str:
        assert self.checkpoint.tokenizer is not None
        return self.checkpoint.tokenizer.decode(tokens[: self._length(tokens)])

    def _length(self, tokens: list[int]) -> int:
        """Up to the first token that ends an answer."""
        ends = (at for at, token in enumerate(tokens) if token in self.checkpoint.eos)
        return next(ends, len(tokens))


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """A list whose one entry becomes the most that this process held above what it has now."""
    page = os.sysconf("SC_PAGE_SIZE")
    file = Path("/proc/self/statm")

    def resident() -> int:
        return int(file.read_text().split()[1]) * page

    before, most, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], resident() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        done.set()
        watcher.join()
