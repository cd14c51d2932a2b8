"""Trains m3-tiny from nothing: `python -m m3_backend.training.train --recipe cpu --out runs/tiny`.

Stops and resumes at any step; the same seed on the same hardware gives the same weights.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from m3_backend.scales import M3_GRID_SIDE
from m3_backend.training.batches import NOT_WANTED, Batch, Batches
from m3_backend.training.model import (
    DENSE_HEADS,
    SHIPPED,
    TinyLlava,
    build_tokenizer,
    public_name,
    save_checkpoint,
)
from m3_backend.training.recipe import PATCH, RECIPES, Recipe, Stage
from m3_backend.training.worlds.canvas import CLASSES, NO_COLOUR

HISTORY = "training.json"  # beside a checkpoint: what each stage that led to it came to
_SAVE_EVERY_S = 120.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

_IS_GLYPH = torch.tensor([what.startswith(("printed", "handwritten")) for what in CLASSES])
# Most of a picture is background or a large area of one thing; glyphs are small and many.
CLASS_WEIGHTS = torch.where(_IS_GLYPH, 1.0, 0.3)
CLASS_WEIGHTS[0] = 0.1


@dataclass(frozen=True, slots=True)
class _Trained:
    """Parameters that learn together: matrices by Muon, the rest by AdamW.

    Args:
        rate: relative to the learning rates of the stage.
    """

    matrices: list[nn.Parameter]
    others: list[nn.Parameter]
    rate: float

    def parameters(self) -> list[nn.Parameter]:
        return self.matrices + self.others


def _trained(body: list[nn.Module], tables: list[nn.Module], rate: float) -> _Trained:
    """Splits modules: the matrices of `body` to Muon; embeddings, heads and vectors to AdamW."""
    within = [p for module in body for p in module.parameters()]
    others = [p for p in within if p.ndim != 2]
    others += [p for module in tables for p in module.parameters()]
    return _Trained([p for p in within if p.ndim == 2], others, rate)


class Run:
    """A training run in a folder: state.pt (to resume), metrics.jsonl, checkpoint/ (the result)."""

    def __init__(self, recipe: Recipe, out: Path, device: str, workers: int) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.out = out
        self.device = device
        self.workers = workers
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer(recipe.architecture.vocabulary)
        self.model = TinyLlava(recipe.architecture, self.tokenizer).to(device)
        before = self.tokenizer.encode("USER: ", add_special_tokens=False)
        self.before = torch.tensor([self.tokenizer.bos_token_id, *before], device=device)
        out.mkdir(parents=True, exist_ok=True)

    def begin(self, stage: str, checkpoint: Path) -> None:
        """Makes a fresh run start at a later stage, with the weights of a published checkpoint.

        Weights of other sizes than the recipe's, and dense heads that were not published with the
        checkpoint, keep their initial values. A run that has begun already is left as it is.
        """
        if (self.out / "state.pt").exists():
            return
        number = [each.name for each in self.recipe.stages].index(stage)
        own = self.model.llava.state_dict()
        published = load_file(checkpoint / "model.safetensors")
        for name, value in own.items():
            theirs = published.get(public_name(name))
            if theirs is not None and theirs.shape == value.shape:
                value.copy_(theirs)
        if (heads := checkpoint / DENSE_HEADS).exists():
            self.model.load_state_dict(load_file(heads), strict=False)
        if (past := checkpoint / HISTORY).exists():
            shutil.copy(past, self.out / HISTORY)
        self._save(number, 0, [])

    def train(self) -> None:
        """Runs every stage that is not finished yet, then writes the checkpoint."""
        done, step, optimisers = self.resume()
        for number, stage in enumerate(self.recipe.stages):
            if number < done:
                continue
            self._run_stage(
                number, stage, step if number == done else 0, optimisers if number == done else None
            )
        save_checkpoint(self.model, self.tokenizer, self.out / "checkpoint")

    def _run_stage(
        self, number: int, stage: Stage, first: int, saved: list[dict[str, Any]] | None
    ) -> None:
        trained = self._trainable(stage)
        optimisers = _optimisers(stage, trained)
        for optimiser, state in zip(optimisers, saved or (), strict=bool(saved)):
            optimiser.load_state_dict(state)
        parameters = [p for each in trained for p in each.parameters()]
        saved_at = time.monotonic()
        bar = tqdm(total=stage.steps, initial=first, desc=stage.name, unit="step", mininterval=10)
        for step, batch in enumerate(self._batches(stage, first), start=first):
            rate = _schedule(step, stage)
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = group["initial_lr"] * rate
            with torch.autocast(self.device, dtype=torch.bfloat16):
                loss, metrics = self._loss(stage, step, batch)
            for optimiser in optimisers:
                optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimiser in optimisers:
                optimiser.step()
            bar.update()
            if step % 10 == 0 or step == stage.steps - 1:
                self._log(stage=stage.name, step=step, loss=loss.item(), **metrics)
                bar.set_postfix(loss=f"{loss.item():.3f}", **metrics)
            if time.monotonic() - saved_at > _SAVE_EVERY_S:
                self._save(number, step + 1, optimisers)
                saved_at = time.monotonic()
        bar.close()
        self._save(number + 1, 0, [])

    def _trainable(self, stage: Stage) -> list[_Trained]:
        """What learns in a stage, and how fast; all else is frozen."""
        model = self.model
        tower: list[nn.Module] = [model.vision.pre_layrnorm, model.vision.encoder]
        tower_tables: list[nn.Module] = [
            model.vision.embeddings,
            model.class_head,
            model.colour_head,
            model.place_head,
        ]
        language: list[nn.Module] = [model.language.layers, model.language.norm, model.projector]
        tables: list[nn.Module] = [model.language.embed_tokens, model.llava.lm_head]
        learning = (
            [_trained(tower, tower_tables, 1.0)]
            if stage.kind == "dense"
            else [_trained(language, tables, 1.0)]
            + ([_trained(tower, tower_tables, stage.tower_rate)] if stage.tower_rate else [])
        )
        model.requires_grad_(False)
        for trained in learning:
            for parameter in trained.parameters():
                parameter.requires_grad_(True)
        return learning

    def _batches(self, stage: Stage, first: int) -> Iterator[Batch]:
        batches = Batches(stage, self.tokenizer, self.recipe.questions, self.recipe.seed)
        left = Subset(batches, range(first, stage.steps))
        loader = DataLoader(
            left,
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            pin_memory=self.device == "cuda",
        )
        for batch in loader:
            yield Batch(
                **{
                    f.name: getattr(batch, f.name).to(self.device, non_blocking=True)
                    for f in fields(Batch)
                }
            )

    def _loss(self, stage: Stage, step: int, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        rng = Random(f"{self.recipe.seed}-{stage.name}-{step}-draws")
        room = M3_GRID_SIDE - stage.side // PATCH
        corner = (rng.randint(0, room), rng.randint(0, room))
        with torch.set_grad_enabled(stage.kind == "dense" or stage.tower_rate > 0):
            features = self._see(batch.pixels, corner)
        if stage.kind == "dense":
            return self._dense_loss(features, corner, batch)
        scale = rng.choices(list(stage.scales), list(stage.scales.values()))[0]
        wanted = batch.answers != NOT_WANTED
        # The tower learns from dense labels only: through the language model's loss a small one
        # learns next to nothing, and features that wander for its sake are harder to read.
        visual = self.model.visual_tokens(features.detach(), scale)
        logits = self.model.answer_logits(
            visual, self.before, batch.text, batch.blocks, batch.positions, wanted
        )
        loss = F.cross_entropy(logits.float(), batch.answers[wanted])
        metrics = {"scale": scale, "answer_loss": round(loss.item(), 4)}
        if stage.tower_rate:
            dense, seen = self._dense_loss(features, corner, batch)
            return loss + dense, metrics | seen
        return loss, metrics

    def _see(self, pixels: Tensor, corner: tuple[int, int]) -> Tensor:
        if self.device != "cpu" or not torch.is_grad_enabled():
            return self.model.patches(pixels, corner)
        # The fused kernel's backward pass takes 40% of a dense step on a CPU, plain products 20%.
        with sdpa_kernel(SDPBackend.MATH):
            return self.model.patches(pixels, corner)

    def _dense_loss(
        self, features: Tensor, corner: tuple[int, int], batch: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        classes, colours = self.model.dense_logits(features)
        weight = CLASS_WEIGHTS.to(features.device)
        class_loss = F.cross_entropy(
            classes.flatten(0, 2).float(), batch.classes.flatten(), weight=weight
        )
        known = batch.colours < NO_COLOUR
        colour_loss = F.cross_entropy(colours[known].float(), batch.colours[known])
        drawn = batch.classes > 0
        right = classes.argmax(-1) == batch.classes
        place_error = self.model.place_error(features, corner)
        glyphs = _IS_GLYPH.to(features.device)[batch.classes]
        return class_loss + colour_loss + place_error, {
            "place_error": round(place_error.item(), 4),
            "foreground_accuracy": round(right[drawn].float().mean().item(), 3),
            "glyph_accuracy": round(right[glyphs].float().mean().item(), 3),
        }

    def _save(self, stage: int, step: int, optimisers: list[torch.optim.Optimizer]) -> None:
        state = {
            "model": self.model.state_dict(),
            "stage": stage,
            "step": step,
            "optimisers": [o.state_dict() for o in optimisers],
        }
        partial = self.out / "state.pt.partial"
        torch.save(state, partial)
        partial.replace(self.out / "state.pt")

    def resume(self) -> tuple[int, int, list[dict[str, Any]] | None]:
        """Loads the newest weights. Gives the stage and step to go on from, and the optimisers."""
        path = self.out / "state.pt"
        if not path.exists():
            return 0, 0, None
        # Written by this program on this machine; tensors and plain containers only.
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        return state["stage"], state["step"], state["optimisers"] or None

    def _log(self, **entry: object) -> None:
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **entry}) + "\n")


def _optimisers(stage: Stage, trained: list[_Trained]) -> list[torch.optim.Optimizer]:
    """Muon for all matrices, AdamW for the rest; every group knows its own full rate."""
    muon = torch.optim.Muon(
        [_group(each.matrices, stage.matrix_lr * each.rate) for each in trained],
        lr=stage.matrix_lr,
        weight_decay=0.05,
        adjust_lr_fn="match_rms_adamw",
    )
    others = [_group(each.others, stage.lr * each.rate) for each in trained]
    return [muon, torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)]


def _group(parameters: list[nn.Parameter], rate: float) -> dict[str, Any]:
    return {"params": parameters, "lr": rate, "initial_lr": rate}


def _schedule(step: int, stage: Stage) -> float:
    """Linear warm-up, constant, linear decay."""
    warm = min(1.0, (step + 1) / stage.warmup)
    left = (stage.steps - step) / max(1.0, stage.decay * stage.steps)
    return warm * min(1.0, left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument(
        "--begin", metavar="STAGE", help="start a fresh run here instead of at the first stage"
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=SHIPPED, help="the weights that --begin starts with"
    )
    options = parser.parse_args()
    _keep_freed_memory()
    run = Run(RECIPES[options.recipe], options.out, options.device, options.workers)
    if options.begin:
        run.begin(options.begin, options.checkpoint)
    run.train()


def _keep_freed_memory() -> None:
    """Tells glibc to reuse freed tensors' memory; returning it costs half of a step on a CPU."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library; training is only slower
    most = 2**31 - 1
    for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        mallopt(parameter, most)


if __name__ == "__main__":
    main()
