"""`m3-router report`: what the page shows, for a period, as one file to send to somebody."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.options import ConfigFile, Settings, configuration
from deploy.retrain import since_of

if TYPE_CHECKING:
    from deploy.config import Config
    from router.dashboard.looks import Known
    from router.dashboard.rollups import RollUps


def report(
    since: Annotated[
        str,
        typer.Option(help="The last so many hours or days (12h, 7d), or a date or time in UTC."),
    ] = "7d",
    until: Annotated[
        str | None, typer.Option(help="A date or time in UTC, as 2026-11-25T12:00 [default: now].")
    ] = None,
    out: Annotated[Path, typer.Option(help="The HTML file to write.", dir_okay=False)] = Path(
        "report.html"
    ),
    key: Annotated[str | None, typer.Option(help="Only requests of this API key.")] = None,
    model: Annotated[str | None, typer.Option(help="Only what this model answered.")] = None,
    records: Annotated[
        str | None, typer.Option(help="Folder or URL of records [default: the configuration's].")
    ] = None,
    config: ConfigFile = "local.yaml",
    set_: Settings = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; write no file.")
    ] = False,
) -> None:
    """Write what the page shows of a period into one HTML file that needs nothing else.

    Cost beside fixed scales, latency, regret, calibration, other bounds, from the records; the
    service need not run. Example: `m3-router report --since 2026-11-01 --until 2026-11-08`
    """
    from router.dashboard.looks import Looked, Period  # noqa: PLC0415
    from router.dashboard.report import Provenance, figures, render  # noqa: PLC0415
    from router.dashboard.rollups import RollUps  # noqa: PLC0415 - duckdb, pyarrow
    from router.dashboard.views import Price, Views  # noqa: PLC0415
    from router.version import installed_version  # noqa: PLC0415

    settings = configuration(config, set_)
    store = records or settings.records_root
    if store is None:
        raise typer.BadParameter(
            "the configuration keeps no records; name some", param_hint="--records"
        )
    begin, end = (
        _moment(since, "--since"),
        time.time() if until is None else _moment(until, "--until"),
    )
    if begin >= end:
        raise typer.BadParameter("it ends before it begins", param_hint="--until")
    period = Period.of_hours(begin, end)
    days = [datetime.fromtimestamp(at, UTC).date() for at in (period.since, period.until)]
    rollups = RollUps(store, days=lambda day: days[0] <= day <= days[1])
    rollups.refresh()
    looked = Looked("cost", key=key, served=model, known=_known(settings, rollups), period=period)
    price = Price(settings.dashboard.price_per_replica_hour, settings.dashboard.currency)
    shown = figures(Views(rollups, price, time.time), looked)
    if as_json:
        print(json.dumps(shown, ensure_ascii=False))
        return
    html = render(shown, looked, Provenance(store, time.time(), installed_version()))
    out.write_text(html, encoding="utf-8")
    print(f"{shown['cost']['totals']['requests']:,} requests: {out}")


def _moment(given: str, option: str) -> float:
    """Unix time of a window's beginning or of a date or time, UTC where it does not say."""
    try:
        if given[-1:] in ("h", "d") and (began := since_of(given)) is not None:
            return began.timestamp()
        found = datetime.fromisoformat(given)
    except ValueError:
        raise typer.BadParameter(
            f"{given}: write 12h, 7d, 2026-11-25 or 2026-11-25T12:00", param_hint=option
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _known(settings: Config, rollups: RollUps) -> Known:
    """What a running service would know, from the configuration and the records."""
    from router.dashboard.looks import Known  # noqa: PLC0415

    [told] = rollups.query(
        "SELECT arg_max(predictor, t) AS predictor, regr_slope(cost_ms, prompt_tokens)"
        " FILTER (code = 'ok' AND len(images) = 1) AS token_ms FROM recent"
    )
    known = Known(
        told["token_ms"],
        settings.router.max_regret,
        uniform_share=settings.router.shadow.uniform_share,
    )
    for content in _manifests(settings, told["predictor"]):
        thresholds = content["thresholds"]
        pairs = zip(thresholds["bounds"], thresholds["prices"], strict=True)
        prices = tuple((bound, price) for bound, price in pairs if price is not None)
        return replace(known, prices=prices, predictor=told["predictor"], target=content["target"])
    return known


def _manifests(settings: Config, version: str | None) -> Iterator[dict[str, Any]]:
    """What the predictor of this version says of itself, wherever it is."""
    from deploy.predictors import find_artifact, registry_of  # noqa: PLC0415 - loads LightGBM
    from predictor.artifact import VERSION_DIGITS, read_manifest  # noqa: PLC0415

    registry, shipped = registry_of(settings), find_artifact(settings)
    for each in () if registry is None else registry.versions():
        if each.version == version:
            yield each.manifest
    if shipped is not None:
        manifest = read_manifest(shipped)
        if manifest["sha256"][:VERSION_DIGITS] == version:
            yield manifest["content"]
