"""The command that analyses a table of outcomes. No model runs here."""

from __future__ import annotations

import json
import platform
import shlex
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deploy.analysis_tables import print_analysis
from deploy.offline import Outcomes, TargetName

if TYPE_CHECKING:
    from m3_backend.costs import ModelShape

_VERSIONS = ("m3-router", "numpy", "scipy", "pyarrow", "matplotlib")


class SplitName(StrEnum):
    """Parts of a table, see docs/analysis.md."""

    TRAIN = "train"
    CALIBRATE = "calibrate"
    THRESHOLD = "threshold"
    TEST = "test"
    SHIFTED = "shifted"


def analyze(
    outcomes: Outcomes,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the report [default: OUTCOMES with the suffix .analysis]."),
    ] = None,
    target: Annotated[
        TargetName | None,
        typer.Option(help="What is right [default: correctness if anybody knows, else agreement]."),
    ] = None,
    split: Annotated[
        list[SplitName] | None,
        typer.Option(help="Only this split; may be repeated [default: all but `shifted`]."),
    ] = None,
    null: Annotated[
        Path | None,
        typer.Option(
            help="The noise null [default: OUTCOMES with the suffix .null.parquet, if there].",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Whose operations and KV bytes to tell: `m3-tiny`, a folder with a config.json, "
            "`llava-1.5-7b`, `llava-1.5-13b`, `llava-next-7b` [default: the outcomes' model].",
        ),
    ] = None,
    text_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens of text that these count beside the image.")
    ] = 30,
    json_: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE", help="Write the figures here too; `-` prints nothing else."
        ),
    ] = None,
) -> None:
    """The M3 paper's analysis of any outcomes: accuracy per scale, oracles, luck, costs.

    Prints tables and writes report.html, analysis.json and plots. How to read them:
    docs/analysis.md.
    """
    from predictor.analysis import Provenance, as_json  # noqa: PLC0415 - numpy, scipy, pyarrow
    from predictor.analysis_report import HTML_FILE, write_analysis  # noqa: PLC0415
    from predictor.analyze import analyze as analyse  # noqa: PLC0415
    from predictor.null_table import null_table_beside, read_null_table  # noqa: PLC0415
    from predictor.records import read_outcomes  # noqa: PLC0415

    beside = null_table_beside(outcomes)
    null = null or (beside if beside.is_file() else None)
    table = read_outcomes(outcomes)
    found, shape_of = _shape(shape, table.source.model)
    analysis = analyse(
        table,
        target=target.value if target else None,
        splits=[each.value for each in split or ()],
        null=read_null_table(null) if null else None,
        shape=found,
        shape_of=shape_of,
        text_tokens=text_tokens,
    )
    given = {
        "--target": target,
        "--null": null if null != beside else None,
        "--shape": shape,
        "--text-tokens": text_tokens if text_tokens != 30 else None,
    }
    provenance = Provenance(
        outcomes=outcomes.name,
        content_hash=table.content_hash(),
        null=null.name if null else None,
        command=_command(outcomes, [*given.items(), *(("--split", each) for each in split or ())]),
        versions={"python": platform.python_version()}
        | {name: metadata.version(name) for name in _VERSIONS},
        at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    folder = out or outcomes.with_suffix(".analysis")
    write_analysis(analysis, provenance, folder)
    if json_ is not None:
        figures = json.dumps(as_json(analysis, provenance), ensure_ascii=False)
        if json_ == "-":
            print(figures)
            return
        Path(json_).write_text(figures + "\n", encoding="utf-8")
    print_analysis(Console(), analysis)
    print(f"\nThe report: {folder / HTML_FILE}")


def _shape(given: str | None, model: str) -> tuple[ModelShape | None, str | None]:
    """A shape that was asked for must be found; the outcomes' own model may be elsewhere."""
    from m3_backend.errors import CheckpointError  # noqa: PLC0415
    from m3_backend.shapes import find_shape  # noqa: PLC0415

    if given is not None:
        return find_shape(given), given
    try:
        return find_shape(model), model
    except CheckpointError:
        return None, None


def _command(outcomes: Path, options: list[tuple[str, object]]) -> str:
    words = [word for name, value in options if value is not None for word in (name, str(value))]
    return shlex.join(["m3-router", "analyze", str(outcomes), *words])
