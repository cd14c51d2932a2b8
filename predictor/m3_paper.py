"""Figures of the M3 paper (arXiv 2405.17430) to stand beside one's own."""

from __future__ import annotations

from dataclasses import dataclass

SCALES = (1, 9, 36, 144, 576)
CITATION = "Cai et al., Matryoshka Multimodal Models, ICLR 2025, arXiv 2405.17430"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A row of the paper's table of LLaVA-NeXT-7B-M3; all but tokens in per cent.

    Args:
        accuracy: by scale, coarse to fine.
        oracle_tokens: per grid.
    """

    name: str
    accuracy: tuple[float, float, float, float, float]
    oracle_accuracy: float
    oracle_tokens: float


BENCHMARKS = (
    Benchmark("TextVQA", (38.92, 51.97, 58.71, 62.61, 63.13), 70.51, 31.39),
    Benchmark("AI2D", (64.57, 66.77, 67.36, 68.07, 66.71), 76.36, 11.54),
    Benchmark("ChartQA", (31.04, 42.00, 50.24, 57.04, 58.96), 70.76, 41.78),
    Benchmark("DocVQA", (31.63, 43.52, 55.94, 66.48, 72.61), 81.73, 64.09),
    Benchmark("MMBench", (62.97, 67.35, 68.56, 69.50, 67.96), 74.35, 8.90),
    Benchmark("POPE", (83.38, 86.17, 87.29, 87.67, 87.20), 94.29, 6.08),
    Benchmark("ScienceQA", (71.19, 71.85, 72.11, 72.32, 72.46), 76.07, 7.43),
    Benchmark("MMMU", (34.8, 35.2, 36.8, 36.1, 34.0), 50.44, 22.85),
)

# Its efficiency table: a 7B language model and 30 tokens of text, coarse to fine.
TERAFLOPS = (0.4, 0.5, 0.9, 2.2, 8.0)
