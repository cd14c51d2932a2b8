"""The commands that make a predictor: label, train, evaluate. Nothing here serves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from tqdm import tqdm

from deploy.printing import print_evaluation

if TYPE_CHECKING:
    from predictor.datasets import Row
    from predictor.train import Progress

Outcomes = Annotated[
    Path, typer.Argument(help="Table written by `label`.", exists=True, dir_okay=False)
]
Images = Annotated[
    Path | None,
    typer.Option(help="Folder of the pictures [default: the feature table beside the outcomes]."),
]


class TargetName(StrEnum):
    """What success means; see docs/architecture.md."""

    AGREEMENT = "agreement"
    CORRECTNESS = "correctness"


def label(
    out: Annotated[Path, typer.Argument(help="Parquet file to write; a stopped run continues.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines with `image` (a path beside the file), `question` and, if known, "
            "`answer` or `answers`.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    worlds: Annotated[
        int, typer.Option(min=0, help="Instead: this many drawn pictures, as m3-tiny knows them.")
    ] = 0,
    shifted: Annotated[
        int, typer.Option(min=0, help="And this many with held-out fonts, palettes and phrasings.")
    ] = 0,
    checkpoint: Annotated[
        str, typer.Option(help="`m3-tiny`, a folder or a Hugging Face name.")
    ] = "m3-tiny",
    dtype: Annotated[str, typer.Option(help="As in the configuration.")] = "auto",
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda`.")] = "auto",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the splits and the drawn pictures.")] = 0,
) -> None:
    """Answer questions at every token scale and write down what came out.

    This is what a predictor is trained on. Example: `m3-router label runs/mine.parquet --data
    mine.jsonl --checkpoint mucai/llava-v1.5-7b-m3`
    """
    if (data is None) == (worlds + shifted == 0):
        raise typer.BadParameter("give either --data or --worlds/--shifted", param_hint="--data")
    from m3_backend.checkpoint import open_checkpoint  # noqa: PLC0415 - loads torch
    from predictor.datasets import read_jsonl, world_rows  # noqa: PLC0415
    from predictor.label import label as write_outcomes  # noqa: PLC0415

    rows: Iterable[Row] = (
        world_rows(worlds, shifted, seed=seed) if data is None else read_jsonl(data, seed=seed)
    )
    model = open_checkpoint(checkpoint, dtype=dtype, device=device)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(unit="question", desc="label") as bar:

        def advance(done: int) -> None:
            bar.update(done - bar.n)

        answered = write_outcomes(rows, model, out, max_tokens=max_tokens, progress=advance)
    print(f"{out}: {answered} questions answered in this run")


def train_predictor(
    outcomes: Outcomes,
    out: Annotated[Path, typer.Argument(help="Folder of the artefact, replaced if it is one.")],
    images: Images = None,
    target: Annotated[TargetName, typer.Option(help="What counts as success.")] = (
        TargetName.AGREEMENT
    ),
    seed: Annotated[int, typer.Option(help="The same seed and data give the same artefact.")] = 0,
) -> None:
    """Train, calibrate and certify a predictor on labelled outcomes.

    Serve it with `m3-router serve --predictor FOLDER`.
    """
    from predictor.image_table import table_beside  # noqa: PLC0415
    from predictor.train import train  # noqa: PLC0415

    with progress_bars() as progress:
        version = train(
            outcomes,
            images or table_beside(outcomes),
            out,
            target=target.value,
            seed=seed,
            progress=progress,
        )
    print(f"{out}: predictor {version}")


def evaluate(
    artifact: Annotated[Path, typer.Argument(help="Folder of a predictor.", exists=True)],
    outcomes: Outcomes,
    out: Annotated[Path, typer.Argument(help="Folder for evaluation.json and frontier.png.")],
    images: Images = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report.")] = False,
) -> None:
    """Judge a predictor on pictures that it never saw: cost, accuracy, regret and its peers."""
    from predictor.evaluate import evaluate as judge  # noqa: PLC0415
    from predictor.image_table import table_beside  # noqa: PLC0415

    with progress_bars() as progress:
        report: dict[str, Any] = judge(
            artifact, outcomes, images or table_beside(outcomes), out, progress=progress
        )
    if as_json:
        print(json.dumps(report))
        return
    print_evaluation(Console(), report)
    print(f"\nThe whole report and the plot are in {out}.")


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Shows one bar per stage, each replacing the one before."""
    bar = tqdm(leave=False)

    def progress(stage: str, done: int, total: int) -> None:
        if bar.desc != f"{stage}: ":
            bar.reset()
            bar.set_description(stage)
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        yield progress
