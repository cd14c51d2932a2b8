"""Turns a finished run into the checkpoint that ships: weights, tokenizer and a model card.

`python -m m3_backend.training.publish --out runs/tiny` measures the run on held-out pictures and
replaces `m3_backend/checkpoints/m3-tiny`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from pathlib import Path

import torch

from m3_backend.training.evaluate import Table, as_markdown, evaluate, tabulate
from m3_backend.training.model import SHIPPED, save_checkpoint
from m3_backend.training.recipe import RECIPES, Stage
from m3_backend.training.train import HISTORY, Run

History = dict[str, dict[str, float]]

_CARD = """# m3-tiny

A LLaVA-shaped Matryoshka multimodal model of {parameters:.1f} million parameters: CLIP tower
at 336 px with patch 14 (576 patches), two-layer projector, Llama text model. It was trained
from nothing by this repository, on procedurally drawn pictures, to demonstrate and test
m3-router without a download. It answers short questions about drawn shapes, digits, words,
documents, charts and two photographs, through 1, 9, 36, 144 or 576 visual tokens. It knows
nothing else and is of no use outside that.

Layout: llava-hf (`LlavaForConditionalGeneration`), bf16. The `m3` key of `config.json` names
the scales and the prompt: `vicuna_v1` without a system prompt.

## Accuracy

Exact match of the greedy answer in per cent, by family of questions and visual tokens, on
{pictures} pictures never trained on:

{test}

On {shifted_pictures} pictures with phrasings, fonts, palettes or densities that were never
trained on:

{shifted}

## Training

Data: `m3_backend/training/worlds`, drawn as training goes; handwritten digits and photographs
from scikit-learn, fonts from matplotlib. Nothing was downloaded.

| stage | what learns | picture side | steps × batch | scales | last loss | minutes |
|---|---|---|---|---|---|---|
{stages}

Recipe `{recipe}`, seed {seed}, on {hardware}; the machine was shared with other work, so the
minutes are upper bounds. One command makes a model of the same kind: `python -m
m3_backend.training.train --recipe {recipe}`. Not the same weights: the recipe grew while this model
learned, and its earlier stages saw fewer questions and labels than they would now (docs/log.md).
"""


def publish(run: Run, pictures: int, shifted_pictures: int, to: Path = SHIPPED) -> None:
    """Evaluates a finished run and replaces the folder `to` by its checkpoint and card."""
    run.resume()
    test = tabulate(evaluate(run, "test", pictures))
    shifted = tabulate(evaluate(run, "shifted", shifted_pictures))
    if to.exists():
        shutil.rmtree(to)
    save_checkpoint(run.model, run.tokenizer, to)
    past = history(run)
    (to / "README.md").write_text(
        card(run, past, test, pictures, shifted, shifted_pictures), encoding="utf-8"
    )
    for name, value in (("accuracy.json", {"test": test, "shifted": shifted}), (HISTORY, past)):
        (to / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def history(run: Run) -> History:
    """Last loss and minutes of every stage; of those before the run's own from its checkpoint."""
    lines = (run.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    earlier = run.out / HISTORY
    past: History = json.loads(earlier.read_text(encoding="utf-8")) if earlier.exists() else {}
    for stage in run.recipe.stages:
        if own := [m for m in metrics if m["stage"] == stage.name]:
            last = [m["loss"] for m in own[-5:]]
            minutes = (own[-1]["time"] - own[0]["time"]) / 60
            past[stage.name] = {"loss": sum(last) / len(last), "minutes": minutes}
    return past


def card(
    run: Run, past: History, test: Table, pictures: int, shifted: Table, shifted_pictures: int
) -> str:
    """The model card, from the run's own recipe and metrics."""
    stages = [
        f"| {stage.name} | {_learns(stage)} | {stage.side} | {stage.steps} × {stage.batch} "
        f"| {_scales(stage)} | {past[stage.name]['loss']:.2f} | {past[stage.name]['minutes']:.0f} |"
        for stage in run.recipe.stages
    ]
    return _CARD.format(
        parameters=sum(p.numel() for p in run.model.llava.parameters()) / 1e6,
        pictures=pictures,
        test=as_markdown(test),
        shifted_pictures=shifted_pictures,
        shifted=as_markdown(shifted),
        stages="\n".join(stages),
        recipe=run.recipe.name,
        seed=run.recipe.seed,
        hardware=_hardware(run.device),
    )


def _learns(stage: Stage) -> str:
    if stage.kind == "dense":
        return "vision tower, from labels under every patch"
    if stage.end_to_end:
        return "all of it, from the answers; the vision tower slowly, from the dense labels too"
    tower = "; vision tower slowly, from the dense labels" if stage.tower_rate else ""
    return "language model and projector" + tower


def _scales(stage: Stage) -> str:
    if stage.kind == "dense":
        return "–"
    total = sum(stage.scales.values())
    return ", ".join(f"{scale}: {100 * w / total:.0f}%" for scale, w in stage.scales.items())


def _hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} cores of {platform.machine()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--shifted-pictures", type=int, default=500)
    options = parser.parse_args()
    run = Run(RECIPES[options.recipe], options.out, options.device, workers=0)
    publish(run, options.pictures, options.shifted_pictures)


if __name__ == "__main__":
    main()
