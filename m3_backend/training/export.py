"""Held-out pictures of the worlds as an ordinary data set: a folder of images and a JSONL file.

`python -m m3_backend.training.export --out runs/worlds` writes what `m3-router label` reads, so
m3-tiny is labelled and judged by the same commands as anybody's model on anybody's data.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tqdm import tqdm

from m3_backend.training.worlds import Picture, draw

# Pictures per split when the whole is 1: what a predictor learns from, and what it is judged on.
SHARES = {"train": 0.45, "calibrate": 0.1, "threshold": 0.15, "test": 0.22, "shifted": 0.08}


def export(out: Path, pictures: int, questions: int, seed: int = 0) -> Path:
    """Writes `pictures` pictures with up to `questions` questions each.

    None of them is ever trained on: also the predictor's "train" split holds new pictures, on which
    the model's success looks as it will in service.

    Returns:
        The JSONL file; its rows have `sample`, `image` (path beside it), `question`, `answers`,
        `group`, `split`, `shift` and `detail_px`.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    path = out / "dataset.jsonl"
    counts = {split: round(pictures * share) for split, share in SHARES.items()}
    bar = tqdm(total=sum(counts.values()), desc="drawing", unit="picture", mininterval=5)
    with path.open("w", encoding="utf-8") as file:
        for split, count in counts.items():
            for index in range(count):
                picture = draw(
                    split if split == "shifted" else f"outcomes-{split}", index, seed=seed
                )
                name = f"images/{picture.name}.png"
                picture.image.save(out / name, compress_level=1)
                for row in _rows(picture, name, split, questions):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                bar.update()
    bar.close()
    return path


def _rows(picture: Picture, name: str, split: str, questions: int) -> Iterator[dict[str, object]]:
    asked = Random(picture.name).sample(picture.questions, min(questions, len(picture.questions)))
    for number, question in enumerate(asked):
        yield {
            "sample": f"{picture.name}-{number}",
            "image": name,
            "question": question.text,
            "answers": [question.answer],
            "group": question.family,
            "split": split,
            "shift": picture.shift,
            "detail_px": round(question.detail_px, 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/worlds"))
    parser.add_argument("--pictures", type=int, default=8000)
    parser.add_argument("--questions", type=int, default=3, help="at most, per picture")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(export(options.out, options.pictures, options.questions, options.seed))


if __name__ == "__main__":
    main()
