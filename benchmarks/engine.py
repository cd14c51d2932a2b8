"""This engine against transformers' `generate` in static batches: same weights, pictures, lengths.

Every round runs both sides on the same requests: for every scale and for a mixture (the scales that
the packaged predictor chooses at the service's own bound), by 1, 8 and 32 callers, answers of 4 to
64 tokens. Every picture is new to its side, so both pay for vision encoding. A static batch is
padded to its longest prompt and ends with its longest answer. `reuse` is the mixture once more,
where half of the requests ask again about a picture.

Figures are medians over the rounds: requests/s, time to the first token, time per further token,
the process' peak memory above what it had before, and the most KV memory in use, in tokens.

`ENGINE_ROUNDS` (5), `ENGINE_REQUESTS` (64 per cell), `ENGINE_CALLERS` (1,8,32) and `ENGINE_THREADS`
(all cores) change it. Nothing else should run. On a CPU only so far: CUDA is unmeasured.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from benchmarks.frontier import ARTIFACT
from benchmarks.results import RESULTS, write
from m3_backend.checkpoint import Checkpoint, open_checkpoint
from m3_backend.engine import EngineSettings, TorchEngine
from m3_backend.feature_cache import FeatureCache
from m3_backend.messages import (
    Delta,
    ImageInput,
    ImageSlot,
    Sampling,
    Started,
    Turn,
    digest_of,
)
from m3_backend.prompt import Prompt
from m3_backend.runner import ModelRunner
from m3_backend.training.worlds import draw
from m3_backend.vision import pool
from predictor.drawing import ACCENT, MUTED, draw_grid, style
from predictor.predictor import Predictor
from predictor.selection import select
from router.config import RouterConfig

ROUNDS = int(os.environ.get("ENGINE_ROUNDS", "5"))
REQUESTS = int(os.environ.get("ENGINE_REQUESTS", "64"))
THREADS = int(os.environ.get("ENGINE_THREADS", str(os.cpu_count() or 1)))
CALLERS = tuple(map(int, os.environ.get("ENGINE_CALLERS", "1,8,32").split(",")))
ANSWERS = (4, 64)
CONTEXT = 1024
MIXED, REUSE = "mixed", "reuse"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: `answer` tokens are generated, whatever they are."""

    image: ImageInput
    prompt: Prompt
    scale: int
    answer: int


@dataclass(frozen=True, slots=True)
class Took:
    """Seconds to the first token and per further token of one request."""

    first_s: float
    token_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """One side's run over the requests of a cell.

    Args:
        peak_bytes: of the process, above what it had before.
        kv_tokens: most rows of KV memory in use; theirs are the padded rectangle at its largest.
    """

    seconds: float
    took: list[Took]
    peak_bytes: int
    kv_tokens: int = 0


def run() -> None:
    torch.set_num_threads(THREADS)
    checkpoint = open_checkpoint("m3-tiny", device="cpu")
    requests = Requests(checkpoint)
    workloads: list[int | str] = [*checkpoint.ladder.scales, MIXED, REUSE]
    rows = [
        measured(checkpoint, requests, workload, callers)
        for workload in workloads
        for callers in CALLERS
    ]
    figures = {
        "threads": THREADS,
        "rounds": ROUNDS,
        "requests": REQUESTS,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "device": "cpu; CUDA is unmeasured",
        "rows": rows,
    }
    print_table(rows)
    print(write("engine", figures))
    with style():
        plot(rows).savefig(RESULTS / "engine.png", dpi=160)


class Requests:
    """Draws requests; no two calls share a picture."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._predictor = Predictor.load(ARTIFACT)
        self._price = self._predictor.threshold(RouterConfig().max_regret)
        self._drawn = 0

    def make(self, workload: int | str, count: int, seed: int) -> list[Asked]:
        rng = random.Random(seed)
        made: list[Asked] = []
        while len(made) < count:
            again = workload == REUSE and made and rng.random() < 0.5
            image, question = self._picture(rng)
            scale = workload if isinstance(workload, int) else self._choice(image, question)
            if again:
                before = rng.choice(made)
                image, scale = before.image, before.scale
            made.append(Asked(image, self._prompt(question), scale, rng.randint(*ANSWERS)))
        return made

    def _picture(self, rng: random.Random) -> tuple[ImageInput, str]:
        picture = draw("engine", self._drawn, seed=3)
        self._drawn += 1
        file = io.BytesIO()
        picture.image.save(file, "JPEG", quality=90)
        data = file.getvalue()
        image = ImageInput(data, digest_of(data), *picture.image.size)
        return image, rng.choice(picture.questions).text

    def _choice(self, image: ImageInput, question: str) -> int:
        ladder = self._checkpoint.ladder
        shares = [scale / ladder.finest for scale in ladder.scales]
        prediction = self._predictor.predict(image, question)
        return ladder.scales[select(prediction.p_success, shares, self._price)]

    def _prompt(self, question: str) -> Prompt:
        assert self._checkpoint.tokenizer is not None
        turns = [Turn("user", (ImageSlot(0), question))]
        return self._checkpoint.tokenizer.prompt(self._checkpoint.template.render(turns))


def measured(
    checkpoint: Checkpoint, requests: Requests, workload: int | str, callers: int
) -> dict[str, Any]:
    """The medians of one cell, both sides on the same requests, taking turns who is first."""
    count = REQUESTS if callers > 1 else max(REQUESTS // 4, 2)
    sides: dict[str, Callable[[Sequence[Asked], int], Run]] = {
        "m3": lambda asked, most: ours(checkpoint, asked, most),
        "transformers": lambda asked, most: theirs(checkpoint, asked, most),
    }
    for side in sides.values():
        side(requests.make(workload, min(callers, count), seed=-1), callers)  # warm-up
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    tokens: list[float] = []
    for number in range(ROUNDS):
        asked = requests.make(workload, count, seed=number)
        tokens.append(statistics.fmean(one.scale for one in asked))
        for name in sorted(sides, reverse=bool(number % 2)):
            runs[name].append(sides[name](asked, callers))
    row: dict[str, Any] = {
        "workload": workload,
        "callers": callers,
        "mean_image_tokens": statistics.fmean(tokens),
    }
    for name, of_side in runs.items():
        firsts = [[t.first_s for t in one.took] for one in of_side]
        row[name] = {
            "requests_per_s": statistics.median(len(r.took) / r.seconds for r in of_side),
            "ttft_ms": 1e3 * statistics.median(map(statistics.median, firsts)),
            "token_ms": 1e3
            * statistics.median(statistics.median(t.token_s for t in r.took) for r in of_side),
            "peak_mib": statistics.median(r.peak_bytes for r in of_side) / 2**20,
            "kv_tokens": statistics.median(r.kv_tokens for r in of_side),
        }
    row["times"] = statistics.median(
        theirs_.seconds / own.seconds
        for own, theirs_ in zip(runs["m3"], runs["transformers"], strict=True)
    )
    print(
        f"{workload!s:>6} × {callers:2}: {row['m3']['requests_per_s']:6.1f} requests/s, "
        f"{row['times']:.2f} times transformers",
        flush=True,
    )
    return row


def ours(checkpoint: Checkpoint, asked: Sequence[Asked], callers: int) -> Run:
    """`callers` that ask one question after the other, through a fresh engine and cache."""
    settings = EngineSettings(
        max_batch=callers, max_context=CONTEXT, threads=THREADS, preparation_threads=4
    )
    engine = TorchEngine(checkpoint, FeatureCache(64 << 20), settings)
    took: list[Took] = []
    held = [0]
    line = iter(asked)

    async def caller() -> None:
        for one in line:
            sampling = Sampling(max_tokens=one.answer)
            began, first_at, started = time.perf_counter(), 0.0, None
            stream = engine.generate_ids(
                one.prompt, [one.image], [one.scale], sampling, ignore_eos=True
            )
            async for event in stream:
                if isinstance(event, Delta) and not first_at:
                    first_at = time.perf_counter()
                elif isinstance(event, Started):
                    started = event
            assert started is not None
            rest = (time.perf_counter() - first_at) / max(one.answer - 1, 1)
            took.append(Took(first_at - began, rest))

    async def watch() -> None:
        while True:
            held.append(engine.stats().memory.held)
            await asyncio.sleep(0.01)

    async def everybody() -> float:
        watcher = asyncio.create_task(watch())
        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        seconds = time.perf_counter() - began
        watcher.cancel()
        return seconds

    try:
        with peak_memory() as peak:
            seconds = asyncio.run(everybody())
    finally:
        engine.close()
    return Run(seconds, took, peak[0], max(held))


class FirstToken(StoppingCriteria):  # type: ignore[misc]
    """Notes when generate has its first token; stops nothing."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        self.at = self.at or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def theirs(checkpoint: Checkpoint, asked: Sequence[Asked], callers: int) -> Run:
    """Static batches of `callers`: encode, pool, pad on the left, generate the longest answer."""
    runner = ModelRunner(checkpoint, tokens=1)
    took: list[Took] = []
    held = 0
    with peak_memory() as peak:
        began = time.perf_counter()
        for first in range(0, len(asked), callers):
            batch, tokens = static_batch(checkpoint, runner, asked[first : first + callers])
            took += batch
            held = max(held, tokens)
        seconds = time.perf_counter() - began
    return Run(seconds, took, peak[0], held)


@torch.inference_mode()
def static_batch(
    checkpoint: Checkpoint, runner: ModelRunner, batch: Sequence[Asked]
) -> tuple[list[Took], int]:
    """What its requests took, and the tokens of its rectangle of keys and values."""
    began = time.perf_counter()
    features = {one.image.digest: runner.encode(one.image) for one in batch}
    prompts = []
    for one in batch:
        pooled = pool(features[one.image.digest], checkpoint.ladder, one.scale)
        prompts.append(runner.embed(one.prompt, [one.image], [pooled]))
    flipped = pad_sequence([prompt.flip(0) for prompt in prompts], batch_first=True)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(flipped.shape[1]) < lengths[:, None]
    longest = max(one.answer for one in batch)
    first = FirstToken()
    checkpoint.model.language_model.generate(
        inputs_embeds=flipped.flip(1),
        attention_mask=mask.flip(1).long(),
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=longest, min_new_tokens=longest, pad_token_id=0
        ),
        stopping_criteria=StoppingCriteriaList([first]),
    )
    ended = time.perf_counter()
    took = Took(first.at - began, (ended - first.at) / max(longest - 1, 1))
    return [took] * len(batch), len(batch) * (flipped.shape[1] + longest)


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


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    print("\nengine: this engine / transformers generate")
    print(
        f"{'scale':>6} {'callers':>7} {'requests/s':>15} {'times':>6} {'TTFT ms':>15} "
        f"{'ms/token':>13} {'peak MiB':>13} {'KV tokens':>13}"
    )
    for row in rows:
        own, other = row["m3"], row["transformers"]
        print(
            f"{row['workload']!s:>6} {row['callers']:7} "
            f"{own['requests_per_s']:7.1f}/{other['requests_per_s']:7.1f} {row['times']:6.2f} "
            f"{own['ttft_ms']:7.0f}/{other['ttft_ms']:7.0f} "
            f"{own['token_ms']:6.1f}/{other['token_ms']:6.1f} "
            f"{own['peak_mib']:6.0f}/{other['peak_mib']:6.0f} "
            f"{own['kv_tokens']:6.0f}/{other['kv_tokens']:6.0f}"
        )


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    """Requests per second by workload, both sides, at the most callers."""
    chosen = [row for row in rows if row["callers"] == max(CALLERS)]
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    at = range(len(chosen))
    for side, colour, shift in (("m3", ACCENT, -0.2), ("transformers", MUTED, 0.2)):
        heights = [row[side]["requests_per_s"] for row in chosen]
        axes.bar([x + shift for x in at], heights, width=0.38, color=colour, label=side)
    axes.set_xticks(list(at), [str(row["workload"]) for row in chosen])
    axes.set_xlabel(f"image tokens; {max(CALLERS)} callers")
    axes.set_ylabel("requests/s")
    axes.legend(frameon=False)
    draw_grid(axes)
    return figure
