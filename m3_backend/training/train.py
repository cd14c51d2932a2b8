"""Trains m3-tiny from nothing: `python -m m3_backend.training.train --out runs/tiny`.

Stops and resumes at any step; the same seed on the same hardware gives the same weights. On a busy
CPU one process a core, `torchrun --nproc-per-node 2 -m m3_backend.training.train`, loses less to
waiting than one process with two threads: it waits once a step instead of at every operation.
"""

from __future__ import annotations

import argparse
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
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from m3_backend import attention
from m3_backend.allocator import MOST, keep_freed_memory
from m3_backend.scales import M3_GRID_SIDE
from m3_backend.training.alignment import WordAlignment
from m3_backend.training.batches import Batch, Batches
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

_IS_GLYPH = torch.tensor([what.startswith(("printed", "handwritten")) for what in CLASSES])
# Most of a picture is background or a large area of one thing; glyphs are small and many.
CLASS_WEIGHTS = torch.where(_IS_GLYPH, 1.0, 0.3)
CLASS_WEIGHTS[0] = 0.1
_UNLABELLED = 0.05  # weight of points without an order, a row or a column: nearly all
_NOT_NAMED = -100
_ALIGNED = 0.1  # weight of tying image tokens to words, in language stages
_ORDERS, _ROWS, _COLUMNS = 0.5, 0.5, 0.2  # weights of these labels beside class, colour and place


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
        self.rank, self.ranks = _rank()
        self.recipe = recipe
        self.out = out
        self.device = device
        self.workers = workers
        self.tokenizer: PreTrainedTokenizerFast = build_tokenizer(recipe.architecture.vocabulary)
        self.model = TinyLlava(recipe.architecture, self.tokenizer).to(device)
        if device == "cpu":
            self.model.llava.set_attn_implementation(attention.register())
        else:
            self._compile()
        self.alignment = WordAlignment(self.tokenizer).to(device)
        before = self.tokenizer.encode("USER: ", add_special_tokens=False)
        self._class_weights = CLASS_WEIGHTS.to(device)
        self._is_glyph = _IS_GLYPH.to(device)
        self.before = torch.tensor([self.tokenizer.bos_token_id, *before], device=device)
        out.mkdir(parents=True, exist_ok=True)

    def _compile(self) -> None:
        """Fuses what is between the products of a layer: most of the time on an accelerator."""
        # All layers of a kind share the code that is made for one; the top one of the language
        # model goes a way of its own (model.py).
        for layer in (*self.model.vision.encoder.layers, *self.model.language.layers[:-1]):
            layer.compile()

    def begin(self, stage: str, checkpoint: Path) -> None:
        """Makes a fresh run start at a later stage, with the weights of a published checkpoint.

        Weights of other sizes than the recipe's, and dense heads that were not published with the
        checkpoint, keep their initial values; so do the embeddings of tokens that it does not know.
        If the recipe's language model has more layers than the checkpoint's, the missing ones are
        put between those it has, and pass on what they are given until they learn to do more.
        A run that has begun already is left as it is.
        """
        if (self.out / "state.pt").exists():
            return
        number = [each.name for each in self.recipe.stages].index(stage)
        own = self.model.llava.state_dict()
        published = _deepened(
            load_file(checkpoint / "model.safetensors"), self.recipe.architecture.text_layers
        )
        for name, value in own.items():
            theirs = published.get(public_name(name))
            if theirs is None or theirs.shape[1:] != value.shape[1:]:
                continue
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                here, there = _common_tokens(self.tokenizer, checkpoint)
                value[here] = theirs[there].to(value)
            elif theirs.shape == value.shape:
                value.copy_(theirs)
        if (heads := checkpoint / DENSE_HEADS).exists():
            shapes = {name: value.shape for name, value in self.model.state_dict().items()}
            fitting = {n: v for n, v in load_file(heads).items() if shapes.get(n) == v.shape}
            self.model.load_state_dict(fitting, strict=False)
        if (past := checkpoint / HISTORY).exists():
            shutil.copy(past, self.out / HISTORY)
        self._save(number, 0, [])

    def train(self) -> None:
        """Runs every stage that is not finished yet, then writes the checkpoint."""
        if self.ranks > 1:
            distributed.barrier()  # the first process may just have written where to begin
        done, step, optimisers = self.resume()
        for number, stage in enumerate(self.recipe.stages):
            if number < done:
                continue
            self._run_stage(
                number, stage, step if number == done else 0, optimisers if number == done else None
            )
        if self.rank == 0:
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
        bar = tqdm(
            total=stage.steps,
            initial=first,
            desc=stage.name,
            unit="step",
            mininterval=10,
            disable=self.rank > 0,
        )
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
            if self.ranks > 1:
                _average(parameters, self.ranks)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimiser in optimisers:
                optimiser.step()
            bar.update()
            if step % 10 == 0 or step == stage.steps - 1:
                told = {name: round(value.item(), 4) for name, value in metrics.items()}
                self._log(stage=stage.name, step=step, loss=loss.item(), **told)
                bar.set_postfix(loss=f"{loss.item():.3f}", **told)
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
            *model.dense_heads,
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
        batches = Batches(
            stage,
            self.tokenizer,
            self.recipe.questions,
            self.recipe.seed,
            self.rank,
            self.ranks,
        )
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

    def _loss(self, stage: Stage, step: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what to tell of it. Nothing here waits for the device."""
        rng = Random(f"{self.recipe.seed}-{stage.name}-{step}-draws")
        room = M3_GRID_SIDE - stage.side // PATCH
        corner = (rng.randint(0, room), rng.randint(0, room))
        with torch.set_grad_enabled(stage.kind == "dense" or stage.tower_rate > 0):
            features = self.model.patches(batch.pixels, corner)
        if stage.kind == "dense":
            return self._dense_loss(features, corner, batch)
        # Early, the tower learns from dense labels only: through the language model's loss a small
        # one learns next to nothing, and features that wander for its sake are harder to read.
        projected = self.model.projector(features if stage.end_to_end else features.detach())
        labels = {"classes": batch.classes, "colours": batch.colours, "rows": batch.rows}
        words = self.model.language.embed_tokens.weight
        aligned = self.alignment(projected, words, labels, corner)
        metrics = {"alignment": aligned.detach()}
        losses = []
        for scale in _draw_scales(stage, rng):
            losses.append(self._answer_loss(self.model.pool(projected, scale), batch))
            metrics[f"loss_{scale}"] = losses[-1].detach()
        loss = torch.stack(losses).mean() + _ALIGNED * aligned
        if stage.tower_rate:
            dense, seen = self._dense_loss(features, corner, batch)
            return loss + dense, metrics | seen
        return loss, metrics

    def _answer_loss(self, visual: Tensor, batch: Batch) -> Tensor:
        logits = self.model.answer_logits(
            visual, self.before, batch.text, batch.blocks, batch.positions, batch.wanted
        )
        row, column = batch.wanted
        return F.cross_entropy(logits.float(), batch.answers[row, column])

    def _dense_loss(
        self, features: Tensor, corner: tuple[int, int], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.model.dense_logits(features)
        classes, colours = batch.classes.long(), batch.colours.long()
        colours = colours.where(colours < NO_COLOUR, _NOT_NAMED)
        place_error = self.model.place_error(features, corner)
        loss = (
            F.cross_entropy(
                logits.classes.flatten(0, 2), classes.flatten(), weight=self._class_weights
            )
            + F.cross_entropy(
                logits.colours.flatten(0, 2), colours.flatten(), ignore_index=_NOT_NAMED
            )
            + _ORDERS * _labelled_loss(logits.orders, batch.orders)
            + _ROWS * _labelled_loss(logits.rows, batch.rows)
            + _COLUMNS * _labelled_loss(logits.columns, batch.columns)
            + place_error
        )
        right = logits.classes.argmax(-1) == classes
        return loss, {
            "place_error": place_error.detach(),
            "foreground_accuracy": _share(right, classes > 0),
            "glyph_accuracy": _share(right, self._is_glyph[classes]),
            "order_accuracy": _labelled_accuracy(logits.orders, batch.orders),
            "row_accuracy": _labelled_accuracy(logits.rows, batch.rows),
            "column_accuracy": _labelled_accuracy(logits.columns, batch.columns),
        }

    def _save(self, stage: int, step: int, optimisers: list[torch.optim.Optimizer]) -> None:
        if self.rank > 0:
            return
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
        if self.rank > 0:
            return
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **entry}) + "\n")


def _rank() -> tuple[int, int]:
    """Number of this process among those that train together, and how many they are."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _average(parameters: list[nn.Parameter], ranks: int) -> None:
    """Makes the gradients of all processes their mean, in one exchange."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= ranks
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def _draw_scales(stage: Stage, rng: Random) -> list[int]:
    """Different scales for one step, by weight."""
    left = dict(stage.scales)
    drawn = []
    for _ in range(min(stage.scales_per_step, len(left))):
        drawn.append(rng.choices(list(left), list(left.values()))[0])
        del left[drawn[-1]]
    return drawn


def _labelled_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy where label 0 means nothing to tell, as nearly everywhere."""
    weight = torch.ones(logits.shape[-1], device=logits.device)
    weight[0] = _UNLABELLED
    return F.cross_entropy(logits.flatten(0, 2), labels.flatten().long(), weight=weight)


def _labelled_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return _share(logits.argmax(-1) == labels, labels > 0)


def _share(right: Tensor, among: Tensor) -> Tensor:
    return (right & among).sum() / among.sum().clamp(min=1)


def _deepened(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """A language model's weights with more layers, which compute the same.

    A new layer is a copy of the one below that adds nothing: its last products are zero.
    (Wu et al., "LLaMA Pro: Progressive LLaMA with Block Expansion", 2024.)
    """
    head = "language_model.model.layers."
    old = 1 + max(int(n.removeprefix(head).split(".")[0]) for n in weights if n.startswith(head))
    if layers <= old:
        return weights
    made = {name: value for name, value in weights.items() if not name.startswith(head)}
    # Spread evenly: of four in six, 0 0' 1 2 2' 3.
    sources = [at * old // layers for at in range(layers)]
    for at, source in enumerate(sources):
        is_new = at > 0 and sources[at - 1] == source
        for name, value in weights.items():
            if not name.startswith(f"{head}{source}."):
                continue
            part = name.removeprefix(f"{head}{source}.")
            silent = is_new and part in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            made[f"{head}{at}.{part}"] = torch.zeros_like(value) if silent else value
    return made


def _common_tokens(
    tokenizer: PreTrainedTokenizerFast, checkpoint: Path
) -> tuple[list[int], list[int]]:
    """Ids of the tokens that a checkpoint's tokenizer knows too, here and there."""
    here = tokenizer.get_vocab()
    there = PreTrainedTokenizerFast.from_pretrained(checkpoint).get_vocab()
    common = sorted(here.keys() & there.keys())
    return [here[token] for token in common], [there[token] for token in common]


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
    keep_freed_memory(up_to=MOST, spare=MOST)
    if "RANK" in os.environ:  # started by torchrun
        distributed.init_process_group("nccl" if options.device == "cuda" else "gloo")
    run = Run(RECIPES[options.recipe], options.out, options.device, options.workers)
    if options.begin:
        run.begin(options.begin, options.checkpoint)
    run.train()


if __name__ == "__main__":
    main()
