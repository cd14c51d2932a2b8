"""What each scale of a data set costs: operations, KV memory and milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_backend.costs import AffineFit, ModelShape, fit_milliseconds
from predictor.records import OutcomeTable

PAPER_TEXT_TOKENS = 30  # the prompt of the efficiency table of M3 (arXiv 2405.17430)


@dataclass(frozen=True, slots=True)
class ScaleCost:
    """One scale, on average over samples.

    Args:
        tokens: image tokens.
        prefill_flops: operations of the language model to prefill image and text.
        kv_bytes: keys and values of image and text in 16 bits.
        ms: as the outcomes have it, vision encoding excluded.
    """

    scale: int
    tokens: float
    prefill_flops: float | None
    kv_bytes: float | None
    ms: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What the scales cost.

    Args:
        shape_of: the name whose shape gave operations and bytes; None if no shape is known.
        text_tokens: tokens beside the image that operations and bytes count.
        fit: the mean milliseconds of the scales as a line over their mean image tokens; None if the
            outcomes hold no times.
    """

    shape_of: str | None
    text_tokens: int
    scales: tuple[ScaleCost, ...]
    fit: AffineFit | None


def scale_costs(
    table: OutcomeTable,
    shape: ModelShape | None,
    shape_of: str | None,
    text_tokens: int = PAPER_TEXT_TOKENS,
) -> Costs:
    tokens, ms = table.image_tokens.mean(axis=0), table.ms.mean(axis=0)
    rows = tuple(
        ScaleCost(
            scale=scale,
            tokens=float(tokens[at]),
            prefill_flops=_mean_flops(shape, table.image_tokens[:, at] + text_tokens)
            if shape
            else None,
            kv_bytes=float(shape.kv_bytes(1) * (tokens[at] + text_tokens)) if shape else None,
            ms=float(ms[at]),
        )
        for at, scale in enumerate(table.source.ladder.scales)
    )
    timed = bool((ms > 0).all())
    return Costs(
        shape_of=shape_of if shape else None,
        text_tokens=text_tokens,
        scales=rows,
        fit=fit_milliseconds(tokens.tolist(), ms.tolist()) if timed else None,
    )


def _mean_flops(shape: ModelShape, prompt_tokens: NDArray[np.int64]) -> float:
    """Mean of the operations, not operations of the mean: attention grows with the square."""
    lengths, samples = np.unique(prompt_tokens, return_counts=True)
    flops = [shape.prefill_flops(length) for length in lengths.tolist()]
    return float(np.average(flops, weights=samples))
