"""The evaluation as one HTML file that needs nothing else, and as one picture for a README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from predictor.drawing import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    draw_grid,
    inline_svg,
    label_right,
    logarithmic,
    one_plot,
    reliability_svg,
    style,
)
from predictor.pages import number, or_dash, per_cent, render_page

_UNITS = {
    "tokens": "mean image tokens",
    "flops": "mean prefill operations, GFLOPs",
    "ms": "mean measured milliseconds, vision encoding excluded",
}
_SIZE_OF = {"tokens": 1.0, "flops": 1e9, "ms": 1.0}
_PEER_STYLES = {
    "family_lookup": (0, (4, 2)),
    "query_only": (0, (1, 1.5)),
    "image_only": (0, (1, 3)),
}
_PARTS = {
    "test": "Pictures of the kind it was trained on",
    "shifted": "Unfamiliar phrasings, fonts, palettes and densities",
}


def render(report: Mapping[str, Any]) -> str:
    """The report as an HTML document; everything from the outcomes is escaped."""
    pictures = {
        name: {
            "frontier": Markup(_frontier_svg(name, part, narrow=False)),
            "narrow": Markup(_frontier_svg(name, part, narrow=True)),
            "costs": [
                (_UNITS[unit], Markup(_cost_svg(name, part, unit)))
                for unit in part["by_cost"]
                if unit != "tokens"
            ],
            "reliability": Markup(
                reliability_svg(part["reliability"], f"Predicted against observed success, {name}")
            ),
        }
        for name, part in report["parts"].items()
    }
    return render_page(
        "evaluation.html",
        {"pct": per_cent, "number": number, "gap": _gap},
        report=report,
        titles=_PARTS,
        pictures=pictures,
        lead=_lead(report["parts"]["test"]),
        fixed_of=lambda part: [row["scale"] for row in part["fixed"]],
    )


def write_plot(report: Mapping[str, Any], path: Path) -> None:
    """Accuracy against tokens, one panel per part, as PNG."""
    parts = report["parts"]
    with style():
        figure = Figure(figsize=(6.4 * len(parts), 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(parts), squeeze=False)[0]
        for axes, (name, part) in zip(panels, parts.items(), strict=True):
            _draw(axes, part)
            title = f"{name}: {part['samples']:,} questions, {part['images']:,} pictures"
            axes.set_title(title, fontsize=9, loc="left")
            axes.set_ylabel(f"right, % ({report['accuracy_is']})")
        handles, labels = panels[0].get_legend_handles_labels()
        panels[0].legend(handles, labels, frameon=False, fontsize=8, loc="lower right")
        figure.savefig(path, dpi=130, facecolor=PAPER)


def _frontier_svg(name: str, part: Mapping[str, Any], *, narrow: bool) -> str:
    with style():
        size = (3.7, 3.7) if narrow else (9.2, 4.5)
        figure, axes = one_plot(size, left=0.55, right=1.25, bottom=0.5)
        _draw(axes, part)
        last = part["fixed"][-1]["tokens"]
        ends = [
            (100 * part["oracle"]["accuracy"][-1], "oracle", MUTED),
            (100 * part["policies"]["router"]["accuracy"][-1], "router", ACCENT),
            (100 * part["hull"]["accuracy"][-1], "fixed scales", INK),
        ]
        label_right(axes, ends, last, points=72 * (size[1] - 0.6))
        axes.set_ylabel("right, %")
        layout = "narrow" if narrow else "wide"
        return inline_svg(figure, f"Accuracy against mean image tokens, {name}, {layout}")


def _draw(axes: Axes, part: Mapping[str, Any]) -> None:
    """Hull, oracle, router with its band, the stronger peers, fixed scales, certified bounds."""
    fixed = part["fixed"]
    tokens = np.geomspace(fixed[0]["tokens"], fixed[-1]["tokens"], 160)

    def line(points: Mapping[str, list[float]], colour: str, label: str, **style: Any) -> None:
        inside = tokens[tokens >= points["tokens"][0]]
        accuracy = 100 * np.interp(inside, points["tokens"], points["accuracy"])
        axes.plot(inside, accuracy, color=colour, label=label, **style)

    line(part["oracle"], MUTED, "oracle", lw=1.1, ls=(0, (4, 2)))
    line(part["hull"], INK, "random mixture of fixed scales", lw=0.9)
    for name, dashes in _PEER_STYLES.items():
        if name in part["policies"]:
            line(part["policies"][name], MUTED, part["policies"][name]["label"], lw=1, ls=dashes)
    band = part["gap_closed"]["router"]["accuracy_at_tokens"]
    known = [(float(at), *each) for at, each in band.items() if None not in each]
    if known:
        at, _, low, high = zip(*known, strict=True)
        axes.fill_between(
            at, 100 * np.array(low), 100 * np.array(high), color=ACCENT, alpha=0.15, lw=0
        )
    line(part["policies"]["router"], ACCENT, "router", lw=1.7)
    axes.plot(
        [row["tokens"] for row in fixed], [100 * row["accuracy"] for row in fixed], "o",
        color=INK, ms=4,
    )  # fmt: skip
    certified = [point for point in part["operating_points"] if point["price"] is not None]
    axes.plot(
        [point["tokens"] for point in certified],
        [100 * point["accuracy"] for point in certified],
        "o", color=PAPER, mec=ACCENT, ms=4.5, label="certified regret bounds",
    )  # fmt: skip
    logarithmic(axes, [row["tokens"] for row in fixed])
    draw_grid(axes)
    axes.set_xlabel(_UNITS["tokens"])


def _cost_svg(name: str, part: Mapping[str, Any], unit: str) -> str:
    with style():
        figure, axes = one_plot((4.4, 3.0), left=0.45, right=0.1, bottom=0.5)
        curves, size = part["by_cost"][unit], _SIZE_OF[unit]
        for policy, colour, dashes in (
            ("oracle", MUTED, (0, (4, 2))),
            ("hull", INK, "-"),
            ("family_lookup", MUTED, _PEER_STYLES["family_lookup"]),
            ("router", ACCENT, "-"),
        ):
            if policy in curves:
                cost = np.array(curves[policy]["tokens"]) / size
                axes.plot(cost, 100 * np.array(curves[policy]["accuracy"]), color=colour, ls=dashes)
        logarithmic(axes, [row[unit] / size for row in part["fixed"]], digits=".3g")
        axes.set_xlabel(_UNITS[unit])
        draw_grid(axes)
        return inline_svg(figure, f"Accuracy against {_UNITS[unit]}, {name}")


def _lead(part: Mapping[str, Any]) -> str:
    """What came out, in three sentences."""
    closed = part["gap_closed"]["router"]
    finest = part["fixed"][-1]
    saved = part["iso_accuracy"][-1]["tokens"]
    said = f"Over 5 to 300 mean tokens the router closes {_gap(closed['mean'])} of the gap between "
    said += "mixing fixed scales at random and the per-question oracle"
    if closed["low"] is not None:
        said += f" (95% band {_gap(closed['low'])} to {_gap(closed['high'])})"
    peers = {
        name: each["mean"]
        for name, each in part["gap_closed"].items()
        if name != "router" and each["mean"] is not None
    }
    if peers:
        best = max(peers, key=lambda name: peers[name])
        label = part["policies"][best]["label"]
        said += f"; the best of its peers ({label}) closes {_gap(peers[best])}"
    said += ". "
    if saved is not None:
        said += (
            f"At most one point below the {finest['accuracy']:.1%} of always "
            f"{finest['tokens']:.0f} tokens takes {saved:.0f} tokens on average."
        )
    else:
        said += "It does not come within one point of the finest scale."
    return said


_gap = or_dash(lambda share: f"{share:.2f}".replace("-", "−"))
