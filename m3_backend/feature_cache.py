"""Pooled features by image and scale: memory, then Redis, then the vision tower, which runs once.

A finer entry answers a coarser request, by pooling along the one chain of its scale
(`vision.pool`), so an answer does not depend on which entry was hit. Entries are kept as they are,
or in eight bits (`quantised`). Redis is an optimisation with a time limit: if it is slow, full,
down or lying, the request is a miss.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from m3_backend import wire
from m3_backend.messages import CacheLevel
from m3_backend.quantised import STEP_BYTES, pack, pool_packed, unpack
from m3_backend.redis_store import RedisStore, StoreUnavailableError
from m3_backend.scales import ScaleLadder
from m3_backend.stats import CacheStats
from m3_backend.vision import pool, pooling_chain

Storage = Literal["exact", "int8"]

_SMOOTHING = 0.2
_FETCH_BASE_MS = 1.0
_FETCH_BYTES_PER_MS = 500_000.0  # until measured
_PINNED_SHARE = 0.25  # of the memory, at most
_MEASURED_FROM_BYTES = 64 << 10  # smaller fetches say nothing about bandwidth


@dataclass(frozen=True, slots=True)
class FeatureSource:
    """What decides the features of an image besides the scale.

    Args:
        image: SHA-256 of the file, hex.
        model, processor: identities of the checkpoint and of its preprocessing.
        salt: tenants with different salts never see each other's entries.
        tiles, hidden, dtype: of the features, known before they are computed.
        storage: how they are kept.
    """

    image: str
    model: str
    processor: str
    salt: str
    ladder: ScaleLadder
    tiles: int
    hidden: int
    dtype: torch.dtype
    storage: Storage = "exact"

    def key(self, scale: int) -> bytes:
        """SHA-256 over all of it, each field with its length: no two sources share a key."""
        digest = hashlib.sha256()
        shape = f"{self.tiles}x{scale}x{self.hidden}"
        kind = str(self.dtype) if self.storage == "exact" else f"{self.dtype} {self.storage}"
        for field in (self.image, self.model, self.processor, kind, shape, self.salt):
            encoded = field.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.digest()

    def shape(self, scale: int) -> wire.Shape:
        """Of an entry."""
        return self.tiles, scale, self.hidden + (STEP_BYTES if self.storage == "int8" else 0)

    @property
    def entry_dtype(self) -> torch.dtype:
        return torch.int8 if self.storage == "int8" else self.dtype

    def entry(self, features: Tensor) -> Tensor:
        """Features [tiles, scale, hidden] as they are kept."""
        return pack(features) if self.storage == "int8" else features

    def features(self, entry: Tensor) -> Tensor:
        """Back again."""
        return unpack(entry, self.dtype) if self.storage == "int8" else entry

    def pool(self, entry: Tensor, scale: int) -> Tensor:
        """The entry at a coarser scale, from that of a finer one on its chain."""
        if self.storage == "int8":
            return pool_packed(entry, self.ladder, scale, self.dtype)
        return pool(entry, self.ladder, scale)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Full-grid features [tiles, grid², hidden], and milliseconds of encoding without waiting."""

    features: Tensor
    ms: float


@dataclass(frozen=True, slots=True)
class Lookup:
    """Features [tiles, scale, hidden] in main memory and what it took to get them.

    `degraded` is true if Redis is configured but could not be asked.
    """

    features: Tensor
    level: CacheLevel
    fetch_ms: float
    encode_ms: float
    degraded: bool


class FeatureCache:
    """Thread-safe.

    Args:
        memory_bytes: bound of the in-process level; the least recently used entry goes first, of
            those that are not pinned.
        redis_url: the level shared between processes, or None.
        ttl_s: seconds an entry lives in Redis.
        timeout_s: longest wait for Redis, whatever encoding would take.
        stall_s: shortest wait, so that a busy machine is not taken for a broken Redis.
        secret: signs the values, for a Redis that others can write to.
        storage: how the entries of those who ask `source`s of it are kept.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        memory_bytes: int,
        redis_url: str | None = None,
        *,
        ttl_s: int = 24 * 3600,
        timeout_s: float = 0.25,
        stall_s: float = 0.1,
        secret: bytes = b"",
        storage: Storage = "exact",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._limit = memory_bytes
        self._timeout_s, self._stall_s = timeout_s, stall_s
        self._secret = hashlib.sha256(secret).digest() if secret else b""
        self.storage: Storage = storage
        self._clock = clock
        self._redis = (
            None
            if redis_url is None
            else RedisStore(redis_url, ttl_s=ttl_s, timeout_s=timeout_s, clock=clock)
        )
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, Tensor] = OrderedDict()
        self._bytes = 0  # of pinned entries too
        self._pinned: dict[bytes, tuple[Tensor, float]] = {}  # features, and until when
        self._pinned_bytes = 0
        self._flights: dict[bytes, Future[Tensor]] = {}
        self._hits: dict[CacheLevel, int] = {"memory": 0, "redis": 0, "miss": 0}
        self._encodes = 0
        self._rejected = 0
        self._encode_ms: float | None = None
        self._bytes_per_ms = _FETCH_BYTES_PER_MS

    def get(self, source: FeatureSource, scale: int, encode: Callable[[], Encoded]) -> Lookup:
        """The features of `source` at `scale`, from the cheapest level that has them.

        Of callers that ask for one image at once, one goes to Redis or encodes; the others wait.

        Args:
            encode: gives the full-grid features; its errors pass through, to everyone who waited
                for it.
        """
        started = self._clock()
        chain = pooling_chain(source.ladder, scale)
        flight_key = source.key(source.ladder.grid_side**2)
        while True:
            with self._lock:
                found = self._recall(source, chain)
                flight = self._flights.get(flight_key)
                if found is None and flight is None:
                    flight = self._flights[flight_key] = Future()
                    break
            if found is None:
                assert flight is not None
                shared = flight.result()
                found = shared if shared.shape[1] in chain else None
            if found is not None:
                features = source.features(source.pool(found, scale))
                return self._counted(features, "memory", self._since(started))
        try:
            lookup, origin = self._fetch_or_encode(source, scale, chain, encode)
        except BaseException as error:
            self._land(flight_key).set_exception(error)
            raise
        self._land(flight_key).set_result(origin)
        return lookup

    def peek(self, source: FeatureSource) -> dict[int, Tensor] | None:
        """The features at every scale if some level has the finest. Nobody waits for this."""
        chain = pooling_chain(source.ladder, source.ladder.finest)
        with self._lock:
            found = self._recall(source, chain)
        if found is None:
            try:
                found = self._fetch(source, chain)
            except StoreUnavailableError:
                return None
        if found is None:
            return None
        scales = source.ladder.scales
        return {scale: source.features(source.pool(found, scale)) for scale in scales}

    def pin(self, source: FeatureSource, seconds: float) -> bool:
        """Keeps the finest features of `source` in memory for so long, if they are there and there
        is room: a quarter of the memory holds what is pinned. Whether they are kept.
        """
        with self._lock:
            self._unpin_overdue()
            until = self._clock() + seconds
            for key in _finest_keys(source):
                if key in self._pinned:
                    features, before = self._pinned[key]
                    self._pinned[key] = features, max(before, until)
                    return True
                found = self._entries.get(key)
                if found is None:
                    continue
                if self._pinned_bytes + found.nbytes > _PINNED_SHARE * self._limit:
                    return False
                self._pinned[key] = self._entries.pop(key), until
                self._pinned_bytes += found.nbytes
                return True
            return False

    def unpin(self, source: FeatureSource) -> None:
        """Lets go of what was pinned; it is then the most recently used entry."""
        with self._lock:
            for key in _finest_keys(source):
                self._unpin(key)

    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(
                memory_hits=self._hits["memory"],
                redis_hits=self._hits["redis"],
                misses=self._hits["miss"],
                encodes=self._encodes,
                redis_errors=self._redis.errors if self._redis else 0,
                redis_rejected=self._rejected,
                breaker=self._redis.breaker.state if self._redis else None,
                entries=len(self._entries) + len(self._pinned),
                bytes=self._bytes,
            )

    def flush(self) -> None:
        """Wait until what was to be written to Redis is written."""
        if self._redis is not None:
            self._redis.flush()

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()

    def _fetch_or_encode(
        self,
        source: FeatureSource,
        scale: int,
        chain: tuple[int, ...],
        encode: Callable[[], Encoded],
    ) -> tuple[Lookup, Tensor]:
        """The answer, and the entry it was pooled from (which may answer others)."""
        started = self._clock()
        degraded = False
        try:
            fetched = self._fetch(source, chain)
        except StoreUnavailableError:
            fetched, degraded = None, True
        fetch_ms = self._since(started)
        if fetched is not None:
            entry = source.pool(fetched, scale)
            self._remember(source, fetched, entry)
            return self._counted(source.features(entry), "redis", fetch_ms), fetched
        encoded = encode()
        full, encode_ms = source.entry(encoded.features), encoded.ms
        with self._lock:
            self._encodes += 1
            previous = encode_ms if self._encode_ms is None else self._encode_ms
            self._encode_ms = previous + _SMOOTHING * (encode_ms - previous)
        entry = source.pool(full, scale)
        self._remember(source, full, entry)
        self._share(source, full, entry)
        features = source.features(entry)
        return self._counted(features, "miss", fetch_ms, encode_ms, degraded=degraded), full

    def _fetch(self, source: FeatureSource, chain: tuple[int, ...]) -> Tensor | None:
        """The entry that Redis has for this chain, if it is sound. Raises StoreUnavailableError."""
        if self._redis is None:
            return None
        sizes = [wire.size_of(source.shape(scale), source.entry_dtype) for scale in chain]
        candidates = [(source.key(s), size) for s, size in zip(chain, sizes, strict=True)]
        started = self._clock()
        found = self._redis.fetch(candidates, self._patience_s())
        if found is None:
            return None
        index, blob = found
        if len(blob) >= _MEASURED_FROM_BYTES:
            speed = len(blob) / max(self._since(started) - _FETCH_BASE_MS, 0.1)
            self._bytes_per_ms += _SMOOTHING * (speed - self._bytes_per_ms)
        scale = chain[index]
        try:
            return wire.decode(
                blob, source.key(scale), source.shape(scale), source.entry_dtype, self._secret
            )
        except wire.WireError:
            with self._lock:
                self._rejected += 1
            return None

    def _patience_s(self) -> float:
        """No longer than encoding takes, within the configured bounds."""
        if self._encode_ms is None:
            return self._timeout_s
        return min(self._timeout_s, max(self._encode_ms / 1e3, self._stall_s))

    def _share(self, source: FeatureSource, *entries: Tensor) -> None:
        """Offer to Redis what is quicker to fetch than to encode again."""
        if self._redis is None or self._encode_ms is None:
            return
        for scale, entry in {entry.shape[1]: entry for entry in entries}.items():
            size = wire.size_of(source.shape(scale), source.entry_dtype)
            if _FETCH_BASE_MS + size / self._bytes_per_ms < self._encode_ms:
                key = source.key(scale)
                self._redis.store(key, partial(wire.encode, key, entry, self._secret))

    def _recall(self, source: FeatureSource, chain: tuple[int, ...]) -> Tensor | None:
        for scale in chain:
            key = source.key(scale)
            if (entry := self._entries.get(key)) is not None:
                self._entries.move_to_end(key)
                return entry
            if (pinned := self._pinned.get(key)) is not None:
                return pinned[0]
        return None

    def _remember(self, source: FeatureSource, *entries: Tensor) -> None:
        with self._lock:
            for entry in entries:
                key = source.key(entry.shape[1])
                if key in self._entries or key in self._pinned or entry.nbytes > self._limit:
                    continue
                self._entries[key] = entry
                self._bytes += entry.nbytes
            self._unpin_overdue()
            while self._bytes > self._limit:
                _, evicted = self._entries.popitem(last=False)
                self._bytes -= evicted.nbytes

    def _unpin(self, key: bytes) -> None:
        if key in self._pinned:
            features, _ = self._pinned.pop(key)
            self._pinned_bytes -= features.nbytes
            self._entries[key] = features

    def _unpin_overdue(self) -> None:
        now = self._clock()
        for key in [key for key, (_, until) in self._pinned.items() if until <= now]:
            self._unpin(key)

    def _land(self, flight_key: bytes) -> Future[Tensor]:
        with self._lock:
            return self._flights.pop(flight_key)

    def _counted(
        self,
        features: Tensor,
        level: CacheLevel,
        fetch_ms: float,
        encode_ms: float = 0.0,
        *,
        degraded: bool = False,
    ) -> Lookup:
        with self._lock:
            self._hits[level] += 1
        return Lookup(features, level, fetch_ms, encode_ms, degraded)

    def _since(self, started: float) -> float:
        return (self._clock() - started) * 1e3


def _finest_keys(source: FeatureSource) -> list[bytes]:
    """Of what gives the finest scale's features without the tower."""
    return [source.key(scale) for scale in pooling_chain(source.ladder, source.ladder.finest)]
