"""`m3-router predictors`: the versions of a registry, and which of them serves."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deploy.config import state_folder

if TYPE_CHECKING:
    from predictor.registry import Registry, Version

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="See which predictors there are and choose the one that serves. A running service takes "
    "a change over within a few seconds and drops no request.",
)

Name = Annotated[str, typer.Argument(help="A version, or its beginning.")]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--registry", help="The registry's folder [default: this user's own].", file_okay=False
    ),
]
Reason = Annotated[str, typer.Option(help="Why; kept in the history.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(registry: Folder = None, as_json: AsJson = False) -> None:
    """All versions, oldest first, by the model that they are for."""
    versions = _open(registry).versions()
    if as_json:
        print(json.dumps([_row(version) for version in versions]))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("version", "", "model", "trained", "samples", "log loss"):
        table.add_column(name, no_wrap=name == "version")
    for version in versions:
        metrics = version.manifest["metrics"]
        table.add_row(
            version.version,
            "serves" if version.serves else "watches" if version.watches else "",
            version.manifest["model"],
            version.created[:16],
            f"{metrics.get('train_samples', float('nan')):,.0f}",
            f"{metrics.get('log_loss', float('nan')):.4f}",
        )
    Console().print(table if versions else "No predictors there.")


@app.command()
def show(name: Name, registry: Folder = None, as_json: AsJson = False) -> None:
    """What one version says of itself, its report, and when it served."""
    opened = _open(registry)
    version = opened.find(name)
    history = [
        event
        for event in opened.history(version.model_identity)
        if version.version in (event.version, event.before)
    ]
    report = _report(version)
    if as_json:
        told = {"report": report, "history": [asdict(event) for event in history]}
        print(json.dumps(_row(version) | told))
        return
    console = Console()
    console.print(f"{version.version} {'serves' if version.serves else 'does not serve'}")
    console.print(f"folder: {version.folder}", soft_wrap=True)
    for key, value in _row(version).items():
        console.print(f"{key}: {value}", markup=False)
    for line in (report or {}).get("reasons", ()):
        console.print(f"- {line}", markup=False)
    for event in history:
        console.print(f"{event.at} {event.action}: {event.version} ({event.reason})", markup=False)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", file_okay=False)],
) -> None:
    """Make a registry without any predictor yet, for `predictor: FOLDER` in a configuration."""
    _open(folder).make()
    print(f"{folder} is a registry; `retrain` publishes there.")


@app.command()
def promote(name: Name, registry: Folder = None, reason: Reason = "by hand") -> None:
    """Let a version serve."""
    event = _open(registry).promote(name, reason)
    print(f"{event.version} serves, in place of {event.before or 'none'}.")


@app.command()
def observe(
    name: Annotated[str, typer.Argument(help="A version, or its beginning; `none` ends it.")],
    registry: Folder = None,
) -> None:
    """Let a version watch beside the one that serves: what it would have decided is recorded.

    `m3-router replay --observed VERSION` sums it up.
    """
    opened = _open(registry)
    if name == "none":
        for model in opened.models():
            opened.observe_none(model)
        print("None watches.")
        return
    print(f"{opened.observe(name).version} watches.")


@app.command()
def rollback(
    model: Annotated[
        str | None,
        typer.Option(help="Identity of the model, or its beginning, where there are several."),
    ] = None,
    registry: Folder = None,
    reason: Reason = "by hand",
) -> None:
    """Let the version serve that was promoted before; the first one leaves none."""
    from predictor.errors import RegistryError  # noqa: PLC0415 - loads what it is about

    opened = _open(registry)
    models = [each for each in opened.models() if each.startswith(model or "")]
    if len(models) != 1:
        known = ", ".join(each[:12] for each in opened.models()) or "none"
        raise RegistryError(f"Name one model with --model; there are predictors for {known}.")
    event = opened.rollback(models[0], reason)
    print(f"{event.version or 'none'} serves, in place of {event.before}.")


@app.command()
def diff(
    one: Name,
    other: Annotated[str, typer.Argument(help="Another version.")],
    registry: Folder = None,
    as_json: AsJson = False,
) -> None:
    """What two versions say differently of themselves."""
    from predictor.registry import difference  # noqa: PLC0415

    opened = _open(registry)
    left, right = opened.find(one), opened.find(other)
    pairs = difference(left, right)
    if as_json:
        print(json.dumps(pairs))
        return
    table = Table("", left.version, right.version)
    for name, values in pairs.items():
        table.add_row(name, *(_shown(value) for value in values))
    Console().print(table if pairs else "They say the same.")


def own_registry() -> Path:
    """This user's, which `predictor: auto` looks into."""
    return state_folder() / "predictors"


def _open(folder: Path | None) -> Registry:
    from predictor.registry import Registry  # noqa: PLC0415 - loads LightGBM

    return Registry(folder or own_registry())


def _row(version: Version) -> dict[str, Any]:
    return {
        "version": version.version,
        "serves": version.serves,
        "watches": version.watches,
        "model": version.manifest["model"],
        "model_identity": version.model_identity,
        "created": version.created,
        "target": version.manifest["target"],
        "features": version.manifest["features"]["version"],
        "metrics": version.manifest["metrics"],
        "thresholds": version.manifest["thresholds"],
    }


def _report(version: Version) -> dict[str, Any] | None:
    file = version.folder / "retrain.json"
    return dict(json.loads(file.read_text())) if file.is_file() else None


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
