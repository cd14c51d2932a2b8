"""A LLaVA-1.5-7B-shaped model with random weights, per scale and batch, against its device.

Encoding, prefill and decoding through the engine's own runner. The roofline is what the device
reaches in the same run: a large matrix product and a copy. A stage's floor is the larger of its
operations at the one and its bytes at the other, counted by `m3_backend/costs.py`; what is printed
is the floor's share of the time taken. Nothing is learned, so weights do not matter; sizes do.

On CUDA the model is whole (32 layers, 14 GB in 16 bits). On a CPU it has `SHAPES_LAYERS` (2) layers
of each kind, so that memory and minutes suffice: the embeddings, the head and the projector weigh
more in it than in the whole. `SHAPES_BATCHES` (1,8,32 of decoding) changes the batches.
**CUDA is unmeasured:** this has been run on CPUs only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig

from benchmarks.results import RESULTS, write
from benchmarks.timing import quickest_s
from m3_backend.checkpoint import Checkpoint
from m3_backend.costs import ModelShape, TowerShape
from m3_backend.kv_cache import Span
from m3_backend.model import M3Model
from m3_backend.preprocess import ImagePreprocessing
from m3_backend.prompt import PromptTemplate
from m3_backend.runner import ModelRunner
from m3_backend.scales import ScaleLadder
from m3_backend.shapes import find_shape
from predictor.drawing import ACCENT, MUTED, draw_grid, style

TEXT = 30  # tokens of a question, as in M3's efficiency table
TOWER_LAYERS = 23  # of ViT-L's 24: LLaVA takes the last but one
BATCHES = tuple(map(int, os.environ.get("SHAPES_BATCHES", "1,8,32").split(",")))
PROMPTS = (1, 4)  # per prefill, and pictures per pass
ANSWER = 8  # tokens of KV memory beyond the prompt


def run() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole = device.type == "cuda"
    layers = int(os.environ.get("SHAPES_LAYERS", "32" if whole else "2"))
    dtype = torch.float16 if whole else torch.bfloat16
    shape = replace(find_shape("llava-1.5-7b"), layers=layers)
    tower = TowerShape(min(layers, TOWER_LAYERS), 1024, 4096, 576, 3 * 14**2, shape.hidden)
    peak = device_peak(device, dtype)
    print(
        f"\nshapes: LLaVA-1.5-7B's sizes, {shape.layers} text and {tower.layers} vision layers, "
        f"{device}, {dtype}: {peak['flops'] / 1e12:.2f} TFLOP/s in a product, "
        f"{peak['bytes'] / 1e9:.1f} GB/s in a copy",
        flush=True,
    )
    model = random_model(shape, tower, dtype, device)
    checkpoint = Checkpoint(
        name="llava-1.5-7b-shaped",
        identity="random",
        model=model,
        tokenizer=None,
        template=PromptTemplate(),
        preprocessing=ImagePreprocessing("pad", 336, (0.5,) * 3, (0.5,) * 3, 3),
        ladder=ScaleLadder(),
        shape=shape,
        max_context=4096,
        dtype=dtype,
        device=device,
    )
    longest = TEXT + checkpoint.ladder.finest + ANSWER
    runner = ModelRunner(checkpoint, tokens=max(*BATCHES, *PROMPTS) * longest)
    rows = [
        *encodings(runner, tower, peak),
        *prefills(runner, peak, longest),
        *decodings(runner, peak, longest),
    ]
    print(f"{'stage':8} {'scale':>5} {'batch':>5} {'ms':>9} {'of the roofline':>15}  bound by")
    for row in rows:
        print(
            f"{row['stage']:8} {row['scale']:5} {row['batch']:5} {row['ms']:9.2f} "
            f"{row['share']:15.0%}  {row['bound']}"
        )
    figures = {
        "device": "cpu; CUDA is unmeasured" if not whole else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "layers": {"text": shape.layers, "vision": tower.layers},
        "peak": peak,
        "rows": rows,
    }
    print(write("shapes", figures))
    with style():
        plot(rows).savefig(RESULTS / "shapes.png", dpi=160)


def device_peak(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Operations and bytes per second, the best of some: of a product, and of a copy's two ways."""
    side, count = (8192, 1 << 30) if device.type == "cuda" else (4096, 1 << 28)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    block = torch.zeros(count, device=device, dtype=torch.uint8)
    other = torch.empty_like(block)
    product_s = quickest_s(finished(device, lambda: matrix @ matrix))
    copy_s = quickest_s(finished(device, lambda: other.copy_(block)))
    return {"flops": 2 * side**3 / product_s, "bytes": 2 * count / copy_s}


def finished(device: torch.device, work: Callable[[], object]) -> Callable[[], None]:
    """The same, over when the device has done it."""

    def wait() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return wait


def random_model(
    shape: ModelShape, tower: TowerShape, dtype: torch.dtype, device: torch.device
) -> M3Model:
    vision = CLIPVisionConfig(
        hidden_size=tower.hidden,
        intermediate_size=tower.intermediate,
        num_hidden_layers=tower.layers,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
    )
    with torch.device("meta"):
        model = M3Model(vision, text).to(dtype)
    model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02)
    model.restore_buffers(device)
    model.choose_attention()
    return model.requires_grad_(False).eval()


def encodings(
    runner: ModelRunner, tower: TowerShape, peak: dict[str, float]
) -> list[dict[str, Any]]:
    rows = []
    for count in PROMPTS:
        pixels = torch.zeros(count, 3, 336, 336)
        seconds = quickest_s(lambda pixels=pixels: runner.features(pixels), 3)
        flops = tower.encode_flops(count)
        rows.append(row("encode", 576, count, seconds, flops, 0.0, peak))
    return rows


def prefills(runner: ModelRunner, peak: dict[str, float], longest: int) -> list[dict[str, Any]]:
    rows = []
    shape, ladder = runner.checkpoint.shape, runner.checkpoint.ladder
    for scale in ladder.scales:
        for count in PROMPTS:
            tokens = TEXT + scale
            prompts = [embeddings(runner, tokens)] * count
            spans = [Span(table(at, longest), 0, tokens) for at in range(count)]
            seconds = quickest_s(
                finished(
                    runner.checkpoint.device,
                    lambda spans=spans, prompts=prompts: runner.prefill(spans, prompts),
                ),
                3,
            )
            flops = count * shape.last_logits_flops(tokens)
            rows.append(
                row("prefill", scale, count, seconds, flops, shape.step_bytes(count * tokens), peak)
            )
    return rows


def decodings(runner: ModelRunner, peak: dict[str, float], longest: int) -> list[dict[str, Any]]:
    rows = []
    shape, ladder = runner.checkpoint.shape, runner.checkpoint.ladder
    for scale in ladder.scales:
        for count in BATCHES:
            tokens = TEXT + scale
            spans = [Span(table(at, longest), tokens, 1) for at in range(count)]
            seconds = quickest_s(
                finished(
                    runner.checkpoint.device,
                    lambda spans=spans, count=count: runner.decode(spans, [0] * count),
                ),
                3,
            )
            held = count * (tokens + 1)
            flops, read = shape.step_flops(count, held), shape.step_bytes(held)
            rows.append(row("decode", scale, count, seconds, flops, read, peak))
    return rows


def embeddings(runner: ModelRunner, tokens: int) -> Tensor:
    checkpoint = runner.checkpoint
    return torch.zeros(
        tokens, checkpoint.shape.hidden, dtype=checkpoint.dtype, device=checkpoint.device
    )


def table(at: int, longest: int) -> Any:
    """The rows of request number `at`."""
    return np.arange(1 + at * longest, 1 + (at + 1) * longest)


def row(
    stage: str,
    scale: int,
    batch: int,
    seconds: float,
    flops: float,
    read: float,
    peak: dict[str, float],
) -> dict[str, Any]:
    products_s, reads_s = flops / peak["flops"], read / peak["bytes"]
    return {
        "stage": stage,
        "scale": scale,
        "batch": batch,
        "ms": 1e3 * seconds,
        "gflop": flops / 1e9,
        "gbyte": read / 1e9,
        "bound": "products" if products_s > reads_s else "memory",
        "share": max(products_s, reads_s) / seconds,
    }


def plot(rows: list[dict[str, Any]]) -> Figure:
    """Share of the roofline by scale, one line per stage and batch."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for stage, colour in (("prefill", ACCENT), ("decode", MUTED)):
        batches = sorted({one["batch"] for one in rows if one["stage"] == stage})
        for batch, width in zip(batches, (0.8, 1.3, 1.8, 2.4, 3.0), strict=False):
            line = [one for one in rows if (one["stage"], one["batch"]) == (stage, batch)]
            axes.plot(
                [one["scale"] for one in line],
                [100 * one["share"] for one in line],
                color=colour,
                linewidth=width,
                marker=".",
                label=f"{stage} × {batch}",
            )
    axes.set_xscale("log")
    axes.set_ylim(0, 110)
    axes.set_xlabel("image tokens")
    axes.set_ylabel("% of the roofline")
    axes.legend(frameon=False, ncols=2)
    draw_grid(axes)
    return figure
