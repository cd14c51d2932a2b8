"""Who holds which rows of KV memory. No torch, no clock, no threads.

One row is one token's keys and values in all layers, so what a request takes is exactly what it
holds: nothing is rounded up to a slot or a block. Requests about the same pictures share the rows
of their common beginning (a *prefix*: system prompt and image tokens), which stay behind when their
last user leaves, until somebody needs the room; then the least recently used go first.

Row 0 belongs to nobody: tables are padded with it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PrefixName:
    """The beginning of a prompt that others may share.

    Args:
        key: equal for equal tokens, pictures, scales and salt, and for nothing else.
        tokens: how long it is; always shorter than the prompt.
    """

    key: bytes
    tokens: int


@dataclass(eq=False, slots=True)
class _Prefix:
    """`rows` is empty until whoever began it has filled it."""

    name: PrefixName
    rows: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    users: int = 1

    @property
    def is_ready(self) -> bool:
        return len(self.rows) > 0


@dataclass(eq=False, slots=True)
class Holding:
    """The rows of one request, in the order of its tokens.

    Args:
        table: their numbers, zero from `length` on.
        shared: how many of them, at the beginning, are a prefix's.
    """

    table: Rows
    length: int = 0
    shared: int = 0
    prefix: _Prefix | None = None


class KvMemory:
    """The books of `tokens` rows."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._free = list(range(tokens, 0, -1))
        self._prefixes: OrderedDict[bytes, _Prefix] = OrderedDict()  # least recently used first
        self._idle = 0  # rows of prefixes that nobody uses

    @property
    def available(self) -> int:
        """Rows that can be had: free ones, and prefixes that nobody uses."""
        return len(self._free) + self._idle

    @property
    def held(self) -> int:
        """Rows in use by requests, a shared one counted once."""
        return self.tokens - self.available

    @property
    def idle(self) -> int:
        """Rows of prefixes that are kept for whoever asks next."""
        return self._idle

    def is_known(self, name: PrefixName) -> bool:
        """Whether it is there or being made. May be asked from any thread."""
        return name.key in self._prefixes

    def is_ready(self, name: PrefixName) -> bool:
        """Whether it can be joined. May be asked from any thread, and may change at any time."""
        prefix = self._prefixes.get(name.key)
        return prefix is not None and prefix.is_ready

    def grow(self, holding: Holding, count: int) -> bool:
        """Add `count` rows; False if there are not as many, and then nothing has changed."""
        if count > self.available:
            return False
        while count > len(self._free):
            self._evict()
        if count:
            end = holding.length + count
            holding.table[holding.length : end] = self._free[-count:]
            del self._free[-count:]
            holding.length = end
        return True

    def begin(self, holding: Holding, name: PrefixName) -> None:
        """What this request is about to compute will be the prefix."""
        holding.prefix = self._prefixes[name.key] = _Prefix(name)

    def complete(self, holding: Holding, cached: int) -> None:
        """The first `cached` tokens are computed: the prefix it has begun may be complete now."""
        prefix = holding.prefix
        if prefix is not None and not prefix.is_ready and cached >= prefix.name.tokens:
            prefix.rows = holding.table[: prefix.name.tokens].copy()
            holding.shared = prefix.name.tokens

    def join(self, holding: Holding, name: PrefixName) -> None:
        """Begin an empty holding with a prefix that is ready."""
        prefix = self._prefixes[name.key]
        self._prefixes.move_to_end(name.key)
        if not prefix.users:
            self._idle -= len(prefix.rows)
        prefix.users += 1
        holding.table[: name.tokens] = prefix.rows
        holding.length = holding.shared = name.tokens
        holding.prefix = prefix

    def release(self, holding: Holding) -> None:
        """Give everything back. A prefix that was not completed is forgotten."""
        self._free += holding.table[holding.shared : holding.length].tolist()
        if (prefix := holding.prefix) is not None:
            prefix.users -= 1
            if not prefix.is_ready:
                del self._prefixes[prefix.name.key]
            elif not prefix.users:
                self._idle += len(prefix.rows)
        holding.table[:] = 0
        holding.length = holding.shared = 0
        holding.prefix = None

    def _evict(self) -> None:
        idle = next(p for p in self._prefixes.values() if not p.users)
        del self._prefixes[idle.name.key]
        self._idle -= len(idle.rows)
        self._free += idle.rows.tolist()
