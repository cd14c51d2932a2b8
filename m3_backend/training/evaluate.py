"""How well m3-tiny answers, by family and scale.

`python -m m3_backend.training.evaluate --out runs/tiny` prints the table. An answer counts when
each of its tokens, the end included, is the model's first choice given the ones before it: exactly
when greedy decoding gives it. `m3-router label` measures the same through the engine.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import torch
from tqdm import tqdm

from m3_backend.scales import M3_SCALES
from m3_backend.training.batches import NOT_WANTED, pack, pad
from m3_backend.training.recipe import RECIPES
from m3_backend.training.train import Run
from m3_backend.training.worlds import Question, draw

Table = dict[str, dict[int, float]]


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether one question was answered rightly at one scale."""

    family: str
    scale: int
    right: bool


def evaluate(run: Run, split: str, pictures: int, *, most_questions: int = 4) -> Iterator[Answer]:
    """Answers to questions about the first `pictures` pictures of a split, at every scale."""
    numbers = iter(tqdm(range(pictures), desc=split, unit="picture", mininterval=10))
    while chunk := list(islice(numbers, 16)):
        yield from _answers(run, split, chunk, most_questions)


@torch.inference_mode()
def _answers(run: Run, split: str, chunk: list[int], most_questions: int) -> Iterator[Answer]:
    drawn = [draw(split, number) for number in chunk]
    asked: list[list[Question]] = []
    for picture in drawn:
        rng = Random(picture.name)
        asked.append(rng.sample(picture.questions, min(most_questions, len(picture.questions))))
    rows = [
        pack(run.tokenizer, questions, Random(0), conversations=0.0, room=4096)
        for questions in asked
    ]
    text, blocks, positions, answers = zip(*rows, strict=True)
    wanted = pad(answers, NOT_WANTED).to(run.device)
    tokens, place = pad(text).to(run.device), pad(positions).to(run.device)
    block, mask = pad(blocks).to(run.device), wanted != NOT_WANTED
    pixels = torch.from_numpy(np.stack([np.asarray(p.image) for p in drawn])).to(run.device)
    at = mask.nonzero().T
    with torch.autocast(run.device, dtype=torch.bfloat16):
        features = run.model.patches(pixels)
        for scale in M3_SCALES:
            visual = run.model.visual_tokens(features, scale)
            logits = run.model.answer_logits(visual, run.before, tokens, block, place, at)
            wrong = torch.zeros_like(mask)
            wrong[mask] = logits.argmax(-1) != wanted[mask]
            for row, questions in enumerate(asked):
                for number, question in enumerate(questions, start=1):
                    missed = bool(wrong[row][block[row] == number].any())
                    yield Answer(question.family, scale, not missed)


def tabulate(answers: Iterable[Answer]) -> Table:
    """Accuracy per family and scale, and over all questions."""
    counts: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for answer in answers:
        for group in (answer.family, "all"):
            counts[group, answer.scale].append(answer.right)
    table: Table = defaultdict(dict)
    for (group, scale), rights in sorted(counts.items()):
        table[group][scale] = sum(rights) / len(rights)
    return dict(table)


def as_markdown(table: Table) -> str:
    """The table in per cent, the overall row last."""
    head = "| family | " + " | ".join(str(s) for s in M3_SCALES) + " |"
    lines = [head, "|" + "---|" * (len(M3_SCALES) + 1)]
    for family in sorted(table, key=lambda name: (name == "all", name)):
        lines.append(
            f"| {family} | " + " | ".join(f"{100 * v:.1f}" for v in table[family].values()) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--split", default="test", help="a held-out split; 'shifted' for unseen styles"
    )
    parser.add_argument("--pictures", type=int, default=1000)
    options = parser.parse_args()
    run = Run(RECIPES[options.recipe], options.out, options.device, workers=0)
    run.resume()
    table = tabulate(evaluate(run, options.split, options.pictures))
    (options.out / f"accuracy-{options.split}.json").write_text(json.dumps(table, indent=2) + "\n")
    print(as_markdown(table))


if __name__ == "__main__":
    main()
