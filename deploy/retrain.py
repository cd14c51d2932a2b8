"""`m3-router retrain`: a new predictor of the traffic, if it is better than the one that serves."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.config import state_folder
from deploy.offline import progress_bars

if TYPE_CHECKING:
    from predictor.records import Target
    from predictor.retrain import Result
    from predictor.samples import Samples

_WINDOW = re.compile(r"(\d+)([hd])")


def retrain(
    records: Annotated[
        str | None,
        typer.Option(help="Folder or URL of records [default: this user's own service's]."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only the labels of the last so many hours or days: 12h, 7d.")
    ] = None,
    outcomes: Annotated[
        list[Path] | None,
        typer.Option(help="Also learn from this table of `label`; may be given several times."),
    ] = None,
    outcomes_weight: Annotated[
        float, typer.Option(min=0, help="How heavy each of those counts beside a label.")
    ] = 1.0,
    target: Annotated[
        str,
        typer.Option(
            help="What counts as success: `agreement` with the finest scale, or `correctness`, by "
            "labels of which feedback said the right answer, and by outcomes with ground truth."
        ),
    ] = "agreement",
    no_records: Annotated[bool, typer.Option(help="Learn from outcomes only.")] = False,
    regression: Annotated[
        Path | None,
        typer.Option(help="A table of `label` that it must not be worse on.", dir_okay=False),
    ] = None,
    registry: Annotated[
        Path | None, typer.Option(help="Where predictors are [default: this user's own].")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Identity of the model [default: the latest label's].")
    ] = None,
    max_regret: Annotated[
        float, typer.Option(min=0, max=1, help="The service's own bound.")
    ] = 0.05,
    most: Annotated[int, typer.Option(min=1, help="Most labels in memory.")] = 200_000,
    seed: Annotated[int, typer.Option(help="The same data and seed give the same version.")] = 0,
    dry_run: Annotated[bool, typer.Option(help="Judge it, but do not let it serve.")] = False,
    refusal_ok: Annotated[
        bool,
        typer.Option(
            "--refusal-ok", help="Exit status 0 also where it was refused, for schedules."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Learn from the labels of the traffic; serve the result only if it is better.

    Exit status 0 if it serves now (or would, with --dry-run), 1 if it was refused.
    """
    from predictor.registry import Registry  # noqa: PLC0415 - loads LightGBM
    from predictor.retrain import retrain as run  # noqa: PLC0415

    samples = _samples(
        None if no_records else records or str(state_folder() / "records"),
        since_of(since),
        outcomes or [],
        outcomes_weight,
        target_of(target),
        model,
        most,
        seed,
    )
    with progress_bars() as progress:
        result = run(
            samples,
            Registry(registry or state_folder() / "predictors"),
            shipped=_shipped(samples),
            regression=None if regression is None else _of_table(regression, samples.target),
            bound=max_regret,
            seed=seed,
            promote=not dry_run,
            progress=progress,
        )
    _tell(result, as_json=as_json)
    raise typer.Exit(1 if result.reasons and not refusal_ok else 0)


def since_of(window: str | None) -> datetime | None:
    """When a window such as 12h or 7d begins. Raises typer.BadParameter."""
    if window is None:
        return None
    found = _WINDOW.fullmatch(window)
    if found is None:
        raise typer.BadParameter(f"--since {window}: write 12h or 7d")
    hours = int(found[1]) * (24 if found[2] == "d" else 1)
    return datetime.now(UTC) - timedelta(hours=hours)


def target_of(name: str) -> Target:
    """What counts as success. Raises typer.BadParameter."""
    if name == "agreement":
        return "agreement"
    if name == "correctness":
        return "correctness"
    raise typer.BadParameter(f"--target {name}: agreement or correctness")


def _samples(
    records: str | None,
    since: datetime | None,
    outcomes: list[Path],
    weight: float,
    target: Target,
    model: str | None,
    most: int,
    seed: int,
) -> Samples:
    from predictor.errors import OutcomesError  # noqa: PLC0415
    from predictor.record_store import RecordStore  # noqa: PLC0415
    from predictor.samples import mixed, of_labels  # noqa: PLC0415

    parts = []
    if records is not None:
        store = RecordStore(records)
        labels = of_labels(
            store, target=target, model_identity=model, since=since, most=most, seed=seed
        )
        parts.append((labels, 1.0))
    parts += [(_of_table(path, target), weight) for path in outcomes]
    if not parts:
        raise OutcomesError("Nothing to learn from: name --outcomes with --no-records.")
    return mixed(parts)


def _of_table(path: Path, target: Target) -> Samples:
    from predictor.image_table import read_image_table, table_beside  # noqa: PLC0415
    from predictor.records import read_outcomes  # noqa: PLC0415
    from predictor.samples import of_outcomes  # noqa: PLC0415

    return of_outcomes(read_outcomes(path), read_image_table(table_beside(path)), target)


def _shipped(samples: Samples) -> Path | None:
    from deploy.predictors import PACKAGED  # noqa: PLC0415

    folder = PACKAGED / samples.source.model
    return folder if Path(samples.source.model).name == samples.source.model else None


def _told_gap(closed: float | None) -> str:
    return "none there" if closed is None else f"{closed:.3f}"


def _tell(result: Result, *, as_json: bool) -> None:
    recent = result.judged["recent"]
    if as_json:
        told = {on: asdict(verdict) for on, verdict in result.judged.items()}
        print(
            json.dumps(
                {
                    "version": result.version,
                    "folder": str(result.folder),
                    "promoted": result.promoted,
                    "target": result.target,
                    "instead_of": result.instead_of,
                    "reasons": result.reasons,
                    "judged": told,
                }
            )
        )
        return
    print(f"predictor {result.version} in {result.folder}")
    for name, standing in (("candidate", recent.candidate), ("serving", recent.serving)):
        if standing is not None:
            print(
                f"{name:>9}: {standing.tokens_at_regret:.1f} tokens at equal regret; at its own "
                f"price {standing.tokens:.1f} tokens, regret {standing.regret:.4f}; oracle gap "
                f"closed {_told_gap(standing.gap_closed)}; "
                f"calibration error {standing.calibration_error:.4f}"
            )
    if result.instead_of is not None:
        print(
            f"The one that serves promises {result.instead_of}, this one {result.target}; both are "
            f"judged by {result.target}."
        )
    for reason in result.reasons:
        print(f"refused, {reason}")
    if result.promoted:
        print("It serves now; `m3-router predictors rollback` takes that back.")
    elif not result.reasons:
        print("It is better. It does not serve yet: `m3-router predictors promote`.")
