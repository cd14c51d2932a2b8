"""What the analysis of a table of outcomes holds: plain figures, ready for JSON and for people.

Shares are in [0, 1]; None stands where there is nothing to tell. `predictor.analyze` computes them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from predictor.analysis_costs import Costs
from predictor.clustered import Estimate
from predictor.frontier import Curve
from predictor.noise_null import NoiseNull
from predictor.records import OutcomeSource, Target


@dataclass(frozen=True, slots=True)
class ScaleFigures:
    """One fixed scale.

    Args:
        tokens: mean image tokens.
        accuracy: share of samples that are right.
        score: mean graded correctness (VQA accuracy, ANLS, …); None for other targets.
        agreement: share that agrees with the finest scale; None where some sample does not tell.
    """

    scale: int
    tokens: float
    accuracy: Estimate
    score: float | None
    agreement: Estimate | None


@dataclass(frozen=True, slots=True)
class Step:
    """From one scale to the next finer one; the difference is paired by sample."""

    coarser: int
    finer: int
    difference: Estimate
    falls: bool


@dataclass(frozen=True, slots=True)
class Oracle:
    """Per sample the smallest sufficient scale.

    Args:
        accuracy: share of samples that have one, the solvable ones.
        tokens: mean image tokens of the solvable samples; None if there is none.
        tokens_charged: mean over all samples, unsolved ones charged the finest scale.
        scale: mean scale (tokens per grid) of the solvable samples. Where images are cut into
            tiles this, not `tokens`, is the unit of the paper's table.
        scale_charged: mean scale over all samples, unsolved ones charged the finest.
        smallest: share of the solvable samples whose smallest sufficient scale is each scale.
        dominant: the scale that is so for more than 60% of them, if one is.
    """

    accuracy: Estimate
    tokens: float | None
    tokens_charged: float
    scale: float | None
    scale_charged: float
    smallest: tuple[float, ...] | None
    dominant: int | None


@dataclass(frozen=True, slots=True)
class Points:
    """A curve for plots: mean image tokens, accuracy."""

    tokens: tuple[float, ...]
    accuracy: tuple[float, ...]

    @classmethod
    def of(cls, curve: Curve) -> Points:
        few = curve.thinned()
        return cls(tuple(few.cost.tolist()), tuple(few.accuracy.tolist()))


@dataclass(frozen=True, slots=True)
class Part:
    """All samples, or those of one group.

    Args:
        oracle: right there.
        stable_oracle: right there and at every finer scale.
        unsolved: share that is right nowhere.
        hull: what mixing fixed scales at random reaches (non-decreasing, concave).
    """

    samples: int
    images: int
    scales: tuple[ScaleFigures, ...]
    steps: tuple[Step, ...]
    oracle: Oracle
    stable_oracle: Oracle
    unsolved: float
    hull: Points
    oracle_curve: Points
    stable_curve: Points


@dataclass(frozen=True, slots=True)
class Fall:
    """Accuracy that falls by more than two points to the next finer scale."""

    group: str | None
    coarser: int
    finer: int
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """Accuracy on familiar and on shifted pictures; `gap` is seen − shifted."""

    seen_samples: int
    shifted_samples: int
    seen: Estimate
    shifted: Estimate
    gap: Estimate


@dataclass(frozen=True, slots=True)
class Shift:
    """What unfamiliar styles cost: the split `shifted` against the splits `against`.

    Args:
        scales: by scale, over all samples.
        groups: by group, at the finest scale.
    """

    against: tuple[str, ...]
    seen_images: int
    shifted_images: int
    scales: dict[int, Comparison]
    groups: dict[str, Comparison]


@dataclass(frozen=True, slots=True)
class Analysis:
    """Everything the report shows.

    Args:
        target: what counts as right.
        splits: those that the analysed samples are from.
        failed: samples of the table left out because a scale is missing or failed.
        unlabelled: samples left out because nobody said what is right.
        notes: what a reader must know about how it was done.
    """

    source: OutcomeSource
    target: Target
    splits: tuple[str, ...]
    failed: int
    unlabelled: int
    overall: Part
    groups: dict[str, Part]
    falls: tuple[Fall, ...]
    shift: Shift | None
    null: NoiseNull | None
    costs: Costs
    notes: tuple[str, ...]

    @property
    def varied_groups(self) -> int:
        """Groups in which no single scale is the smallest sufficient one for most samples."""
        return sum(
            part.oracle.smallest is not None and part.oracle.dominant is None
            for part in self.groups.values()
        )


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an analysis comes from.

    Args:
        outcomes, null: the files' names.
        content_hash: of the outcomes, as artefacts name what they were trained on.
        command: what makes it again.
        versions: of the packages that computed it.
        at: date and time, ISO 8601.
    """

    outcomes: str
    content_hash: str
    null: str | None
    command: str
    versions: dict[str, str]
    at: str


def as_json(analysis: Analysis, provenance: Provenance) -> dict[str, Any]:
    """The content of analysis.json."""
    source = {
        "model": analysis.source.model,
        "model_identity": analysis.source.model_identity,
        "processor": analysis.source.processor,
        "scales": list(analysis.source.ladder.scales),
        "grid_side": analysis.source.ladder.grid_side,
    }
    figures = asdict(analysis) | {"source": source, "varied_groups": analysis.varied_groups}
    return {"provenance": asdict(provenance), **figures}
