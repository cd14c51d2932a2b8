"""Bytes by key in Redis, within a time limit. Whatever Redis does, the worst outcome is a miss."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from m3_backend.breaker import CircuitBreaker

_PREFIX = b"m3:features:"
_READERS = 4
_WRITERS = 2
_PENDING_WRITES = 32


class StoreUnavailableError(Exception):
    """Redis did not answer in time, or is left alone because it lately did not."""


class RedisStore:
    """Reads wait at most for the time they are given; writes happen behind the caller's back.

    A socket time-out alone would not bound a read (a server that drips bytes renews it with each
    one), so reads run on threads of this store and are abandoned when their time is up. Writes have
    threads of their own: however many are pending, none delays a read.

    Args:
        ttl_s: seconds a value lives, so that Redis may evict it (`volatile-lfu`).
        timeout_s: of connecting and of any one socket operation.
    """

    def __init__(
        self,
        url: str,
        *,
        ttl_s: int,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),  # the client's default would wait for seconds
        )
        self._ttl_s = ttl_s
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="feature-read")
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="feature-write")
        self._writes = threading.BoundedSemaphore(_PENDING_WRITES)
        self._lock = threading.Lock()
        self.breaker = CircuitBreaker(clock)
        self.errors = 0

    def fetch(
        self, candidates: Sequence[tuple[bytes, int]], timeout_s: float
    ) -> tuple[int, bytes] | None:
        """The first value that is there in its expected size, as (index, value), or None.

        Args:
            candidates: (key, exact size in bytes), most wanted first. A value of any other size is
                never transferred.
            timeout_s: for everything together.

        Raises:
            StoreUnavailableError: `errors` counts it unless Redis was not even asked.
        """
        if not self.breaker.allows():
            raise StoreUnavailableError
        future = self._readers.submit(self._fetch, candidates)
        try:
            found = future.result(timeout_s)
        except Exception as error:  # damaged replies break the client's parser in many ways
            if not future.cancel():  # if it was still queued, Redis never saw it
                self._failed()
            raise StoreUnavailableError from error
        self.breaker.succeeded()
        return found

    def _fetch(self, candidates: Sequence[tuple[bytes, int]]) -> tuple[int, bytes] | None:
        with self._client.pipeline(transaction=False) as pipeline:
            for key, _ in candidates:
                pipeline.strlen(_PREFIX + key)
            lengths = pipeline.execute()
        for index, ((key, size), length) in enumerate(zip(candidates, lengths, strict=True)):
            if length == size:
                # A range, so that a value that grew in between is not transferred whole either.
                value: Any = self._client.getrange(_PREFIX + key, 0, size - 1)
                if not isinstance(value, bytes):
                    raise redis.InvalidResponse("not a string")
                return index, value
        return None

    def store(self, key: bytes, make_value: Callable[[], bytes]) -> None:
        """Write in the background; dropped while Redis is down or too many writes are pending.

        Only reads tell that Redis is well again: one may be slow enough to fail every read, and
        still take what is written.
        """
        if self.breaker.state != "closed" or not self._writes.acquire(blocking=False):
            return
        future = self._writers.submit(
            lambda: self._client.set(_PREFIX + key, make_value(), ex=self._ttl_s)
        )
        future.add_done_callback(self._stored)

    def _stored(self, future: Future[Any]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            if isinstance(error, redis.ResponseError):
                with self._lock:  # full or read-only: it still answers, so reads go on
                    self.errors += 1
            else:
                self._failed()
        self._writes.release()

    def _failed(self) -> None:
        self.breaker.failed()
        with self._lock:
            self.errors += 1

    def flush(self) -> None:
        """Wait for the writes that are under way."""
        for _ in range(_PENDING_WRITES):
            self._writes.acquire()
        self._writes.release(_PENDING_WRITES)

    def close(self) -> None:
        for threads in (self._readers, self._writers):
            threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()
