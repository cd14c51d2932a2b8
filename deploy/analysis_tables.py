"""What `m3-router analyze` shows at the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from predictor.analysis import Analysis, Part
    from predictor.clustered import Estimate


def print_analysis(console: Console, analysis: Analysis) -> None:
    """Scales, oracles, luck, groups, shift and costs, one table each."""
    part = analysis.overall
    source = analysis.source
    _line(
        console,
        f"[bold]{escape(source.model)}[/bold]: {part.samples:,} questions about {part.images:,} "
        f"pictures, right by {analysis.target}; splits {', '.join(analysis.splits)}; "
        f"{analysis.failed:,} failed",
    )
    for note in analysis.notes:
        _line(console, f"[yellow]{escape(note)}[/yellow]")
    console.print()
    console.print(_scales(part))
    _line(console, f"right at no scale: {_percent(part.unsolved)}%\n")
    console.print(_oracles(analysis))
    if analysis.null is not None:
        _line(console, _luck(analysis))
    console.print()
    console.print(_groups(analysis))
    _line(
        console,
        f"no single scale is the smallest sufficient one for more than 60% in "
        f"{analysis.varied_groups} of {len(analysis.groups)} groups",
    )
    for fall in analysis.falls:
        _line(
            console,
            f"{escape(fall.group or 'all')} falls from {fall.coarser} to {fall.finer}: "
            f"{_signed(fall.difference)} points",
        )
    if analysis.shift is not None:
        console.print()
        console.print(_shift(analysis))
    console.print()
    console.print(_costs(analysis))


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False)


def _table(first: str, *columns: str) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, collapse_padding=True)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _scales(part: Part) -> Table:
    table = _table(
        "scale", "tokens", "right, %", "95%", "step", "95%", "agrees", "smallest", "stable"
    )
    for at, row in enumerate(part.scales):
        step = part.steps[at - 1].difference if at else None
        table.add_row(
            str(row.scale),
            f"{row.tokens:.0f}",
            _percent(row.accuracy.value),
            _interval(row.accuracy),
            _points(step.value) if step else "",
            _interval(step, signed=True) if step else "",
            _percent(row.agreement.value) if row.agreement else "–",
            _percent(part.oracle.smallest[at]) if part.oracle.smallest else "–",
            _percent(part.stable_oracle.smallest[at]) if part.stable_oracle.smallest else "–",
        )
    return table


def _oracles(analysis: Analysis) -> Table:
    finest = analysis.source.ladder.finest
    table = _table("", "right, %", "95%", "tokens, unsolved left out", f"charged {finest}")
    for name, oracle in (
        ("oracle", analysis.overall.oracle),
        ("stable oracle", analysis.overall.stable_oracle),
    ):
        table.add_row(
            name,
            _percent(oracle.accuracy.value),
            _interval(oracle.accuracy),
            "–" if oracle.tokens is None else f"{oracle.tokens:.1f}",
            f"{oracle.tokens_charged:.1f}",
        )
    return table


def _luck(analysis: Analysis) -> str:
    null = analysis.null
    assert null is not None
    luck = null.overall
    return (
        f"luck: scale {null.scale} is right in one run {_percent(luck.single_run.value)}%, in any "
        f"of {null.compared} {_percent(luck.any_run.value)}%; any scale "
        f"{_percent(luck.any_scale.value)}%, beyond luck {_signed(luck.beyond_luck)} points"
    )


def _groups(analysis: Analysis) -> Table:
    scales = [str(scale) for scale in analysis.source.ladder.scales]
    table = _table("group", "n", *scales, "oracle", "tokens", "stable", "mostly")
    for name, part in analysis.groups.items():
        table.add_row(
            escape(name),
            f"{part.samples:,}",
            *(_percent(row.accuracy.value) for row in part.scales),
            _percent(part.oracle.accuracy.value),
            *(
                "–" if oracle.tokens is None else f"{oracle.tokens:.1f}"
                for oracle in (part.oracle, part.stable_oracle)
            ),
            _most_often(part, scales),
        )
    return table


def _most_often(part: Part, scales: list[str]) -> str:
    """The commonest smallest sufficient scale and its share."""
    shares = part.oracle.smallest
    if shares is None:
        return "–"
    return f"{scales[shares.index(max(shares))]}: {100 * max(shares):.0f}%"


def _shift(analysis: Analysis) -> Table:
    shift = analysis.shift
    assert shift is not None
    table = _table("scale", f"{'+'.join(shift.against)}, %", "shifted, %", "lost, points", "95%")
    for scale, each in shift.scales.items():
        table.add_row(
            str(scale),
            _percent(each.seen.value),
            _percent(each.shifted.value),
            _points(each.gap.value),
            _interval(each.gap, signed=True),
        )
    return table


def _costs(analysis: Analysis) -> Table:
    costs = analysis.costs
    table = _table("scale", "image tokens", "prefill GFLOPs", "KV MB", "ms", "fitted ms")
    for row in costs.scales:
        table.add_row(
            str(row.scale),
            f"{row.tokens:.1f}",
            "–" if row.prefill_flops is None else f"{row.prefill_flops / 1e9:,.2f}",
            "–" if row.kv_bytes is None else f"{row.kv_bytes / 1e6:,.2f}",
            f"{row.ms:.1f}",
            "–" if costs.fit is None else f"{costs.fit.at(row.tokens):.1f}",
        )
    return table


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _interval(estimate: Estimate, *, signed: bool = False) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    if signed:
        return f"{_points(estimate.low)} to {_points(estimate.high)}"
    return f"{_percent(estimate.low)}–{_percent(estimate.high)}"


def _signed(estimate: Estimate) -> str:
    interval = _interval(estimate, signed=True)
    return _points(estimate.value) + (f" ({interval})" if interval else "")
