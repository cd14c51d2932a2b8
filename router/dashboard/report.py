"""The page's views for a period as one HTML file that needs nothing else, to send to somebody."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

from predictor.drawing import (
    ACCENT,
    INK,
    MUTED,
    draw_grid,
    inline_svg,
    one_plot,
    reliability_svg,
    style,
)
from predictor.pages import number, or_dash, per_cent, render_page
from router.dashboard.looks import Looked, ViewName
from router.dashboard.rollups import CACHES
from router.dashboard.views import Views

VIEWS: tuple[ViewName, ...] = ("cost", "quality", "frontier")
_WIDE = (9.2, 2.7)
_CACHED = {
    "prefix": "needed no features",
    "memory": "had them in memory",
    "redis": "in Redis",
    "miss": "went through the vision tower",
}


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a report comes from.

    Args:
        store: of the records.
        made: when, Unix time.
        version: of this package.
    """

    store: str
    made: float
    version: str


def figures(views: Views, looked: Looked) -> dict[str, Any]:
    """What every view but the single decisions shows, by its name; ready for JSON."""
    return {name: views.show(replace(looked, view=name)) for name in VIEWS}


def render(shown: Mapping[str, Any], looked: Looked, provenance: Provenance) -> str:
    """The report of `figures` as an HTML document; whatever comes from records is escaped."""
    cost, quality = shown["cost"], shown["quality"]
    totals, policies = cost["totals"], _named(cost)
    scales = list(cost["over_time"]["scales"])
    return render_page(
        "report.html",
        _FILTERS,
        package="router.dashboard",
        title=f"What {totals['answered']:,} answers took",
        lead=_lead(cost, policies),
        period=f"{_moment(cost['since'])} to {_moment(cost['until'])}",
        model=looked.served,
        key=looked.key,
        store=provenance.store,
        made=_moment(provenance.made),
        version=provenance.version,
        totals=totals,
        tiles=_tiles(cost, quality),
        policies=policies,
        has_money=cost["price_per_replica_hour"] is not None,
        price=cost["price_per_replica_hour"],
        currency=cost["currency"],
        token_ms=looked.known.prefill_token_ms,
        latency=cost["latency"],
        stages=cost["stages"],
        codes=cost["codes"],
        cached=_cached(totals),
        scales=" to ".join(dict.fromkeys((scales[0], scales[-1]))) if scales else "",
        changes=", ".join(f"{c['predictor']} on {_moment(c['at'])}" for c in cost["changes"]),
        quality=quality,
        frontier=shown["frontier"],
        figures={
            "scales": Markup(_scales_svg(cost)),
            "ttft": Markup(_ttft_svg(cost)),
            "reliability": Markup(_reliability(quality["calibration"])),
        },
    )


def _named(cost: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Policies with names as people say them."""
    rows = []
    for row in cost["policies"]:
        name = "router" if row["place"] is None else f"always {row['tokens_per_picture']:g}"
        name += ", as good" if row.get("as_good") else ", finest" if row.get("finest") else ""
        rows.append(row | {"name": name})
    return rows


def _lead(cost: Mapping[str, Any], policies: Sequence[Mapping[str, Any]]) -> str:
    totals = cost["totals"]
    if not policies or not totals["finest_tokens"]:
        return "Nothing was answered in this time."
    share = totals["image_tokens"] / totals["finest_tokens"]
    said = f"The answers took {share:.1%} of the visual tokens of always the finest scale"
    router, finest = policies[0], policies[-1]
    if finest["replica_ms"]:
        said += f", and {router['replica_ms'] / finest['replica_ms']:.1%} of its replica time"
    return f"{said}."


def _tiles(cost: Mapping[str, Any], quality: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    totals, router = cost["totals"], next(iter(cost["policies"]), None)
    lost = totals["requests"] - totals["answered"]
    known = next((row["regret"] for row in quality["predictors"] if row["regret"]), None)
    tiles = [
        ("requests", _count(totals["requests"]), f"{_count(totals['answered'])} answered"),
        (
            "visual tokens an answer",
            number(router and router["tokens_per_request"]),
            f"{number(_each(totals, 'finest_tokens'))} at the finest scale",
        ),
        ("replica time an answer", f"{number(router and router['replica_ms'])} ms", "measured"),
        ("first token, p95", f"{number(cost['ttft']['p95'])} ms", "from arrival"),
        (
            "not answered",
            f"{per_cent(lost / totals['requests'] if totals['requests'] else None)}%",
            f"{_count(totals['refused'])} refused because of load",
        ),
    ]
    if cost["price_per_replica_hour"] is not None and router is not None:
        money = f"{_money(router['money'])} {cost['currency']}"
        tiles.insert(3, ("cost of 1,000 answers", money, "replica time"))
    if known is not None:
        between = f"95%: {per_cent(known['low'])} to {per_cent(known['high'])}%"
        tiles.append(("regret", f"{per_cent(known['regret'])}%", between))
    return tiles


def _each(totals: Mapping[str, Any], name: str) -> float | None:
    return totals[name] / totals["answered"] if totals["answered"] else None


def _cached(totals: Mapping[str, Any]) -> str:
    images = sum(totals[level] for level in CACHES)
    if not images:
        return ""
    return ", ".join(f"{totals[level] / images:.1%} {_CACHED[level]}" for level in CACHES)


def _scales_svg(cost: Mapping[str, Any]) -> str:
    with style():
        figure, axes = one_plot(_WIDE, left=0.6, right=0.1, bottom=0.35)
        time = cost["over_time"]
        at = _times(axes, time["at"])
        below = np.zeros(len(at))
        width = cost["step_s"] / 86_400 * 0.85
        lines = sorted(time["scales"].items(), key=lambda pair: int(pair[0]))
        for place, (_, answers) in enumerate(lines):
            faint = 0.2 + 0.8 * place / max(len(lines) - 1, 1)
            axes.bar(
                at, answers, width, below, color=ACCENT, alpha=faint, lw=0, align="edge"
            )  # fmt: skip
            below += np.array(answers)
        for change in cost["changes"]:
            axes.axvline(_days([change["at"]])[0], color=INK, lw=0.8, ls=(0, (1, 2)))
        draw_grid(axes)
        return inline_svg(figure, "Answers by chosen scale over time")


def _ttft_svg(cost: Mapping[str, Any]) -> str:
    with style():
        figure, axes = one_plot(_WIDE, left=0.6, right=0.5, bottom=0.35)
        time = cost["over_time"]
        at = _times(axes, time["at"])
        for name, colour in (("p50", INK), ("p95", ACCENT), ("p99", MUTED)):
            values = np.array(time["ttft"][name], dtype=float)
            axes.plot(at, values, color=colour, lw=1.2, marker="o", ms=1.6)
            known = np.flatnonzero(~np.isnan(values))
            if len(known):
                end = (at[-1], float(values[known[-1]]))
                axes.annotate(
                    name, end, (6, 0), textcoords="offset points", color=colour, va="center"
                )  # fmt: skip
        axes.set_ylim(bottom=0)
        axes.set_ylabel("ms")
        draw_grid(axes)
        return inline_svg(figure, "Time to the first token over time")


def _reliability(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return ""
    label = "Predicted success against agreement with the finest scale"
    return reliability_svg(calibration["bins"], label, "agreed, %")


def _days(seconds: Sequence[float]) -> Any:
    """Unix times as matplotlib counts dates, in days."""
    return np.asarray(seconds, dtype=float) / 86_400


def _times(axes: Axes, seconds: Sequence[float]) -> Any:
    locator = AutoDateLocator(tz=UTC)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    formatter = ConciseDateFormatter(locator, tz=UTC)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_formatter(formatter)
    at = _days(seconds)
    axes.set_xlim(at[0], at[-1] + (at[1] - at[0] if len(at) > 1 else 1 / 24))
    return at


def _moment(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M")


def _count(value: float) -> str:
    return f"{value:,.0f}"


_small = or_dash(lambda value: f"{value:.3g}")
_money = or_dash(lambda value: f"{value:,.4g}")
_FILTERS: dict[str, Callable[..., str]] = {
    "count": _count,
    "pct": per_cent,
    "number": number,
    "small": _small,
    "money": _money,
    "bound": lambda share: f"{100 * share:g}",
}
