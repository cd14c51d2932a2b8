"""What other processes count, shown among the ingress's own metrics: model replicas, and the other
ingress replicas, so that a scrape shows all of the service whichever of them it reaches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from deploy.recorder import RecorderStats
from deploy.shadow import ShadowStats
from m3_backend.stats import EngineStats
from predictor.regret import Estimate

logger = logging.getLogger("m3_router.deploy")

ASK_TIMEOUT_S = 2.0

S = TypeVar("S")
Told = Mapping[str, tuple[str, Callable[[S], float]]]  # metric → what it is, and where it stands

GAUGES: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "m3_replica_running_requests": ("Requests in the batch.", lambda s: s.running),
    "m3_replica_waiting_requests": ("Admitted requests outside the batch.", lambda s: s.waiting),
    "m3_replica_outstanding_tokens": (
        "Tokens still to be prefilled or generated.",
        lambda s: s.outstanding_tokens,
    ),
    "m3_replica_slots": ("Most requests that run at once.", lambda s: s.slots),
    "m3_kv_tokens": ("Tokens of KV memory.", lambda s: s.memory.tokens),
    "m3_kv_held_tokens": (
        "Of these, used by running requests; what several share counts once.",
        lambda s: s.memory.held,
    ),
    "m3_kv_idle_tokens": (
        "Of these, image prefixes kept for the next question about them.",
        lambda s: s.memory.idle,
    ),
    "m3_feature_cache_entries": ("Feature sets held in memory.", lambda s: s.cache.entries),
    "m3_feature_cache_bytes": ("Bytes of features in memory.", lambda s: s.cache.bytes),
    "m3_redis_breaker_open": (
        "1 while Redis is left alone after failures.",
        lambda s: s.cache.breaker == "open",
    ),
}
COUNTERS: dict[str, tuple[str, Callable[[EngineStats], float]]] = {
    "m3_prefix_hits": (
        "Requests whose image tokens were in KV memory already.",
        lambda s: s.memory.joined,
    ),
    "m3_preemptions": (
        "Requests that gave up their KV memory to others and started over.",
        lambda s: s.memory.preempted,
    ),
    "m3_vision_encodings": ("Images that the vision tower has encoded.", lambda s: s.cache.encodes),
    "m3_feature_cache_memory_hits": (
        "Images whose features were in memory.",
        lambda s: s.cache.memory_hits,
    ),
    "m3_feature_cache_redis_hits": (
        "Images whose features were in Redis.",
        lambda s: s.cache.redis_hits,
    ),
    "m3_feature_cache_misses": ("Images whose features were nowhere.", lambda s: s.cache.misses),
    "m3_redis_errors": ("Time-outs and failures of Redis.", lambda s: s.cache.redis_errors),
    "m3_redis_rejected": (
        "Stored features that failed a check and were not used.",
        lambda s: s.cache.redis_rejected,
    ),
}


class _Asked(Collector, Generic[S]):
    """What every replica of a deployment said when they were last asked.

    Args:
        ask: gives the statistics of every one, by its name.
    """

    silent: ClassVar[str]  # said in the log where they do not answer

    def __init__(self, ask: Callable[[], Awaitable[Mapping[str, S]]]) -> None:
        self._ask = ask
        self.latest: Mapping[str, S] = {}

    async def refresh(self) -> None:
        """Asks them. Where they do not answer in time the last figures stand."""
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                self.latest = await self._ask()
        except Exception as error:
            logger.warning("%s: %r", self.silent, error)

    def _families(self, label: str, gauges: Told[S], counters: Told[S]) -> Iterator[Metric]:
        for family, table in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (text, value) in table.items():
                metric = family(name, text, labels=[label])
                for replica, stats in self.latest.items():
                    metric.add_metric([replica], value(stats))
                yield metric


class ReplicaMetrics(_Asked[EngineStats]):
    """The statistics of every model replica, labelled by replica."""

    silent = "replicas did not report their statistics"

    def collect(self) -> Iterator[Metric]:
        yield from self._families("replica", GAUGES, COUNTERS)


RECORDER_GAUGES: dict[str, tuple[str, Callable[[RecorderStats], float]]] = {
    "m3_records_stream_length": ("Records that no file holds yet.", lambda s: s.waiting),
    "m3_recorder_failing": ("1 while records cannot be written.", lambda s: s.failing),
}
REGRET_GAUGES: dict[str, tuple[str, Callable[[Estimate], float]]] = {
    "m3_regret": (
        "Share of requests that the finest scale answers and the chosen one does not, by labels of "
        "the uniform stratum, for each of the last predictors and what it was tightened to.",
        lambda e: e.regret,
    ),
    "m3_regret_low": ("Its 95% confidence sequence: at least this.", lambda e: e.low),
    "m3_regret_high": ("Its 95% confidence sequence: at most this.", lambda e: e.high),
    "m3_regret_bound": ("Mean of the bounds that were promised with them.", lambda e: e.bound),
    "m3_regret_labels": ("Labels that the estimate is made from.", lambda e: e.labels),
}
THRESHOLD_GAUGES: dict[str, tuple[str, Callable[[Estimate], float]]] = {
    "m3_threshold_regret": (
        "The same, had all requests been decided at the price certified for this bound; of "
        "predictors that promise agreement.",
        lambda e: e.regret,
    ),
    "m3_threshold_regret_low": (
        "Its 95% confidence sequence: at least this. Above the bound it is broken.",
        lambda e: e.low,
    ),
}
RECORDER_COUNTERS: dict[str, tuple[str, Callable[[RecorderStats], float]]] = {
    "m3_recorder_written": ("Records put into files.", lambda s: s.written),
    "m3_recorder_files": ("Files of records written.", lambda s: s.files),
    "m3_recorder_rejected": (
        "Entries of the stream that are no records; they lie in `rejected/`.",
        lambda s: s.rejected,
    ),
    "m3_recorder_errors": (
        "Attempts to write records that failed; they stay on the stream.",
        lambda s: s.errors,
    ),
}


class RecorderMetrics(_Asked[RecorderStats]):
    """The statistics of every recorder, labelled by recorder."""

    silent = "the recorder did not report its statistics"

    def collect(self) -> Iterator[Metric]:
        yield from self._families("recorder", RECORDER_GAUGES, RECORDER_COUNTERS)
        for name, (text, told) in REGRET_GAUGES.items():
            metric = GaugeMetricFamily(name, text, labels=["recorder", "predictor", "tightened_to"])
            for recorder, stats in self.latest.items():
                for (version, to), estimate in stats.regret.items():
                    labels = [recorder, version, "no" if to is None else f"{to:g}"]
                    metric.add_metric(labels, told(estimate))
            yield metric
        for name, (text, told) in THRESHOLD_GAUGES.items():
            metric = GaugeMetricFamily(name, text, labels=["recorder", "predictor", "bound"])
            for recorder, stats in self.latest.items():
                for version, found in stats.thresholds.items():
                    for bound, estimate in found.items():
                        metric.add_metric([recorder, version, f"{bound:g}"], told(estimate))
            yield metric


class ShadowMetrics(_Asked[ShadowStats]):
    """What became of drawn requests in every model replica."""

    silent = "replicas did not report their shadow labels"

    def collect(self) -> Iterator[Metric]:
        outcomes = CounterMetricFamily(
            "m3_shadow_draws",
            "Drawn requests by what became of them (labelled, late, gone: without features, "
            "failed) and by the load at which they came (low, half, full).",
            labels=["replica", "outcome", "load"],
        )
        seconds = CounterMetricFamily(
            "m3_shadow_seconds", "Time spent on shadow labels.", labels=["replica"]
        )
        interrupted = CounterMetricFamily(
            "m3_shadow_interrupted",
            "Shadow labels that were begun and gave way to requests.",
            labels=["replica"],
        )
        for replica, stats in self.latest.items():
            for (outcome, load), count in stats.outcomes.items():
                outcomes.add_metric([replica, outcome, load], count)
            seconds.add_metric([replica], stats.seconds)
            interrupted.add_metric([replica], stats.interrupted)
        yield from (outcomes, seconds, interrupted)


Exposed = Sequence[Metric]  # what one ingress replica counts, labelled with its name


class AllIngresses(Collector):
    """What every ingress replica counts: this one now, the others when they were last asked.

    Args:
        own: of this replica.
        ask: gives the metrics of every ingress replica, by its name.
        name: this replica's.
    """

    def __init__(
        self, own: Collector, ask: Callable[[], Awaitable[Mapping[str, Exposed]]], name: str
    ) -> None:
        self._own, self._ask, self._name = own, ask, name
        self._others: list[Exposed] = []

    async def refresh(self) -> None:
        """Asks the others. Where they do not answer in time the last figures stand."""
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                told = await self._ask()
        except Exception as error:
            logger.warning("other ingress replicas did not report their metrics: %r", error)
        else:
            self._others = [exposed for name, exposed in told.items() if name != self._name]

    def collect(self) -> Iterator[Metric]:
        """Every metric once, with the series of all replicas."""
        merged: dict[str, Metric] = {}
        for exposed in ([*self._own.collect()], *self._others):
            for metric in exposed:
                whole = merged.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
                )
                whole.samples += metric.samples
        yield from merged.values()
