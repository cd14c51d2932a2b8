"""Which tokens run in the next step. No torch, no clock, no threads.

A step computes one token for every request that is answering, and up to a budget of prompt tokens
of those that are not yet: prompts are taken up in pieces, so that a long one never holds up the
answers of others. The requests that are running have room in KV memory; those behind them wait.

Of the budget, half belongs to the request that came first, the rest goes to whoever needs least:
a question at 9 tokens does not queue behind ten at 576, and none of those is left for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from m3_backend.kv_memory import Holding, KvMemory, PrefixName
from m3_backend.waiting import Prioritised, WaitingLine

_HEADROOM = 16  # tokens that a running request is expected to need beyond those it has


class Schedulable(Prioritised, Protocol):
    """A request as the scheduler sees it.

    `cached` tokens of `length` known ones (prompt, then answer) are in KV memory; `most` is what
    `length` may become. `prefix` is shared with others; `is_whole` is false if the request was
    prepared without what it would take to compute that prefix.
    """

    cached: int
    holding: Holding | None

    @property
    def length(self) -> int: ...
    @property
    def most(self) -> int: ...
    @property
    def is_answering(self) -> bool: ...
    @property
    def prefix(self) -> PrefixName | None: ...
    @property
    def is_whole(self) -> bool: ...


R = TypeVar("R", bound=Schedulable)


@dataclass(frozen=True, slots=True)
class Piece(Generic[R]):
    """The next `tokens` tokens of a request's prompt."""

    request: R
    tokens: int

    @property
    def is_last(self) -> bool:
        return self.request.cached + self.tokens == self.request.length


@dataclass(frozen=True, slots=True)
class Step(Generic[R]):
    """One step. `unprepared` have lost their prefix: they left, and must be prepared again."""

    decode: tuple[R, ...] = ()
    prefill: tuple[Piece[R], ...] = ()
    unprepared: tuple[R, ...] = ()


class Scheduler(Generic[R]):
    """The queue, the batch and the memory of one engine.

    Args:
        slots: most requests that run at once.
        budget: prompt tokens per step.
        memory: at least one request of any length fits into it.
    """

    def __init__(self, slots: int, budget: int, memory: KvMemory) -> None:
        self._slots, self._budget = slots, budget
        self.memory = memory
        self.waiting: WaitingLine[R] = WaitingLine()
        self.running: list[R] = []  # the longest admitted first
        self.joined = 0  # requests that found their prefix
        self.preempted = 0

    def add(self, request: R) -> None:
        self.waiting.add(request)

    def schedule(self) -> Step[R]:
        """Admit who fits, and give every token of the step its row."""
        self._admit()
        unprepared = self._find_prefixes()
        while True:
            step = Step(self._next_tokens(), self._pieces(), unprepared)
            if step.decode or step.prefill or len(self.running) < 2:
                return step
            self._preempt()  # all hold pieces of prompts and nobody has room for more

    def advance(self, request: R, tokens: int) -> None:
        """So many more tokens of it are computed."""
        request.cached += tokens
        self.memory.complete(_of(request), request.cached)

    def remove(self, request: R) -> None:
        """Forget a request, waiting or running."""
        if request in self.waiting:
            self.waiting.remove(request)
        else:
            self._stop(request)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._slots:
            first = self.waiting.first()
            promised = sum(self._needs(request) + _HEADROOM for request in self.running)
            if self.running and promised + self._needs(first) + _HEADROOM > self.memory.available:
                return
            request = self.waiting.pop()
            request.holding = Holding(np.zeros(request.most, np.int64))
            self.running.append(request)

    def _needs(self, request: R) -> int:
        """Rows that it still has to get for the tokens it has."""
        held = request.holding.length if request.holding else 0
        name = request.prefix
        if not held and name is not None and self.memory.is_known(name):
            held = name.tokens
        return max(request.length - held, 0)

    def _find_prefixes(self) -> tuple[R, ...]:
        """Let those that begin join what others have computed, or begin it for others."""
        unprepared = []
        for request in tuple(self.running):
            name, holding = request.prefix, _of(request)
            if name is None or holding.prefix is not None or holding.length:
                continue
            if self.memory.is_ready(name):
                self.memory.join(holding, name)
                request.cached = name.tokens
                self.joined += 1
            elif not self.memory.is_known(name):
                if request.is_whole:
                    self.memory.begin(holding, name)
                else:
                    self._stop(request)
                    unprepared.append(request)
        return tuple(unprepared)

    def _next_tokens(self) -> tuple[R, ...]:
        """Those that are answering, with a row for one more token each."""
        granted = []
        for request in tuple(self.running):
            while request in self.running and request.is_answering:
                holding = _of(request)
                if holding.length > request.cached or self.memory.grow(holding, 1):
                    granted.append(request)
                    break
                self._preempt()
        return tuple(request for request in granted if request in self.running)

    def _pieces(self) -> tuple[Piece[R], ...]:
        ready = [
            request
            for request in self.running
            if not request.is_answering and not self._waits_for_prefix(request)
        ]
        pieces = []
        for request, share in self._shares(ready):
            holding = _of(request)
            missing = max(request.cached + share - holding.length, 0)
            fewer = max(missing - self.memory.available, 0)
            tokens = share - fewer
            if tokens > 0 and self.memory.grow(holding, missing - fewer):
                pieces.append(Piece(request, tokens))
        return tuple(pieces)

    def _waits_for_prefix(self, request: R) -> bool:
        """Another request is computing it."""
        return request.prefix is not None and _of(request).prefix is None

    def _shares(self, ready: Sequence[R]) -> list[tuple[R, int]]:
        """How many tokens of the budget each gets, none left out that gets any."""
        if not ready:
            return []
        rest = {request: request.length - request.cached for request in ready}
        shares = dict.fromkeys(ready, 0)
        shares[ready[0]] = min(rest[ready[0]], max(self._budget // 2, 1))
        left = self._budget - shares[ready[0]]
        for request in sorted(ready, key=lambda r: rest[r]):
            more = min(rest[request] - shares[request], left)
            shares[request] += more
            left -= more
        return [(request, share) for request, share in shares.items() if share]

    def _preempt(self) -> None:
        """The last that came, of batch requests if there are any, starts over when there is room.

        The answers of others need its memory. What it has answered so far stays, and becomes part
        of what it prefills.
        """
        kinds = [request.priority for request in self.running]
        index = len(kinds) - 1
        if "batch" in kinds[1:]:
            index -= kinds[::-1].index("batch")
        victim = self.running[index]
        self._stop(victim)
        self.waiting.add_first(victim)
        self.preempted += 1

    def _stop(self, request: R) -> None:
        self.running.remove(request)
        self.memory.release(_of(request))
        request.holding, request.cached = None, 0


def _of(request: Schedulable) -> Holding:
    """What a running request holds."""
    assert request.holding is not None
    return request.holding
