"""Pictures of an analysis: PNG files for papers and slides, inline SVG for the report.

Both come from the same drawing.
"""

from __future__ import annotations

import warnings
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from predictor.analysis import Analysis, Oracle, Part
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
    set_margins,
    style,
)

ACCURACY_PNG, GROUPS_PNG, SMALLEST_PNG = "accuracy.png", "groups.png", "smallest-scale.png"
MOST_GROUPS = 24  # the largest ones; more pictures than this help nobody

_TOKENS = "mean image tokens per question (log scale)"


def write_plots(analysis: Analysis, folder: Path) -> None:
    """Write the three pictures as PNG."""
    with style(), warnings.catch_warnings():
        # The type that comes with matplotlib lacks some scripts; the report shows those names.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figures = {
            ACCURACY_PNG: accuracy_figure(analysis),
            GROUPS_PNG: _groups_figure(analysis),
            SMALLEST_PNG: _smallest_figure(analysis),
        }
        for name, figure in figures.items():
            FigureCanvasAgg(figure)
            figure.savefig(folder / name, dpi=160, facecolor=PAPER)


def accuracy_svg(analysis: Analysis, *, narrow: bool) -> str:
    """Accuracy against tokens, for a wide page or a telephone."""
    with style():
        figure = accuracy_figure(analysis, (3.7, 3.7) if narrow else (9.2, 4.5))
        layout = "for a narrow page" if narrow else "for a wide page"
        return inline_svg(figure, f"Accuracy against mean image tokens, {layout}")


def group_svg(name: str, part: Part) -> str:
    """One small multiple, without a title."""
    with style():
        figure, axes = one_plot((2.3, 1.4), left=0.3, right=0.02, bottom=0.24, top=0.04)
        _draw_group(axes, part)
        return inline_svg(figure, f"Accuracy against mean image tokens: {name}")


def largest_groups(analysis: Analysis) -> dict[str, Part]:
    """The groups worth a picture, in the order of what the finest scale adds to the coarsest."""
    largest = sorted(analysis.groups.items(), key=lambda item: -item[1].samples)[:MOST_GROUPS]
    return dict(sorted(largest, key=lambda item: -gain(item[1])))


def gain(part: Part) -> float:
    """Accuracy that the finest scale adds to the coarsest."""
    return part.scales[-1].accuracy.value - part.scales[0].accuracy.value


def accuracy_figure(analysis: Analysis, size: tuple[float, float] = (7.4, 4.4)) -> Figure:
    """Fixed scales with their intervals, what mixing them reaches, and both oracles."""
    figure, axes = one_plot(size, left=0.55, right=1.0, bottom=0.5)
    part = analysis.overall
    tokens = [each.tokens for each in part.scales]
    last = tokens[-1]
    _draw_curves(axes, part)
    _draw_fixed(axes, part, size=4.5)
    for at, each in enumerate(part.scales):
        low = each.accuracy.value if each.accuracy.low is None else each.accuracy.low
        # Below the interval, but for the first scale, where the stable oracle comes from below.
        place, across, up = ((-6, 0), "right", "center") if at == 0 else ((0, -4), "center", "top")
        axes.annotate(
            f"{100 * each.accuracy.value:.1f}",
            (each.tokens, 100 * (each.accuracy.value if at == 0 else low)),
            xytext=place,
            textcoords="offset points",
            ha=across,
            va=up,
        )
    for oracle in (part.oracle, part.stable_oracle):
        _draw_accountings(axes, oracle)
    labels = [
        (100 * part.oracle.accuracy.value, f"oracle {part.oracle.accuracy.value:.1%}", ACCENT),
        (100 * part.stable_oracle.accuracy.value, "stable oracle", ACCENT),
        (100 * part.hull.accuracy[-1], "fixed scales", MUTED),
    ]
    if analysis.null is not None:
        luck = 100 * analysis.null.overall.any_run.value
        start = next(e.tokens for e in part.scales if e.scale == analysis.null.scale)
        axes.plot([start, last], [luck, luck], color=MUTED, lw=0.9, ls=(0, (1, 2)))
        axes.plot([start], [luck], "D", color=PAPER, mec=MUTED, ms=4.5, mew=1)
        labels.append((luck, f"any of {analysis.null.compared} runs", MUTED))
    logarithmic(axes, tokens)
    if last > tokens[0]:  # room for the first number, none before the names at the right
        axes.set_xlim(tokens[0] * (tokens[0] / last) ** (0.8 / size[0]), last)
    _pad(axes)
    label_right(axes, labels, last, points=72 * (size[1] - 0.6))
    axes.set_xlabel(_TOKENS)
    axes.set_ylabel(f"right, % ({analysis.target})")
    return figure


def _draw_curves(axes: Axes, part: Part) -> None:
    """Mixtures are straight lines over tokens, so they are bent over their logarithm."""
    last = part.scales[-1].tokens
    for points, colour, width, dashes in (
        (part.hull, MUTED, 0.9, "-"),
        (part.oracle_curve, ACCENT, 1.4, "-"),
        (part.stable_curve, ACCENT, 1.4, (0, (4, 2))),
    ):
        tokens = np.geomspace(points.tokens[0], max(last, points.tokens[-1]), 120)
        accuracy = 100 * np.interp(tokens, points.tokens, points.accuracy)
        axes.plot(tokens, accuracy, color=colour, lw=width, ls=dashes, clip_on=False)


def _draw_fixed(axes: Axes, part: Part, size: float) -> None:
    for each in part.scales:
        low, high = each.accuracy.low, each.accuracy.high
        if low is not None and high is not None:
            axes.vlines(each.tokens, 100 * low, 100 * high, color=INK, lw=1, clip_on=False)
    axes.plot(
        [each.tokens for each in part.scales],
        [100 * each.accuracy.value for each in part.scales],
        "o",
        color=INK,
        ms=size,
        clip_on=False,
    )


def _draw_accountings(axes: Axes, oracle: Oracle) -> None:
    """Hollow: unsolved samples left out. Full: charged the finest scale."""
    height = 100 * oracle.accuracy.value
    marks = [(oracle.tokens_charged, ACCENT)]
    if oracle.tokens is not None:
        marks.append((oracle.tokens, PAPER))
    for tokens, fill in marks:
        axes.plot([tokens], [height], "o", color=fill, mec=ACCENT, ms=5, mew=1.3)
        axes.annotate(
            f"{tokens:.0f}",
            (tokens, height),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            color=ACCENT,
        )


def _pad(axes: Axes) -> None:
    """Room for labels, and an axis of whole per cents that ends near 0 and 100."""
    low, high = axes.get_ylim()
    room = 0.05 * (high - low)
    axes.set_ylim(max(low - room, -2), min(high + room, 104))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    draw_grid(axes)


def _draw_group(axes: Axes, part: Part) -> None:
    _draw_curves(axes, part)
    _draw_fixed(axes, part, size=3)
    logarithmic(axes, [each.tokens for each in part.scales])
    axes.set_ylim(-3, 103)
    axes.yaxis.set_major_locator(FixedLocator([0, 50, 100]))
    draw_grid(axes)


def _groups_figure(analysis: Analysis) -> Figure:
    groups = largest_groups(analysis)
    columns = min(4, len(groups))
    rows = ceil(len(groups) / columns)
    width, height = 2.3, 1.8
    figure = Figure(figsize=(max(width * columns, 5), height * rows + 0.35))
    across, down = figure.get_size_inches()
    for at, (name, part) in enumerate(groups.items()):
        left, top = width * (at % columns), down - height * (at // columns)
        axes = figure.add_axes(
            ((left + 0.35) / across, (top - 1.45) / down, 1.85 / across, 1.15 / down)
        )
        _draw_group(axes, part)
        axes.set_title(f"{_short(name)}  ({part.samples})", fontsize=8.5, loc="left", color=INK)
    key = "points: fixed scales with 95% intervals, blue: oracle, dashed: stable oracle"
    figure.text(0.35 / across, 0.25 / down, f"right, %, against {_TOKENS}", color=MUTED)
    figure.text(0.35 / across, 0.08 / down, key, color=MUTED)
    return figure


def _smallest_figure(analysis: Analysis) -> Figure:
    """Stacked shares of the smallest sufficient scale, for both oracles side by side."""
    names = ["all", *largest_groups(analysis)]
    parts = [analysis.overall, *largest_groups(analysis).values()]
    scales = analysis.source.ladder.scales
    room = 0.3 + 0.07 * max(len(_short(name)) for name in names)
    size = (7 + room, 0.27 * len(parts) + 1.4)
    figure = Figure(figsize=size)
    panels = figure.subplots(1, 2, sharey=True)
    set_margins(figure, left=room, right=0.15, bottom=0.5, top=0.85)
    figure.subplots_adjust(wspace=0.09)
    sides = (
        (panels[0], "right there", [part.oracle for part in parts]),
        (
            panels[1],
            "right there and at every finer scale",
            [part.stable_oracle for part in parts],
        ),
    )
    for axes, title, oracles in sides:
        shares = 100 * np.array([each.smallest or (0.0,) * len(scales) for each in oracles])
        left = shares.cumsum(axis=1) - shares
        for at, scale in enumerate(scales):
            axes.barh(
                range(len(parts)),
                shares[:, at],
                left=left[:, at],
                height=0.75,
                color=tint(at, len(scales)),
                edgecolor=PAPER,
                linewidth=0.5,
                label=str(scale),
            )
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of the solvable questions")
    panels[0].set_yticks(range(len(parts)), [_short(name) for name in names])
    panels[0].set_ylim(len(parts) - 0.5, -0.5)
    handles, scale_names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        scale_names,
        loc="upper center",
        ncols=len(scales),
        frameon=False,
        title="smallest sufficient scale",
    )
    return figure


def strength(at: int, count: int) -> float:
    """How much accent the scale number `at` of `count` has in stacked bars; coarse is pale."""
    return 0.15 + 0.85 * at / max(count - 1, 1)


def tint(at: int, count: int) -> tuple[float, ...]:
    mixed = strength(at, count)
    ends = zip(to_rgb(PAPER), to_rgb(ACCENT), strict=True)
    return tuple(paper + mixed * (accent - paper) for paper, accent in ends)


def _short(name: str, most: int = 28) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
