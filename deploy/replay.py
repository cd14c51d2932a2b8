"""`m3-router replay`: what another predictor would have chosen of the recorded traffic."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.config import state_folder
from deploy.predictor_commands import own_registry
from deploy.retrain import since_of

if TYPE_CHECKING:
    from predictor.clustered import Estimate
    from router.replay import Replayed, Side


def replay(
    records: Annotated[
        str | None,
        typer.Argument(help="Folder or URL of records [default: this user's own service's]."),
    ] = None,
    predictor: Annotated[
        str | None,
        typer.Option(help="The folder of an artefact, or a version of the registry."),
    ] = None,
    observed: Annotated[
        str | None,
        typer.Option(
            help="Instead: what this version decided while it watched (`predictors observe`); "
            "`any` takes whichever did."
        ),
    ] = None,
    registry: Annotated[
        Path | None, typer.Option(help="Where predictors are [default: this user's own].")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only the last so many hours or days: 12h, 7d.")
    ] = None,
    most: Annotated[
        int,
        typer.Option(min=1, help="Requests to count; of more, a sample, and all with a label."),
    ] = 200_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a predictor would have chosen of the recorded traffic: scales, tokens, estimated cost
    and regret, against what was served.

    Every request is decided again by the rule that serves, with its caller's own limits. Regret is
    estimated from the shadow labels of those requests.
    """
    from deploy.predictors import find_named  # noqa: PLC0415 - loads LightGBM
    from predictor import artifact as artifacts  # noqa: PLC0415
    from predictor.record_store import RecordStore  # noqa: PLC0415
    from predictor.registry import Registry  # noqa: PLC0415
    from router.replay import (  # noqa: PLC0415
        by_artifact,
        by_observer,
        milliseconds_a_token,
    )
    from router.replay import replay as run  # noqa: PLC0415

    if (predictor is None) == (observed is None):
        raise typer.BadParameter("name either --predictor or --observed")
    store = RecordStore(records or str(state_folder() / "records"))
    begin = since_of(since)
    if predictor is not None:
        folder = find_named(predictor, Registry(registry or own_registry()))
        artifact, name = artifacts.load(folder.resolve())
        per_token_ms = milliseconds_a_token(store, artifact.source.model_identity, begin)
        decider = by_artifact(artifact, per_token_ms)
    else:
        assert observed is not None
        name = observed
        per_token_ms = milliseconds_a_token(store, None, begin)
        decider = by_observer(None if observed == "any" else observed, None)
    result = run(store, decider, since=begin, per_token_ms=per_token_ms, most=most, broken=_told)
    if as_json:
        print(json.dumps({"predictor": name, **asdict(result)}))
    else:
        _show(Console(), name, result)


def _told(name: str) -> None:
    typer.echo(f"m3-router: {name} cannot be read and is left out", err=True)


def _show(console: Console, name: str, result: Replayed) -> None:
    def line(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    others = ", ".join(f"{count:,} {why}" for why, count in result.left_out.items())
    line(f"{result.requests:,} requests" + (f"; left out: {others}" if others else ""))
    if not result.requests:
        return
    line(f"{result.changed:.1%} of them would have got other scales")
    table = Table("", "served", name, "difference", box=None)
    served, candidate = result.served, result.candidate
    for scale in sorted({*served.scales, *candidate.scales}):
        one, two = served.scales.get(scale, 0.0), candidate.scales.get(scale, 0.0)
        table.add_row(f"images at {scale}", f"{one:.1%}", f"{two:.1%}", f"{two - one:+.1%}")
    for row in _rows(served, candidate):
        table.add_row(*row)
    table.add_row(
        "regret",
        _share(served.regret),
        _share(candidate.regret),
        _share(result.regret_difference, sign="+"),
    )
    console.print(table)
    line(
        f"regret by agreement with the finest scale, of {result.labels:,} shadow labels "
        f"({result.uniform:,} of the uniform stratum), with 95% intervals by picture"
    )


def _rows(served: Side, candidate: Side) -> list[tuple[str, str, str, str]]:
    rows = [
        (
            "mean image tokens",
            f"{served.tokens:.1f}",
            f"{candidate.tokens:.1f}",
            f"{candidate.tokens - served.tokens:+.1f}",
        )
    ]
    if served.cost_ms is not None and candidate.cost_ms is not None:
        rows.append(
            (
                "estimated ms to the first token",
                f"{served.cost_ms:.1f}",
                f"{candidate.cost_ms:.1f}",
                f"{candidate.cost_ms - served.cost_ms:+.1f}",
            )
        )
    return rows


def _share(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return "no labels"
    shown = f"{estimate.value:{sign}.2%}"
    if estimate.low is None or estimate.high is None:
        return shown
    return f"{shown} ({estimate.low:{sign}.2%} to {estimate.high:{sign}.2%})"
