"""The paper's analysis of any outcomes: which scales are right, and how few tokens would do.

Pure functions from a table to figures. *Right* means success by one target (design of the records:
correctness, or agreement with the finest scale). All intervals are those of `predictor.clustered`.
The oracle is that of Matryoshka Multimodal Models (arXiv 2405.17430): per sample the fewest tokens
that still answer correctly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from m3_backend.costs import ModelShape
from predictor.analysis import (
    Analysis,
    Comparison,
    Fall,
    Oracle,
    Part,
    Points,
    ScaleFigures,
    Shift,
    Step,
)
from predictor.analysis_costs import PAPER_TEXT_TOKENS, scale_costs
from predictor.clustered import Clusters, Estimate, gap, members
from predictor.errors import OutcomesError
from predictor.frontier import hull, oracle, smallest_sufficient, stable
from predictor.noise_null import noise_null
from predictor.null_table import NullTable
from predictor.records import SPLITS, OutcomeTable, Split, Target

DOMINATES_ABOVE = 0.6  # share of solvable samples from which one scale decides a group
FALLS_ABOVE = 0.02  # loss of accuracy to the next finer scale that is worth a mention


def analyze(
    table: OutcomeTable,
    *,
    target: Target | None = None,
    splits: Sequence[Split] = (),
    null: NullTable | None = None,
    shape: ModelShape | None = None,
    shape_of: str | None = None,
    text_tokens: int = PAPER_TEXT_TOKENS,
) -> Analysis:
    """Analyse a table of outcomes.

    Args:
        target: what counts as right; by default correctness, or agreement for tables in which no
            sample has ground truth.
        splits: analyse these; by default all but `shifted`, which is only compared with the rest.
        null: the noise null, if one was labelled.
        shape: the language model's shape, for operations and bytes; `shape_of` names it.
        text_tokens: prompt tokens beside the image that operations and bytes count.

    Raises:
        OutcomesError: nothing to analyse, or a target that no sample has a value for.
    """
    notes: list[str] = []
    usable, target, unlabelled = _labelled(table, target, notes)
    wanted = splits or tuple(split for split in SPLITS if split != "shifted")
    part = usable.part(*wanted)
    if not len(part):
        raise OutcomesError(
            f"No complete sample with {target} in the splits {', '.join(wanted)}"
            f" ({table.failed} failed); choose others with --split, or label again."
        )
    success = part.success(target)
    groups = {
        name: _part(part.take(rows), success[rows], target)
        for name, rows in members(part.group).items()
    }
    overall = _part(part, success, target)
    if null is not None and target == "agreement":
        notes.append("The noise null is about correctness and is left out for agreement.")
        null = None
    if shape is None:
        notes.append(
            "Operations and KV bytes are left out: the model's shape is unknown (see --shape)."
        )
    return Analysis(
        source=table.source,
        target=target,
        splits=tuple(split for split in SPLITS if (part.split == split).any()),
        failed=table.failed,
        unlabelled=unlabelled,
        overall=overall,
        groups=groups,
        falls=_falls(overall, groups),
        shift=_shift(usable, target),
        null=None if null is None else noise_null(part, success, null),
        costs=scale_costs(part, shape, shape_of, text_tokens),
        notes=tuple(notes),
    )


def _labelled(
    table: OutcomeTable, target: Target | None, notes: list[str]
) -> tuple[OutcomeTable, Target, int]:
    """The samples that have a value for the target, the target, and how many have none."""
    known: dict[Target, NDArray[np.bool_]] = {
        "correctness": np.asarray(~np.isnan(table.correct).any(axis=1)),
        "agreement": np.asarray(~np.isnan(table.agrees).any(axis=1)),
    }
    if target is None:
        target = "correctness" if known["correctness"].any() or not len(table) else "agreement"
        if target == "agreement":
            notes.append(
                "No sample has ground truth: right means agreeing with the finest scale's answer."
            )
    if len(table) and not known[target].any():
        raise OutcomesError(f"No sample has {target}; choose the other --target.")
    unlabelled = int((~known[target]).sum())
    if unlabelled:
        notes.append(f"Samples left out because their {target} is not known: {unlabelled}.")
    return table.take(known[target]), target, unlabelled


def _part(table: OutcomeTable, success: NDArray[np.bool_], target: Target) -> Part:
    pictures = Clusters.of(table.image)
    scales, tokens = table.source.ladder.scales, table.image_tokens.astype(np.float64)
    agrees = None if np.isnan(table.agrees).any() else table.success("agreement")

    def share(right: NDArray[np.bool_], at: int, of: Target) -> Estimate:
        """The finest scale agrees with itself by definition: nothing to be uncertain about."""
        certain = of == "agreement" and at == len(scales) - 1
        return Estimate(1.0) if certain else pictures.share(right[:, at])

    lasting = stable(success)
    return Part(
        samples=len(table),
        images=pictures.count,
        scales=tuple(
            ScaleFigures(
                scale=scale,
                tokens=float(tokens[:, at].mean()),
                accuracy=share(success, at, target),
                score=float(table.correct[:, at].mean()) if target == "correctness" else None,
                agreement=None if agrees is None else share(agrees, at, "agreement"),
            )
            for at, scale in enumerate(scales)
        ),
        steps=_steps(success, pictures, scales),
        oracle=_oracle(success, tokens, scales, pictures),
        stable_oracle=_oracle(lasting, tokens, scales, pictures),
        unsolved=float(1 - success.any(axis=1).mean()),
        hull=Points.of(hull(tokens.mean(axis=0), success.mean(axis=0))),
        oracle_curve=Points.of(oracle(success, tokens)),
        stable_curve=Points.of(oracle(lasting, tokens)),
    )


def _steps(
    success: NDArray[np.bool_], pictures: Clusters, scales: Sequence[int]
) -> tuple[Step, ...]:
    gains = np.diff(success.astype(np.float64), axis=1)
    return tuple(
        Step(scales[at], scales[at + 1], found, found.value < -FALLS_ABOVE)
        for at in range(len(scales) - 1)
        for found in [pictures.difference(gains[:, at])]
    )


def _oracle(
    success: NDArray[np.bool_],
    tokens: NDArray[np.float64],
    scales: Sequence[int],
    pictures: Clusters,
) -> Oracle:
    chosen = smallest_sufficient(success)
    solved = chosen >= 0
    # Unsolved samples have the index -1, and that is the finest scale: charged as defined.
    paid, scale = tokens[np.arange(len(tokens)), chosen], np.asarray(scales)[chosen]
    smallest = np.bincount(chosen[solved], minlength=len(scales)) / max(int(solved.sum()), 1)
    most = int(smallest.argmax())
    return Oracle(
        accuracy=pictures.share(solved),
        tokens=float(paid[solved].mean()) if solved.any() else None,
        tokens_charged=float(paid.mean()),
        scale=float(scale[solved].mean()) if solved.any() else None,
        scale_charged=float(scale.mean()),
        smallest=tuple(smallest.tolist()) if solved.any() else None,
        dominant=scales[most] if smallest[most] > DOMINATES_ABOVE else None,
    )


def _falls(overall: Part, groups: dict[str, Part]) -> tuple[Fall, ...]:
    return tuple(
        Fall(name, step.coarser, step.finer, step.difference)
        for name, part in [(None, overall), *groups.items()]
        for step in part.steps
        if step.falls
    )


def _shift(table: OutcomeTable, target: Target) -> Shift | None:
    """The split `test`, or where there is none all other samples, against `shifted`."""
    against: tuple[Split, ...] = ("test",)
    if not (table.split == "test").any():
        against = tuple(s for s in SPLITS if s != "shifted" and (table.split == s).any())
    seen, shifted = table.part(*against), table.part("shifted")
    if not len(seen) or not len(shifted):
        return None
    scales = table.source.ladder.scales
    ours, theirs = members(seen.group), members(shifted.group)
    return Shift(
        against=against,
        seen_images=Clusters.of(seen.image).count,
        shifted_images=Clusters.of(shifted.image).count,
        scales={scale: _compare(seen, shifted, target, at) for at, scale in enumerate(scales)},
        groups={
            name: _compare(seen.take(ours[name]), shifted.take(theirs[name]), target, -1)
            for name in sorted(ours.keys() & theirs.keys())
        },
    )


def _compare(seen: OutcomeTable, shifted: OutcomeTable, target: Target, scale: int) -> Comparison:
    """One scale, by its index, on two sets of pictures."""
    one, other = (
        Clusters.of(table.image).share(table.success(target)[:, scale]) for table in (seen, shifted)
    )
    return Comparison(len(seen), len(shifted), one, other, gap(one, other))
