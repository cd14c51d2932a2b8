"""Samples → a candidate → its verdict → perhaps the predictor that serves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from predictor import artifact as artifacts
from predictor.artifact import Artifact
from predictor.errors import ArtifactError, OutcomesError
from predictor.gate import Contestant, HeldOut, Tolerances, Verdict, decide
from predictor.query_features import QueryProjection
from predictor.records import Target
from predictor.registry import Registry
from predictor.samples import Samples
from predictor.train import FEWEST_IMAGES, USED_SPLITS, Part, Progress, fit_parts

REPORT = "retrain.json"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it.

    Args:
        version: of the candidate.
        folder: where it is in the registry.
        promoted: whether it serves now.
        judged: the verdicts, by what they are on: recent traffic, the regression set.
        target: what the candidate promises.
        instead_of: what the predictor that served promised, if that is something else.
    """

    version: str
    folder: Path
    promoted: bool
    judged: dict[str, Verdict]
    target: Target
    instead_of: Target | None = None

    @property
    def reasons(self) -> list[str]:
        """Why it is refused; nothing if it is not."""
        return _reasons(self.judged)


def retrain(
    samples: Samples,
    registry: Registry,
    *,
    shipped: Path | None = None,
    regression: Samples | None = None,
    bound: float = 0.05,
    tolerances: Tolerances | None = None,
    seed: int = 0,
    promote: bool = True,
    progress: Progress = lambda stage, done, total: None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Result:
    """Trains a candidate, judges it against the predictor that serves and promotes it if it is
    better. The same samples and seed give the same version and the same verdict. Both are judged by
    what success means in the samples, even if the one that serves promises something else.

    Args:
        shipped: artefact that serves where the registry has none.
        regression: a fixed set that it must not be worse on, whatever the traffic.
        bound: the service's own on regret.
        promote: whether to let a better one serve.

    Raises:
        OutcomesError: too few images in some split.
    """
    candidate = fit(samples, seed=seed, progress=progress)
    serving = _serving(registry, samples, shipped)
    progress("judging", 0, 2)
    held_out = samples.part("test")
    judged = {"recent": judge(candidate, serving, held_out, bound, tolerances, seed)}
    progress("judging", 1, 2)
    if regression is not None:
        fixed = regression.part("test")  # not today's traffic: it may gain nothing there
        judged["regression"] = judge(
            candidate, serving, fixed, bound, tolerances, seed, must_gain=False
        )
    progress("judging", 2, 2)
    better = all(verdict.better for verdict in judged.values())
    instead_of = None
    if serving is not None and serving.target != candidate.target:
        instead_of = serving.target
    report = {
        "target": candidate.target,
        "instead_of": instead_of,
        "decision": "better" if better else "refused",
        "reasons": _reasons(judged),
        "bound": bound,
        "seed": seed,
        "samples": {split: int((samples.splits == split).sum()) for split in _splits(samples)},
        "uniform": int(samples.uniform.sum()),
        "judged": {on: asdict(verdict) for on, verdict in judged.items()},
    }
    with TemporaryDirectory(prefix="m3-retrain-") as workspace:
        folder = Path(workspace, "candidate")
        version = artifacts.save(candidate, folder, clock().isoformat(timespec="seconds"))
        (folder / REPORT).write_text(json.dumps(report, indent=1, sort_keys=True))
        added = registry.add(folder)
    serves_now = better and promote and not added.serves
    result = Result(version, added.folder, serves_now, judged, candidate.target, instead_of)
    if result.promoted:
        registry.promote(version, f"retrained: {judged['recent'].won}")
    return result


def fit(
    samples: Samples,
    *,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> Artifact:
    """A predictor of the questions' buckets. Thresholds are certified on the uniform stratum only.

    Raises:
        OutcomesError: too few images in some split.
    """
    own = {split: samples.part(split) for split in USED_SPLITS}
    for split in ("calibrate", "threshold"):  # shares must be those of the traffic
        own[split] = own[split].take(own[split].uniform)
    for split, part in own.items():
        count = len(set(part.images))
        if count < FEWEST_IMAGES:
            raise OutcomesError(
                f"The split {split!r} has {count} images of the uniform stratum, at least "
                f"{FEWEST_IMAGES} are needed; wait for more labels, or draw more "
                "(router.shadow.uniform_share)."
            )
    questions = [dict(zip(a.buckets, a.counts, strict=True)) for a in own["train"].asks]
    projection = QueryProjection.fit_counts(questions, seed=seed)
    parts = {
        split: Part(
            part.design(projection),
            part.success,
            part.images,
            part.shares,
            part.chances,
            part.weights,
        )
        for split, part in own.items()
    }
    return fit_parts(
        parts,
        projection,
        samples.source,
        target=samples.target,
        outcomes=samples.content_hash(),
        seed=seed,
        progress=progress,
    )


def judge(
    candidate: Artifact,
    serving: Artifact | None,
    samples: Samples,
    bound: float,
    tolerances: Tolerances | None,
    seed: int,
    *,
    must_gain: bool = True,
) -> Verdict:
    """The verdict on a candidate by samples that it never saw.

    Raises:
        OutcomesError: too few images.
    """
    if len(set(samples.images)) < FEWEST_IMAGES:
        raise OutcomesError(
            f"{len(set(samples.images))} images are held out, at least {FEWEST_IMAGES} are needed."
        )
    held_out = HeldOut(
        samples.success, samples.tokens, samples.images, samples.groups, 1 / samples.probability
    )
    return decide(
        _contestant(candidate, samples),
        None if serving is None else _contestant(serving, samples),
        held_out,
        bound=bound,
        tolerances=tolerances,
        must_gain=must_gain,
        seed=seed,
    )


def _contestant(artifact: Artifact, samples: Samples) -> Contestant:
    raw = artifact.model.predict(samples.design(artifact.projection))
    return Contestant(artifact.calibration.apply(raw), artifact.thresholds)


def _serving(registry: Registry, samples: Samples, shipped: Path | None) -> Artifact | None:
    """What serves that model now, if this release can use it."""
    for folder in (registry.link(samples.source.model_identity), shipped):
        if folder is not None and folder.exists():
            try:
                loaded, _ = artifacts.load(folder.resolve())
            except ArtifactError:
                continue
            if loaded.source == samples.source:
                return loaded
    return None


def _reasons(judged: Mapping[str, Verdict]) -> list[str]:
    return [f"{on}: {why}" for on, verdict in judged.items() for why in verdict.refused]


def _splits(samples: Samples) -> list[Any]:
    return sorted(np.unique(samples.splits.astype(str)).tolist())
