"""The commands that make a predictor of outcomes: train, evaluate. Nothing here serves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from tqdm import tqdm

from deploy.printing import print_evaluation

if TYPE_CHECKING:
    from m3_backend.costs import ModelShape
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
    out: Annotated[
        Path,
        typer.Argument(help="Folder for evaluation.html, .json, frontier.png, choices.parquet."),
    ],
    images: Images = None,
    null: Annotated[
        Path | None,
        typer.Option(
            help="The noise null [default: OUTCOMES with the suffix .null.parquet, if there].",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of trained baselines and bootstrap.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report.")] = False,
) -> None:
    """Judge a predictor on pictures that it never saw: cost, accuracy, regret and its peers."""
    from predictor.evaluate import PAGE  # noqa: PLC0415
    from predictor.evaluate import evaluate as judge  # noqa: PLC0415
    from predictor.image_table import table_beside  # noqa: PLC0415
    from predictor.null_table import null_table_beside, read_null_table  # noqa: PLC0415
    from predictor.records import read_samples  # noqa: PLC0415

    beside = null_table_beside(outcomes)
    null = null or (beside if beside.is_file() else None)
    with progress_bars() as progress:
        report: dict[str, Any] = judge(
            artifact,
            outcomes,
            images or table_beside(outcomes),
            out,
            null=read_null_table(null) if null else None,
            shape=_shape_of(read_samples(outcomes)[0].model),
            seed=seed,
            progress=progress,
        )
    if as_json:
        print(json.dumps(report))
        return
    print_evaluation(Console(), report)
    print(f"\nThe report: {out / PAGE}")


def _shape_of(model: str) -> ModelShape | None:
    """The shape of the outcomes' model, if its configuration is at hand."""
    from m3_backend.errors import CheckpointError  # noqa: PLC0415
    from m3_backend.shapes import find_shape  # noqa: PLC0415

    try:
        return find_shape(model)
    except CheckpointError:
        return None


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
