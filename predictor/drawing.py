"""How the plots of all reports look: one palette, one type, PNG and inline SVG.

In the SVG every colour is a custom property of the page, so that it follows the reader's light or
dark theme, and the type is the page's.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# Custom property of the page → what it is on paper.
INK, MUTED, RULE, ACCENT, PAPER = "#1b1b18", "#6b6b64", "#deded8", "#0b5fa5", "#fefefe"
_PROPERTIES = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", PAPER: "paper"}

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text
    "axes.linewidth": 0.6,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "text.color": INK,
    "text.parse_math": False,  # names of groups are anybody's
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "xtick.major.width": 0.6,
}


@contextmanager
def style() -> Iterator[None]:
    """Everything drawn and saved inside looks as the reports do."""
    with matplotlib.rc_context(_STYLE):
        yield


def one_plot(
    size: tuple[float, float], *, left: float, right: float, bottom: float, top: float = 0.1
) -> tuple[Figure, Axes]:
    """One plot with margins in inches; a layout engine would draw everything twice."""
    figure = Figure(figsize=size)
    axes = figure.subplots()
    set_margins(figure, left=left, right=right, bottom=bottom, top=top)
    return figure, axes


def set_margins(figure: Figure, *, left: float, right: float, bottom: float, top: float) -> None:
    """Margins in inches."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(
        left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height
    )


def logarithmic(axes: Axes, costs: Sequence[float], digits: str = ".0f") -> None:
    """A logarithmic axis whose ticks are what the scales cost.

    Args:
        digits: how they are written, as a format.
    """
    if len(costs) == 1:
        axes.set_xlim(costs[0] / 2, costs[0] * 2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(costs)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format(value, digits)))


def draw_grid(axes: Axes) -> None:
    """Faint horizontal lines behind everything."""
    axes.grid(axis="y", color=RULE, lw=0.6)
    axes.set_axisbelow(True)


def label_right(
    axes: Axes, labels: list[tuple[float, str, str]], last: float, points: float
) -> None:
    """Names at the right end of the curves, moved apart where they would overlap.

    Args:
        points: the height of the axis, about.
    """
    low, high = axes.get_ylim()
    room = 11 / points * (high - low)
    placed = -np.inf
    for value, text, colour in sorted(labels):
        placed = max(value, placed + room)
        axes.annotate(
            text,
            (last, placed),
            xytext=(10, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )


def reliability_svg(
    bins: Sequence[Mapping[str, Any]], label: str, upwards: str = "observed, %"
) -> str:
    """Predicted against observed success, as `predictor.calibration.Bin` has them, inline.

    Args:
        upwards: what was observed.
    """
    with style():
        figure, axes = one_plot((3.4, 3.0), left=0.5, right=0.1, bottom=0.5)
        axes.plot([0, 100], [0, 100], color=RULE, lw=1)
        axes.plot(
            [100 * each["predicted"] for each in bins],
            [100 * each["observed"] for each in bins],
            "o-", color=ACCENT, ms=3.5, lw=1,
        )  # fmt: skip
        axes.set_xlabel("predicted success, %")
        axes.set_ylabel(upwards)
        draw_grid(axes)
        return inline_svg(figure, label)


# What matplotlib writes into an SVG and a page does not need, or must not have twice.
_DROPPED = (
    (r"<metadata>.*?</metadata>", ""),
    (r"<style.*?</style>", ""),
    (r"<defs>\s*</defs>", ""),
    (r'<g id="[^"]*"', "<g"),
    (r"font-family: [^;\"]*; ", ""),
    (r' transform="rotate\(-0 [^)]*\)"', ""),
    (r"(\d\.\d\d)\d+", r"\1"),
    (r"\s*\n\s*", " "),
)


def inline_svg(figure: Figure, label: str) -> str:
    """The figure as an <svg> element without a size, in the colours and the type of the page.

    Args:
        label: what a screen reader says; also keeps the ids of two figures on a page apart.
    """
    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index(">", text.index("<svg")) + 1 :]
    for pattern, kept in _DROPPED:
        text = re.sub(pattern, kept, text, flags=re.DOTALL)
    for colour, name in _PROPERTIES.items():
        text = text.replace(colour, f"var(--{name})")
    width, height = (72 * inches for inches in figure.get_size_inches())
    view = f"0 0 {width:g} {height:g}"
    return f'<svg viewBox="{view}" role="img" aria-label="{escape(label)}">{text}'
