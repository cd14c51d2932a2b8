"""The stream between those who write records and the recorder: a Redis stream with one group.

A record is acknowledged when Redis has taken it; how safe it is then is that server's own
persistence. The recorder takes an entry off the stream only after its file is on disk, so whoever
dies in between leaves it to be written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_PREFIX = "m3:records:"
_GROUP = "recorder"
_FIELD = b"r"
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A record on the stream: its place there, and what was written."""

    id: bytes
    data: bytes


class RecordStream:
    """One end of the stream of one kind of record. Blocks: not for an event loop.

    Args:
        url: of the Redis.
        kind: names the stream.
        longest: entries that it may hold, more or less; beyond it none is taken.
    """

    def __init__(self, url: str, kind: str, *, longest: int, timeout_s: float = _TIMEOUT_S) -> None:
        self._name = _PREFIX + kind
        self._longest = longest
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )

    def append(self, records: Sequence[bytes]) -> int:
        """Puts records on the stream, the first ones first, as many as there is room for; how many.

        Raises:
            redis.RedisError: it is unknown which of them were taken.
        """
        room = max(self._longest - self.length(), 0)
        with self._redis.pipeline(transaction=True) as pipeline:  # all of them, or none
            for record in records[:room]:
                pipeline.xadd(self._name, {_FIELD: record})
            return len(pipeline.execute())

    def length(self) -> int:
        """Entries that no file holds yet."""
        found: Any = self._redis.xlen(self._name)
        return int(found)

    def take(self, consumer: str, count: int, abandoned_ms: int) -> list[Entry]:
        """Entries for one consumer: those that it had taken and not done, those that others have
        left for so long, then new ones.

        Raises:
            redis.RedisError: Redis is away, or is none.
        """
        try:
            taken = list(self._take(consumer, count, abandoned_ms))
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            self._make_group()  # a stream that is new, or whose Redis began anew
            taken = list(self._take(consumer, count, abandoned_ms))
        return list({entry.id: entry for entry in taken}.values())  # its own may be claimed too

    def done(self, entries: Sequence[Entry]) -> None:
        """Takes entries off the stream: they are in files."""
        ids = [entry.id for entry in entries]
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.xack(self._name, _GROUP, *ids)
            pipeline.xdel(self._name, *ids)
            pipeline.execute()

    def leave(self, consumer: str) -> None:
        """Forgets a consumer that holds nothing."""
        pending: Any = self._redis.xpending_range(self._name, _GROUP, "-", "+", 1, consumer)
        if not pending:
            self._redis.xgroup_delconsumer(self._name, _GROUP, consumer)

    def close(self) -> None:
        self._redis.close()

    def _take(self, consumer: str, count: int, abandoned_ms: int) -> Iterator[Entry]:
        left = count
        for start in ("0", ">"):
            if start == ">" and left > 0:
                claimed: Any = self._redis.xautoclaim(
                    self._name, _GROUP, consumer, abandoned_ms, count=left
                )
                for entry in _entries(claimed[1]):
                    left -= 1
                    yield entry
            if left <= 0:
                return
            answer: Any = self._redis.xreadgroup(_GROUP, consumer, {self._name: start}, count=left)
            for _, raw in answer or ():
                for entry in _entries(raw):
                    left -= 1
                    yield entry

    def _make_group(self) -> None:
        try:
            self._redis.xgroup_create(self._name, _GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another recorder was faster
                raise


def _entries(raw: Any) -> Iterator[Entry]:
    for name, fields in raw:
        if fields:  # not one that was removed while it was pending
            yield Entry(name, fields.get(_FIELD, b""))
