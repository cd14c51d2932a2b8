"""The recorder: takes records off the Redis stream and puts them into files.

Entries leave the stream after their file is on disk. Killed in between, or on a full disk, they are
written again, by this recorder or another one; readers take each record once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import redis

from deploy.config import Config
from predictor.record_store import (
    CORRECTNESS,
    FEEDBACK,
    LABELS,
    REQUESTS,
    Kind,
    RecordStore,
)
from predictor.regret import Estimate, RegretLedger, Served
from router.record_stream import RecordStream
from router.tightening import Board, Publisher

logger = logging.getLogger("m3_router.records")

# Longer than any batch takes to write: what a recorder has held for so long, it will not write.
ABANDONED_MS = 60_000
COMPACT_EVERY_S = 600.0
STREAM_TIMEOUT_S = 5.0
KINDS = (REQUESTS, LABELS, FEEDBACK, CORRECTNESS)
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class RecorderStats:
    """What a recorder has done since it started.

    Args:
        written: records, those written again included.
        files: files that hold them.
        rejected: entries that were no records, kept in `rejected/`.
        errors: attempts that failed, because of the disk or of Redis.
        waiting: entries on the stream when it last looked.
        failing: whether the last attempt failed.
        regret: what the labels in files say of each predictor's decisions.
        thresholds: and of the price of each of its bounds.
    """

    written: int = 0
    files: int = 0
    rejected: int = 0
    errors: int = 0
    waiting: int = 0
    failing: bool = False
    regret: Mapping[Served, Estimate] = field(default_factory=dict)
    thresholds: Mapping[str, Mapping[float, Estimate]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lane:
    """One kind of record: where it comes from, and as what it is kept."""

    kind: Kind
    stream: RecordStream


class Recorder:
    """Writes what is on the streams, a batch at a time. Any number may run at once.

    Args:
        name: of this consumer, its own.
        batch: most records in a file.
        retention_days: whole days that are kept; None keeps all.
        publisher: tells every ingress what labels say of thresholds; None tells nobody.
        clock: Unix time, seconds.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        store: RecordStore,
        *,
        name: str,
        batch: int,
        retention_days: int | None = None,
        publisher: Publisher | None = None,
        clock: Callable[[], float] = time.time,
        abandoned_ms: int = ABANDONED_MS,
    ) -> None:
        self._lanes, self._store, self._name = tuple(lanes), store, name
        self._batch, self._retention_days, self._clock = batch, retention_days, clock
        self._abandoned_ms = abandoned_ms
        self._lock = threading.Lock()  # one batch at a time
        self._compacted_at = float("-inf")
        self._ledger = RegretLedger()
        self._publisher = publisher
        self._broken: set[tuple[str, float]] = set()  # predictors and bounds of which it was said
        self.stats = RecorderStats()

    def write(self) -> bool:
        """Writes a batch of every kind; whether there may be more at once. Never raises."""
        with self._lock:
            try:
                more = [self._write(lane) for lane in self._lanes]
                waiting = sum(lane.stream.length() for lane in self._lanes)
            except Exception as error:  # damaged replies break the client's parser in many ways
                if not self.stats.failing:
                    logger.error("records stay on the stream, they cannot be written: %r", error)
                self.stats = replace(self.stats, errors=self.stats.errors + 1, failing=True)
                return False
            if self.stats.failing:
                logger.warning("records are written again")
            self.stats = replace(self.stats, waiting=waiting, failing=False)
            return any(more)

    def write_all(self) -> None:
        """Writes until the streams are empty, or something fails."""
        while self.write():
            pass

    def keep_house(self) -> None:
        """Now and then: puts small files together, forgets days that are over. Never raises."""
        if self._clock() - self._compacted_at < COMPACT_EVERY_S:
            return
        self._compacted_at = self._clock()
        now = datetime.fromtimestamp(self._clock(), UTC)
        self._estimate(since=now - timedelta(days=1))  # what other recorders wrote
        today = now.date()
        try:
            for lane in self._lanes:
                self._store.compact(lane.kind, today)
                if self._retention_days is not None:
                    oldest = today - timedelta(days=self._retention_days)
                    if gone := self._store.forget_before(lane.kind, oldest):
                        logger.info("forgot %s of %s", lane.kind.name, ", ".join(map(str, gone)))
        except Exception as error:
            logger.error("files of records could not be put together: %r", error)

    def run(self, every_s: float, stopping: threading.Event) -> None:
        """Writes again and again, until it is stopped. After failures it waits longer."""
        self._estimate(since=None)
        pause_s = every_s
        while not stopping.wait(pause_s):
            more = self.write()
            self.keep_house()
            if self.stats.failing:
                pause_s = min(max(2 * pause_s, 0.1), max(_LONGEST_PAUSE_S, every_s))
            else:
                pause_s = 0.0 if more else every_s

    def close(self) -> None:
        """Leaves the group. What it holds stays for others."""
        for lane in self._lanes:
            try:
                lane.stream.leave(self._name)
            except redis.RedisError as error:
                logger.debug("did not leave the group: %r", error)
            lane.stream.close()

    def _estimate(self, since: datetime | None) -> None:
        """Takes in the labels that are in files."""
        try:
            with self._lock:
                self._ledger.read(self._store, since)
                self._tell_regret()
        except Exception as error:
            logger.error("labels cannot be read, regret is not estimated: %r", error)

    def _tell_regret(self) -> None:
        thresholds = self._ledger.thresholds()
        self.stats = replace(self.stats, regret=self._ledger.estimates(), thresholds=thresholds)
        if self._publisher is not None:
            self._publisher.publish(self._ledger.lows())
        for version, found in thresholds.items():
            for bound, estimate in found.items():
                if estimate.is_broken and (version, bound) not in self._broken:
                    self._broken.add((version, bound))
                    logger.warning(
                        "predictor %s breaks its bound of %g: regret is at least %.3f with 95%% "
                        "confidence (%d labels); retrain, or lower router.max_regret",
                        version,
                        bound,
                        estimate.low,
                        estimate.labels,
                    )

    def _write(self, lane: Lane) -> bool:
        entries = lane.stream.take(self._name, self._batch, self._abandoned_ms)
        if not entries:
            return False
        table, broken = lane.kind.decode([entry.data for entry in entries])
        if broken:
            logger.error("%d entries are no %s; see rejected/", len(broken), lane.kind.name)
            self._store.reject(lane.kind, [entries[at].data for at in broken], self._clock())
        files = self._store.append(lane.kind, table)
        lane.stream.done(entries)
        if lane.kind is LABELS:
            self._ledger.add(table)
            self._tell_regret()
        self.stats = replace(
            self.stats,
            written=self.stats.written + len(table),
            files=self.stats.files + files,
            rejected=self.stats.rejected + len(broken),
        )
        return len(entries) >= self._batch


def open_recorder(config: Config, name: str) -> Recorder:
    """The recorder of a configuration that keeps records."""
    url, root, settings = config.records_redis_url, config.records_store, config.records
    assert url is not None
    assert root is not None
    lanes = [Lane(kind, open_stream(config, kind)) for kind in KINDS]
    return Recorder(
        lanes,
        RecordStore(root),
        name=name,
        batch=settings.batch,
        retention_days=settings.retention_days,
        publisher=Publisher(Board(url)),
    )


def open_stream(config: Config, kind: Kind, timeout_s: float = STREAM_TIMEOUT_S) -> RecordStream:
    """One end of the stream of one kind, where records are kept."""
    url = config.records_redis_url
    assert url is not None
    return RecordStream(url, kind.name, longest=config.records.stream_length, timeout_s=timeout_s)
