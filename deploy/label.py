"""The command that asks a model about a data set at every scale and writes down what came out."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from tqdm import tqdm

if TYPE_CHECKING:
    from predictor.datasets import Dataset, Problem, Row

_LISTED = 20  # problems, where a failed run names the first ones


class FormatName(StrEnum):
    """The keys of `predictor.datasets.FORMATS`, known without importing it."""

    JSONL = "jsonl"
    CSV = "csv"
    TEXTVQA = "textvqa"
    DOCVQA = "docvqa"
    CHARTQA = "chartqa"
    VQAV2 = "vqav2"
    POPE = "pope"
    LLAVA_QUESTIONS = "llava-questions"
    LLAVA_CONVERSATIONS = "llava-conversations"


class MetricName(StrEnum):
    """The metrics of `predictor.metrics`."""

    EXACT = "exact"
    VQA = "vqa"
    ANLS = "anls"
    RELAXED = "relaxed"


class OnError(StrEnum):
    """What a broken record does to a run."""

    FAIL = "fail"
    SKIP = "skip"


def label(
    out: Annotated[Path, typer.Argument(help="Parquet file to write; a stopped run continues.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Questions: the project's JSON lines, CSV, or the files of a public data set; see "
            "docs/datasets.md.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    format_: Annotated[
        FormatName | None, typer.Option("--format", help="Of --data [default: told by content].")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the pictures [default: that of --data].", exists=True, file_okay=False
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="The answers of VQAv2's questions.", exists=True, dir_okay=False),
    ] = None,
    metric: Annotated[
        MetricName | None,
        typer.Option(
            help="When an answer is right, for rows that do not say [default: the format's]."
        ),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(
            help="A line to put below every question, such as LLaVA's 'Answer the question using a "
            "single word or phrase.'"
        ),
    ] = None,
    on_error: Annotated[
        OnError,
        typer.Option(
            help="For broken rows: `fail` labels nothing and lists them, `skip` does the others."
        ),
    ] = OnError.FAIL,
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
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes, of one thread each if there are several.")
    ] = 1,
    null_scale: Annotated[
        int | None,
        typer.Option(
            help="Also ask at this scale about slightly shifted pictures: what luck does."
        ),
    ] = None,
    null_runs: Annotated[
        int, typer.Option(min=2, max=25, help="How often, the picture as it is included.")
    ] = 5,
    null_share: Annotated[
        float, typer.Option(min=0, max=1, help="For this share of the pictures.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the splits and the drawn pictures.")] = 0,
) -> None:
    """Answer questions at every token scale and write down what came out.

    This is what `analyze` reads and a predictor is trained on. Example: `m3-router label
    runs/textvqa.parquet --data TextVQA_0.5.1_val.json --images train_images --checkpoint
    mucai/llava-v1.5-7b-m3`
    """
    if (data is None) == (worlds + shifted == 0):
        raise typer.BadParameter("give either --data or --worlds/--shifted", param_hint="--data")
    from predictor.datasets import read_dataset, world_rows  # noqa: PLC0415

    rows: Iterable[Row]
    skipped: Sequence[Problem] = ()
    pictures: Sequence[Problem] = ()
    if data is None:
        rows = world_rows(worlds, shifted, seed=seed)
    else:
        dataset = read_dataset(
            data,
            format=format_,
            images=images,
            annotations=annotations,
            metric=None if metric is None else metric.value,
            seed=seed,
        )
        _note(f"{data}: {_described(dataset)}")
        rows, skipped, pictures = dataset.rows, dataset.problems, _looked_at(dataset)
        if on_error is OnError.FAIL and (skipped or pictures):
            _refuse([*skipped, *pictures])
        if instruction:
            rows = [replace(row, question=f"{row.question}\n{instruction}") for row in rows]

    from predictor.label import NullPlan  # noqa: PLC0415 - loads torch
    from predictor.label import label as write_outcomes  # noqa: PLC0415
    from predictor.labeller import Setup  # noqa: PLC0415

    null = NullPlan(null_scale, null_runs, null_share, seed) if null_scale is not None else None
    setup = Setup(checkpoint, dtype, device, max_tokens)
    with tqdm(unit="question", desc="label") as bar:

        def advance(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        labelled = write_outcomes(rows, setup, out, null=null, jobs=jobs, progress=advance)
    places = {row.sample: row.place for row in rows} if isinstance(rows, Sequence) else {}
    reasons = {problem.place: problem.reason for problem in pictures}
    for problem in skipped:
        _note(f"skipped: {problem}")
    for sample, error in labelled.failed.items():
        place = places.get(sample, sample)
        _note(f"failed: {place}: {reasons.get(place, error)}")
    if skipped or labelled.failed:
        _note(f"{len(skipped)} records skipped, {len(labelled.failed)} rows recorded as failed")
    print(f"{out}: {labelled.answered} questions answered in this run")


def _described(dataset: Dataset) -> str:
    rows = dataset.rows
    metrics, splits = (
        ", ".join(f"{name} {count}" for name, count in sorted(Counter(names).items()))
        for names in ((row.metric for row in rows), (row.split for row in rows))
    )
    unanswered = sum(not row.answers for row in rows)
    return (
        f"{len(rows)} questions about {len({row.image for row in rows})} pictures, read as "
        f"{dataset.format}; metrics: {metrics}; splits: {splits}"
        + (f"; {unanswered} without answers" if unanswered else "")
    )


def _looked_at(dataset: Dataset) -> Sequence[Problem]:
    """What is wrong with the pictures; warnings are printed."""
    from predictor.datasets import check_pictures  # noqa: PLC0415

    with tqdm(unit="picture", desc="check", leave=False) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        check = check_pictures(dataset.rows, advance)
    for warning in check.warnings:
        _note(f"warning: {warning}")
    return check.problems


def _refuse(problems: Sequence[Problem]) -> NoReturn:
    for problem in problems[:_LISTED]:
        _note(str(problem))
    more = f" ({len(problems) - _LISTED} more not listed)" if len(problems) > _LISTED else ""
    _note(
        f"{len(problems)} broken rows{more}; nothing was labelled. Mend them, or label the others "
        "with --on-error skip."
    )
    raise typer.Exit(1)


def _note(line: str) -> None:
    print(line, file=sys.stderr)
