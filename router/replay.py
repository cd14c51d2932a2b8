"""What another predictor would have decided of recorded traffic, beside what was served.

Each recorded request is decided again by the rule that serves (`router.policy`), with the caller's
own limits and the bound that was in force, from the features in its record. Regret is estimated
from the shadow labels of those requests, each counting by how seldom it was drawn.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m3_backend.costs import fit_affine
from m3_backend.scales import ScaleLadder
from predictor.artifact import Artifact
from predictor.clustered import Clusters, Estimate
from predictor.features import extract_recorded
from predictor.label_records import UNIFORM
from predictor.query_features import QuestionFeatures
from predictor.record_store import LABELS, REQUESTS, RecordStore, hashes_of
from predictor.records import AGREES_FROM
from predictor.routing_records import IMAGE_FEATURES, QUESTION_FEATURES
from router.policy import Decision, ImageCase, Limits, Reason, decide
from router.trace import OK

ANSWERED = "/v1/chat/completions"
COLUMNS = (
    *("request_id", "at", "endpoint", "code", "model_identity", "images", "bound", "cost_ms"),
    *("asked_scale", "asked_min_scale", "asked_max_scale", "asked_latency_budget_ms"),
    *("image_features", "question_features", "question_values", "named_colours"),
    *("ngram_buckets", "ngram_counts", "observed_predictor", "observed"),
)
_LABEL_COLUMNS = ("request_id", "at", "model_identity", "stratum", "probability", "image")
_COST_COLUMNS = ("request_id", "at", "code", "model_identity", "images", "prompt_tokens", "cost_ms")
_MOST_COSTS = 20_000  # requests from which milliseconds a token are taken


@dataclass(frozen=True, slots=True)
class Choice:
    """The scales of one request, with their image tokens."""

    scales: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared.

    Args:
        tokens: mean image tokens of a request.
        cost_ms: mean estimated replica time to the first token; None where it cannot be told.
        scales: share of images at each scale.
        regret: of requests with a label; None without any.
    """

    tokens: float
    cost_ms: float | None
    scales: dict[int, float]
    regret: Estimate | None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it.

    Args:
        requests: that both have decided, of those that were counted.
        left_out: others, by why.
        changed: share of requests that would have got other scales.
        regret_difference: the candidate's less the served one's, on the same labels.
        labels, uniform: shadow labels of these requests, and those of them drawn whatever was
            decided.
    """

    requests: int
    left_out: dict[str, int]
    changed: float
    served: Side
    candidate: Side
    regret_difference: Estimate | None
    labels: int
    uniform: int


@dataclass(frozen=True, slots=True)
class _Label:
    image: str
    weight: float
    uniform: bool
    agrees: dict[int, bool]
    finest: bool

    def lost(self, scales: Sequence[int]) -> float:
        """1 where the finest scale succeeds and this one does not."""
        return float(self.finest and not self.agrees[scales[0]])


Decided = Iterator[tuple[dict[str, Any], Choice | str]]  # of every row, or why there is none
Decider = Callable[[pa.Table], Decided]


def by_artifact(artifact: Artifact, per_token_ms: float | None) -> Decider:
    """Decisions of an artefact on records.

    Args:
        per_token_ms: estimated replica milliseconds of a prompt token.
    """
    source = artifact.source

    def decided(table: pa.Table) -> Decided:
        rows = table.to_pylist()
        known = [_unusable(row, source.model_identity) for row in rows]
        designs = [
            extract_recorded(
                np.asarray(image["features"], dtype=np.float32), _asks(row), artifact.projection
            ).values
            for row, why in zip(rows, known, strict=True)
            if why is None
            for image in row["images"]
        ]
        chances = iter(_chances(artifact, designs))
        for row, why in zip(rows, known, strict=True):
            if why is not None:
                yield row, why
                continue
            p_success = [next(chances) for _ in row["images"]]
            decision = _decide(row, source.ladder, p_success, artifact, per_token_ms)
            yield row, Choice(decision.scales, sum(image.tokens for image in decision.images))

    return decided


def by_observer(version: str | None, model_identity: str | None) -> Decider:
    """Decisions that a predictor made while it watched.

    Args:
        version: None takes whichever watched.
        model_identity: None takes any.
    """

    def decided(table: pa.Table) -> Decided:
        for row in table.to_pylist():
            why = _not_answered(row, model_identity or row["model_identity"])
            if why is None and version not in (None, row["observed_predictor"]):
                why = "not observed"
            if why is None and not row["observed"]:
                why = "not observed"
            if why is not None:
                yield row, why
                continue
            observed = row["observed"]
            scales = tuple(image["scale"] for image in observed)
            yield row, Choice(scales, sum(image["tokens"] for image in observed))

    return decided


def replay(
    store: RecordStore,
    decider: Decider,
    *,
    since: datetime | None = None,
    per_token_ms: float | None = None,
    most: int = 200_000,
    broken: Callable[[str], None] = lambda name: None,
) -> Replayed:
    """Compares decisions with what was served.

    Memory holds the labels, and of records one batch.

    Args:
        since: of the requests' arrival.
        per_token_ms: for costs.
        most: requests that are counted, more or less, chosen by their names; those with a label are
            all looked at.
        broken: told the name of each file that cannot be read.
    """
    labels = dict(_labels(store, since, broken))
    tally = _Tally(labels, per_token_ms)
    stored = store.rows(REQUESTS, since=since)
    below = most / max(stored, 1) * 2.0**64
    for table in store.read(REQUESTS, columns=COLUMNS, since=since, broken=broken):
        names = table["request_id"]
        counted = hashes_of(names) < below if most < stored else np.ones(len(table), dtype=bool)
        wanted = counted | np.array([name in labels for name in names.to_pylist()], dtype=bool)
        decided = decider(table.filter(pa.array(wanted)))
        for (row, choice), counts in zip(decided, counted[wanted], strict=True):
            tally.add(row, choice, counts=bool(counts))
    return tally.result()


def milliseconds_a_token(
    store: RecordStore, model_identity: str | None, since: datetime | None = None
) -> float | None:
    """What a prompt token costs a replica, by the estimates in records of requests about one image;
    None where they tell nothing.
    """
    tokens: list[float] = []
    costs: list[float] = []
    for table in store.read(REQUESTS, columns=_COST_COLUMNS, since=since):
        counted = table.select(("code", "model_identity", "prompt_tokens", "cost_ms"))
        singles = table["images"].combine_chunks().value_lengths().to_pylist()
        for row, images in zip(counted.to_pylist(), singles, strict=True):
            of_model = model_identity in (None, row["model_identity"])
            if images == 1 and of_model and row["prompt_tokens"] and row["cost_ms"]:
                tokens.append(row["prompt_tokens"])
                costs.append(row["cost_ms"])
        if len(tokens) >= _MOST_COSTS:
            break
    if len(set(tokens)) < 2:
        return None
    return fit_affine(tokens, costs)[1]


class _Tally:
    def __init__(self, labels: Mapping[str, _Label], per_token_ms: float | None) -> None:
        self._labels, self._per_token_ms = labels, per_token_ms
        self._left_out: Counter[str] = Counter()
        self._requests = self._changed = 0
        self._tokens = [0, 0]
        self._costs, self._costed = [0.0, 0.0], 0
        self._scales: list[Counter[int]] = [Counter(), Counter()]
        self._judged: list[tuple[_Label, float, float]] = []

    def add(self, row: dict[str, Any], choice: Choice | str, *, counts: bool) -> None:
        if isinstance(choice, str):
            self._left_out[choice] += counts
            return
        served = Choice(
            tuple(image["scale"] for image in row["images"]),
            sum(image["tokens"] for image in row["images"]),
        )
        if counts:
            self._count(row, served, choice)
        label = self._labels.get(row["request_id"])
        if label is not None and len(served.scales) == 1:
            self._judged.append((label, label.lost(served.scales), label.lost(choice.scales)))

    def _count(self, row: dict[str, Any], served: Choice, choice: Choice) -> None:
        self._requests += 1
        self._changed += served.scales != choice.scales
        for at, each in enumerate((served, choice)):
            self._tokens[at] += each.tokens
            self._scales[at].update(each.scales)
        if row["cost_ms"] is not None and self._per_token_ms is not None:
            more_ms = (choice.tokens - served.tokens) * self._per_token_ms
            self._costs[0] += row["cost_ms"]
            self._costs[1] += row["cost_ms"] + more_ms
            self._costed += 1

    def result(self) -> Replayed:
        labels = [label for label, _, _ in self._judged]
        clusters = Clusters.of([label.image for label in labels])
        weights = np.array([label.weight for label in labels])
        lost = np.array([each[1:] for each in self._judged]).reshape(-1, 2)
        regrets: list[Estimate | None] = [None, None]
        difference = None
        if labels:
            regrets = [clusters.share(lost[:, at], weights) for at in (0, 1)]
            difference = clusters.difference(lost[:, 1] - lost[:, 0], weights)
        served, candidate = (self._side(at, regrets[at]) for at in (0, 1))
        return Replayed(
            requests=self._requests,
            left_out=dict(self._left_out),
            changed=self._changed / max(self._requests, 1),
            served=served,
            candidate=candidate,
            regret_difference=difference,
            labels=len(labels),
            uniform=sum(label.uniform for label in labels),
        )

    def _side(self, at: int, regret: Estimate | None) -> Side:
        images = max(self._scales[at].total(), 1)
        return Side(
            tokens=self._tokens[at] / max(self._requests, 1),
            cost_ms=self._costs[at] / self._costed if self._costed else None,
            scales={scale: count / images for scale, count in sorted(self._scales[at].items())},
            regret=regret,
        )


def _labels(
    store: RecordStore, since: datetime | None, broken: Callable[[str], None]
) -> Iterator[tuple[str, _Label]]:
    columns = (*_LABEL_COLUMNS, "scales", "agrees")
    for table in store.read(LABELS, columns=columns, since=since, broken=broken):
        for row in table.to_pylist():
            agrees = [share >= AGREES_FROM for share in row["agrees"]]
            yield (
                row["request_id"],
                _Label(
                    image=row["image"],
                    weight=1 / row["probability"],
                    uniform=row["stratum"] == UNIFORM,
                    agrees=dict(zip(row["scales"], agrees, strict=True)),
                    finest=agrees[-1],
                ),
            )


def _not_answered(row: Mapping[str, Any], model_identity: str | None) -> str | None:
    if row["endpoint"] != ANSWERED or row["code"] != OK or not row["images"]:
        return "not answered"
    return None if row["model_identity"] == model_identity else "another model"


def _unusable(row: Mapping[str, Any], model_identity: str) -> str | None:
    """Why an artefact cannot decide on a record."""
    if (why := _not_answered(row, model_identity)) is not None:
        return why
    if row["question_values"] is None or any(i["features"] is None for i in row["images"]):
        return "without features"
    versions = (row["image_features"], row["question_features"])
    return None if versions == (IMAGE_FEATURES, QUESTION_FEATURES) else "of other features"


def _asks(row: Mapping[str, Any]) -> QuestionFeatures:
    names = ("question_values", "named_colours", "ngram_buckets", "ngram_counts")
    return QuestionFeatures(*(tuple(row[name]) for name in names))


def _chances(
    artifact: Artifact, designs: Sequence[NDArray[np.float32]]
) -> Iterator[tuple[float, ...]]:
    if designs:
        raw = artifact.model.predict(np.stack(designs))
        yield from map(tuple, artifact.calibration.apply(raw).tolist())


def _decide(
    row: Mapping[str, Any],
    ladder: ScaleLadder,
    p_success: Sequence[tuple[float, ...]],
    artifact: Artifact,
    per_token_ms: float | None,
) -> Decision:
    """As the service would. How much room the context had is not recorded: where it was short, as
    much as was used.
    """
    images = row["images"]
    cases = [
        ImageCase(tuple(image["tokens_per_scale"]), p, image["detail"])
        for image, p in zip(images, p_success, strict=True)
    ]
    limits = Limits(
        max_regret=0.0 if row["bound"] is None else row["bound"],
        scale=row["asked_scale"],
        min_scale=row["asked_min_scale"],
        max_scale=row["asked_max_scale"],
        latency_budget_ms=row["asked_latency_budget_ms"],
    )
    used, cost_ms = sum(image["tokens"] for image in images), row["cost_ms"] or 0.0
    short = any(image["reason"] == Reason.CONTEXT for image in images)

    def cost(tokens: int) -> float:
        return float(cost_ms + (tokens - used) * (per_token_ms or 0.0))

    room = used if short else sys.maxsize
    return decide(cases, ladder, limits, artifact.thresholds.at, cost, room)
