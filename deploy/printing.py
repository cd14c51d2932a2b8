"""What the command line shows a person: a decision, where time went, a verification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from m3_backend.verify import VerifyReport


def print_decision(console: Console, decision: dict[str, Any]) -> None:
    """The chosen scale of every image beside the others that were weighed."""
    bound = decision["m3"]["max_regret"]
    promise = "no regret bound" if bound is None else f"regret bound {bound:g}"
    for image in decision["images"]:
        console.print(
            f"scale [bold]{image['scale']}[/bold], because: {image['reason']} "
            f"({promise}, predictor {decision['m3']['predictor'] or 'none'})",
            highlight=False,
        )
        table = Table("", "scale", "image tokens", "p(success)", "est. ms", box=None)
        for option in image["options"]:
            probability = option["p_success"]
            table.add_row(
                "→" if option["scale"] == image["scale"] else "",
                str(option["scale"]),
                str(option["image_tokens"]),
                "-" if probability is None else f"{probability:.3f}",
                f"{option['cost_ms']:.1f}",
            )
        console.print(table)


def print_timings(console: Console, m3: dict[str, Any], usage: dict[str, Any]) -> None:
    """Where the time went, and where the features came from."""
    spent = {"routing": m3["routing_ms"], **(m3["timings_ms"] or {})}
    times = " · ".join(f"{name} {value:.1f}" for name, value in spent.items())
    console.print(f"\nms: {times}", highlight=False)
    degraded = f" · without {', '.join(m3['degraded'])}" if m3["degraded"] else ""
    console.print(
        f"features from {', '.join(m3['cache'] or ())}{degraded} · "
        f"{usage['prompt_tokens']} prompt + {usage['completion_tokens']} answer tokens",
        highlight=False,
    )


def print_report(console: Console, report: VerifyReport) -> None:
    """One row per scale, then the verdict."""
    table = Table("scale", "image tokens", "features", "logits", "greedy tokens", "", box=None)
    for scale in report.scales:
        table.add_row(
            str(scale.scale),
            f"{scale.image_tokens} of {scale.expected_image_tokens}",
            "-" if scale.features is None else f"{scale.features:.1e}",
            f"{scale.logits:.1e}",
            "equal" if scale.greedy == scale.expected_greedy else "differ",
            "ok" if scale.passed else "DISAGREES",
        )
    console.print(table)
    pixels = "" if report.pixels is None else f"; pixels deviate by {report.pixels:.1e}"
    verdict = "agrees with" if report.passed else "DISAGREES with"
    console.print(
        f"{report.folder} {verdict} its reference{pixels} (largest relative deviation)",
        highlight=False,
    )


def print_evaluation(console: Console, report: dict[str, Any]) -> None:
    """Per part: what each certified bound costs and gives, and how much of the gap is closed."""
    for name, part in report["parts"].items():
        console.print(
            f"\n[bold]{name}[/bold]: {part['samples']} questions on {part['images']} pictures, "
            f"accuracy by {report['accuracy_is']}, regret by {report['target']}",
            highlight=False,
        )
        table = Table("bound", "regret", "tokens", "accuracy", "best fixed scale", box=None)
        for point in part["operating_points"]:
            table.add_row(
                f"{point['max_regret']:g}",
                f"{point['regret']:.3f}",
                f"{point['tokens']:.0f}" + ("" if point["price"] is not None else " (finest)"),
                f"{point['accuracy']:.3f}",
                f"{point['best_fixed_accuracy']:.3f} at {point['best_fixed_scale']}",
            )
        console.print(table)
        table = Table("oracle gap closed", "5–300 tokens", "95% band", box=None)
        for peer, figures in part["gap_closed"].items():
            if figures["mean"] is not None:
                known = figures["low"] is not None
                band = f"{figures['low']:.2f} to {figures['high']:.2f}" if known else ""
                table.add_row(part["policies"][peer]["label"], f"{figures['mean']:.2f}", band)
        console.print(table)
