"""The report: one HTML file that needs nothing else.

No script, no request, both colour schemes. Everything that comes from the outcomes, names of groups
and models above all, is escaped by the template engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from predictor import m3_paper
from predictor.analysis import Analysis, Part, Provenance, Step, as_json
from predictor.analysis_plots import (
    accuracy_svg,
    gain,
    group_svg,
    largest_groups,
    strength,
    write_plots,
)
from predictor.pages import render_page
from predictor.records import AGREES_FROM, CORRECT_FROM, Target

HTML_FILE, JSON_FILE = "report.html", "analysis.json"

_RIGHT_MEANS: dict[Target, str] = {
    "correctness": "correct against ground truth",
    "agreement": "agreeing with the finest scale",
}
_RIGHT_DEFINITION: dict[Target, str] = {
    "correctness": "The answer is correct against ground truth; where correctness is graded, by at "
    f"least {CORRECT_FROM:g}.",
    "agreement": "The greedy answer equals that of the finest scale; answers of more than 16 "
    f"tokens where at least {AGREES_FROM:.0%} of the positions match.",
}


def write_analysis(analysis: Analysis, provenance: Provenance, folder: Path) -> None:
    """Write report.html, analysis.json and the plots into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = json.dumps(as_json(analysis, provenance), indent=1, allow_nan=False)
    (folder / JSON_FILE).write_text(figures + "\n", encoding="utf-8")
    (folder / HTML_FILE).write_text(render(analysis, provenance), encoding="utf-8")
    write_plots(analysis, folder)


def render(analysis: Analysis, provenance: Provenance) -> str:
    """The report as an HTML document."""
    part, scales = analysis.overall, analysis.source.ladder.scales
    by_need = sorted(analysis.groups.items(), key=lambda item: -gain(item[1]))
    null, shift = analysis.null, analysis.shift
    return render_page(
        "analysis.html",
        _FILTERS,
        provenance=provenance,
        source=_source(analysis),
        overall=part,
        groups=analysis.groups,
        rows=[("all", part), *by_need],
        splits=analysis.splits,
        failed=analysis.failed,
        notes=analysis.notes,
        lead=_lead(analysis),
        right_means=_RIGHT_MEANS[analysis.target],
        right_definition=_RIGHT_DEFINITION[analysis.target],
        tiled=any(each.tokens != each.scale for each in part.scales),
        graded=any(each.score not in (None, each.accuracy.value) for each in part.scales),
        has_agreement=part.scales[0].agreement is not None and analysis.target != "agreement",
        best=_best,
        best_accuracy=_best(part),
        fall=_fall_mark,
        figure_wide=Markup(accuracy_svg(analysis, narrow=False)),
        figure_narrow=Markup(accuracy_svg(analysis, narrow=True)),
        multiples=[
            (name, each, Markup(group_svg(name, each)))
            for name, each in largest_groups(analysis).items()
        ],
        strengths=[round(strength(at, len(scales)), 3) for at in range(len(scales))],
        varied_sentence=_varied(analysis),
        null=null,
        luck_rows=[
            ("all", null.overall),
            *((name, null.groups[name]) for name, _ in by_need if name in null.groups),
        ]
        if null
        else [],
        shift=shift,
        shift_rows=[(name, shift.groups[name]) for name, _ in by_need if name in shift.groups]
        if shift
        else [],
        costs=analysis.costs,
        flops=_unit(
            analysis.costs.scales[-1].prefill_flops, 1e3, ("MFLOPs", "GFLOPs", "TFLOPs"), 1e6
        ),
        kv=_unit(analysis.costs.scales[-1].kv_bytes, 1e3, ("kB", "MB", "GB"), 1e3),
        same_ladder=scales == m3_paper.SCALES,
        paper=m3_paper.BENCHMARKS,
        teraflops=m3_paper.TERAFLOPS,
        citation=m3_paper.CITATION,
    )


def _points(difference: float) -> str:
    """With a sign, and a true minus."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def _tokens(tokens: float | None) -> str:
    return "–" if tokens is None else f"{tokens:.1f}"


def _source(analysis: Analysis) -> dict[str, Any]:
    source = analysis.source
    return {
        "model": source.model,
        "model_identity": source.model_identity,
        "processor": source.processor,
        "scales": source.ladder.scales,
        "finest": source.ladder.finest,
        "grid_side": source.ladder.grid_side,
    }


def _best(part: Part) -> float:
    return max(each.accuracy.value for each in part.scales)


def _fall_mark(part: Part, at: int) -> str:
    """Whether the scale falls behind the next coarser one, and beyond noise."""
    step: Step | None = part.steps[at - 1] if at else None
    if step is None or not step.falls:
        return ""
    return "▾" if step.difference.excludes(0) else "▿"


def _lead(analysis: Analysis) -> str:
    """What came out, in two or three sentences."""
    part, knowing = analysis.overall, ""
    oracle, lasting = part.oracle, part.stable_oracle
    if oracle.tokens is not None:
        knowing = (
            " Knowing for every question the fewest tokens that are enough, one would get "
            f"{oracle.accuracy.value:.1%} right and spend {oracle.tokens:.1f} tokens on average on "
            "those that can be answered at all"
        )
        if lasting.tokens is not None:
            knowing += (
                f"; without answers that a finer scale takes back, {lasting.tokens:.1f} tokens "
                f"for {lasting.accuracy.value:.1%}"
            )
        knowing += "."
    return _lead_by_scale(analysis) + knowing


def _lead_by_scale(analysis: Analysis) -> str:
    part = analysis.overall
    coarsest, finest = part.scales[0], part.scales[-1]
    if analysis.target == "agreement":
        return (
            f"With {_counted(coarsest.scale)}, {coarsest.accuracy.value:.1%} of the questions get "
            f"the answer that they get with {finest.scale}. That is what counts as right here."
        )
    enough = next(each for each in part.scales if each.accuracy.value >= _best(part) - 0.01)
    said = (
        f"With {finest.scale} tokens, {finest.accuracy.value:.1%} of the questions come out right"
    )
    if enough.scale != finest.scale:
        said += f"; with {enough.scale} already {enough.accuracy.value:.1%}"
    return said + "."


def _counted(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens} tokens"


def _varied(analysis: Analysis) -> str:
    solvable = sum(part.oracle.smallest is not None for part in analysis.groups.values())
    return (
        f"In {analysis.varied_groups} of {solvable} groups no single scale is it for more than 60%."
    )


def _unit(
    largest: float | None, step: float, names: tuple[str, ...], first: float
) -> dict[str, Any]:
    """The unit in which the largest value is at least one."""
    size, at = first, 0
    while largest is not None and at + 1 < len(names) and largest >= size * step:
        size, at = size * step, at + 1
    return {"unit": names[at], "size": size}


_FILTERS: dict[str, Callable[..., str]] = {
    "pct": lambda share: f"{100 * share:.1f}",
    "points": _points,
    "rounded": lambda value: f"{value + 1e-9:.1f}",  # as on paper: halves go up
    "tokens": _tokens,
    "count": lambda number: f"{number:,}",
}
