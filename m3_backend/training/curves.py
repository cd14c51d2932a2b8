"""Learning curves of a run: `python -m m3_backend.training.curves --out runs/tiny FILE.png`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from m3_backend.scales import M3_SCALES

matplotlib.use("Agg")

from matplotlib import pyplot

_SMOOTH = 7  # logged values that are averaged
_SEEN = {
    "foreground_accuracy": "what stands there",
    "glyph_accuracy": "which glyph",
    "order_accuracy": "where in its text",
    "row_accuracy": "in which row of a document",
}


def plot(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Tower accuracy and answer loss per scale, against minutes of training.

    Args:
        metrics: lines of a run's metrics.jsonl, oldest first.
    """
    minutes = _minutes([m["time"] for m in metrics])
    figure, (seen, told) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for key, label in _SEEN.items():
        at = [i for i, m in enumerate(metrics) if key in m]
        seen.plot(minutes[at], _smooth([metrics[i][key] for i in at]), label=label)
    seen.set(title="Vision tower: labels told right", xlabel="minutes of training", ylim=(0, 1))
    shades = pyplot.get_cmap("viridis_r")(np.linspace(0.1, 0.95, len(M3_SCALES)))
    for scale, shade in zip(M3_SCALES, shades, strict=True):
        at = [i for i, m in enumerate(metrics) if f"loss_{scale}" in m]
        losses = _smooth([metrics[i][f"loss_{scale}"] for i in at])
        told.plot(minutes[at], losses, color=shade, label=f"{scale} tokens")
    told.set(title="Answers: loss per token", xlabel="minutes of training", yscale="log")
    for axes in (seen, told):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _minutes(times: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Time spent, without the pauses between runs."""
    steps = np.diff(np.asarray(times, dtype=np.float64), prepend=times[0])
    steps[steps > 5 * max(float(np.median(steps)), 1.0)] = 0
    return np.asarray(steps.cumsum() / 60)


def _smooth(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean over the last few values."""
    ends = range(1, len(values) + 1)
    return np.asarray([np.mean(values[max(0, end - _SMOOTH) : end]) for end in ends])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    lines = (options.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    plot([json.loads(line) for line in lines], options.file)


if __name__ == "__main__":
    main()
