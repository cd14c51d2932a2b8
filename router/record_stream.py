"""The stream between those who write records and the recorder: a Redis stream with one group.

A record is acknowledged when Redis has taken it; how safe it is then is that server's own
persistence. The recorder takes an entry off the stream only after its file is on disk, so whoever
dies in between leaves it to be written again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_PREFIX = "m3:records:"
_GROUP = "recorder"
_FIELD = b"r"
_TIMEOUT_S = 5.0


# KEYS: the name, the stream. ARGV: mark, time to live in ms, most entries, the record.
_ONCE = """
local there = redis.call('GET', KEYS[1])
if there then return there == ARGV[1] and 'same' or 'other' end
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[3]) then return 'full' end
redis.call('XADD', KEYS[2], '*', 'r', ARGV[4])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'new'
"""


class Appended(StrEnum):
    """What became of a record of which there may be one only: it is on the stream; the same one was
    there already; another one was; there is no room.
    """

    NEW = "new"
    SAME = "same"
    OTHER = "other"
    FULL = "full"


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
        self._redis = open_redis(url, timeout_s)
        self._once = self._redis.register_script(_ONCE)

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

    def append_once(self, record: bytes, name: str, mark: str, ttl_s: float) -> Appended:
        """Puts one record on the stream unless one of this name was, in one step.

        Args:
            name: a key of its own in the Redis, which lives for `ttl_s`.
            mark: tells whether the one that was there is the same.

        Raises:
            redis.RedisError: it is unknown whether it was taken; asking again does no harm.
        """
        arguments: list[bytes | str | int] = [mark, max(round(ttl_s * 1e3), 1)]
        arguments += [self._longest, record]
        said: Any = self._once(keys=[name, self._name], args=arguments)
        return Appended(said.decode())

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

    def older_than(self, unix_ms: int, count: int) -> list[Entry]:
        """Entries that were put there before a time by Redis's own clock, oldest first."""
        raw: Any = self._redis.xrange(self._name, "-", f"({max(unix_ms, 1)}-0", count=count)
        return list(_entries(raw))

    def drop(self, entry: Entry) -> bool:
        """Takes an entry off the stream undone; whether it was still there."""
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.xack(self._name, _GROUP, entry.id)
            pipeline.xdel(self._name, entry.id)
            return bool(pipeline.execute()[1])

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


def open_redis(url: str, timeout_s: float) -> redis.Redis:
    """A client that never waits longer, and never tries again by itself."""
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )
