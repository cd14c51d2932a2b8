"""`m3-router feedback`: how often answers were right, by those who judged them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.config import state_folder
from deploy.retrain import since_of

if TYPE_CHECKING:
    from predictor.feedback_summary import Accuracy


def feedback(
    records: Annotated[
        str | None,
        typer.Argument(help="Folder or URL of records [default: this user's own service's]."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only answers of the last so many hours or days: 12h, 7d.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """How often answers were right, by feedback: by the scale that gave them and by topic.

    Of the answers that somebody has judged, which need not be like the others.
    """
    from predictor.feedback_summary import summarised  # noqa: PLC0415 - loads scipy
    from predictor.record_store import RecordStore  # noqa: PLC0415

    store = RecordStore(records or str(state_folder() / "records"))
    summary = summarised(store, since_of(since))
    if as_json:
        print(json.dumps(asdict(summary)))
        return
    console = Console()
    if summary.overall is None:
        console.print("No feedback there.")
        return
    console.print(f"{_shown(summary.overall)} of {summary.overall.answers:,} judged answers right")
    groups = list(summary.by_group)
    table = Table("scale", "answers", "right", *groups, box=None)
    for scale, accuracy in summary.by_scale.items():
        cells = summary.by_both[scale]
        table.add_row(
            scale,
            f"{accuracy.answers:,}",
            _shown(accuracy),
            *(_shown(cells[group]) if group in cells else "" for group in groups),
        )
    table.add_row(
        "all",
        f"{summary.overall.answers:,}",
        _shown(summary.overall),
        *(_shown(summary.by_group[group]) for group in groups),
    )
    console.print(table)


def _shown(accuracy: Accuracy) -> str:
    right = accuracy.right
    if right.low is None or right.high is None:
        return f"{right.value:.0%}"
    return f"{right.value:.0%} ({right.low:.0%}–{right.high:.0%})"
