"""Metrics whose values are kept elsewhere, and asked for when somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.drift import DriftState

NONE = "none"  # version label of a predictor that is not there


class Labelled(Collector):
    """Another collector's metrics with the same labels added to every series."""

    def __init__(self, metrics: Collector, labels: Mapping[str, str]) -> None:
        self._metrics = metrics
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for metric in self._metrics.collect():
            metric.samples = [
                s._replace(labels={**s.labels, **self._labels}) for s in metric.samples
            ]
            yield metric


class PredictorInfo(Collector):
    """The predictor in use, as a label of a gauge that is always 1. It may change at any time."""

    def __init__(self) -> None:
        self.version: Callable[[], str | None] = lambda: None

    def collect(self) -> Iterator[Metric]:
        metric = GaugeMetricFamily(
            "m3_predictor_info",
            "Always 1; the predictor in use, `none` without one.",
            labels=["version"],
        )
        metric.add_metric([self.version() or NONE], 1)
        yield metric


class DriftMetrics(Collector):
    """How far traffic has moved, where that is watched."""

    def __init__(self) -> None:
        self.now: Callable[[], DriftState | None] = lambda: None

    def collect(self) -> Iterator[Metric]:
        state = self.now()
        psi = GaugeMetricFamily(
            "m3_drift_psi",
            "Population stability index of what moved most against the samples that the predictor "
            "was certified on: features of the picture, of the question, the score.",
            labels=["kind"],
        )
        images = GaugeMetricFamily(
            "m3_drift_images", "Different images of the window that is compared.", labels=[]
        )
        warning = GaugeMetricFamily(
            "m3_drift_warning", "1 while one of them is beyond router.drift.warn_at.", labels=[]
        )
        if state is not None:
            for kind, shift in state.shifts.items():
                psi.add_metric([kind], shift.psi)
            images.add_metric([], state.images)
            warning.add_metric([], state.warning)
        yield from (psi, images, warning)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of the records of an ingress: on the stream, lost, still in memory only."""

    acknowledged: int = 0
    dropped: int = 0
    waiting: int = 0


class RecordCounts(Collector):
    """How an ingress stands with its records."""

    def __init__(self) -> None:
        self.now: Callable[[], Recorded] = Recorded

    def collect(self) -> Iterator[Metric]:
        counts = self.now()
        total = CounterMetricFamily(
            "m3_records",
            "Records of requests by what became of them: acknowledged by the stream, or dropped.",
            labels=["outcome"],
        )
        total.add_metric(["acknowledged"], counts.acknowledged)
        total.add_metric(["dropped"], counts.dropped)
        yield total
        waiting = GaugeMetricFamily(
            "m3_records_waiting", "Records in memory only, until the stream takes them.", labels=[]
        )
        waiting.add_metric([], counts.waiting)
        yield waiting


@dataclass(frozen=True, slots=True)
class Observations:
    """What an observer of this ingress has seen.

    Args:
        version: of the predictor that watches; None where none does.
        refused: a newer one cannot be used.
        images: by the scale that was chosen and the one that it would have chosen.
        failures: requests that it could not decide on.
    """

    version: str | None = None
    refused: bool = False
    images: Mapping[tuple[int, int], int] = field(default_factory=dict)
    failures: int = 0


class ObserverCounts(Collector):
    """A predictor that only watches, beside the one that serves."""

    def __init__(self) -> None:
        self.now: Callable[[], Observations] = Observations

    def collect(self) -> Iterator[Metric]:
        seen = self.now()
        info = GaugeMetricFamily(
            "m3_observer_info",
            "Always 1; the predictor that only watches, `none` without one.",
            labels=["version"],
        )
        info.add_metric([seen.version or NONE], 1)
        refused = GaugeMetricFamily(
            "m3_observer_refused",
            "1 while the predictor that is to watch cannot be used.",
            labels=[],
        )
        refused.add_metric([], float(seen.refused))
        images = CounterMetricFamily(
            "m3_observed_images",
            "Images by the scale that was chosen and the one that the predictor that only watches "
            "would have chosen.",
            labels=["scale", "observed"],
        )
        for (scale, observed), count in seen.images.items():
            images.add_metric([str(scale), str(observed)], count)
        failures = CounterMetricFamily(
            "m3_observer_failures",
            "Requests on which the predictor that only watches failed to decide.",
            labels=[],
        )
        failures.add_metric([], seen.failures)
        yield from (info, refused, images, failures)
