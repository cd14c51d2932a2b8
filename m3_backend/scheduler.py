"""Which requests run in the next step. No torch, no clock, no threads.

Every step decodes one token for each running request and prefills as many waiting ones as there are
slots and budget for, in the order of their line. Requests in slots 0 … B−1 run, those behind wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from m3_backend.waiting import Prioritised, WaitingLine

_SIMILAR = 16


class Schedulable(Prioritised, Protocol):
    @property
    def prompt_tokens(self) -> int: ...


R = TypeVar("R", bound=Schedulable)


@dataclass(frozen=True, slots=True)
class PrefillBatch(Generic[R]):
    """Prompts of similar length that run as one, in slots `first`, `first` + 1, …"""

    first: int
    requests: tuple[R, ...]


@dataclass(frozen=True, slots=True)
class Step(Generic[R]):
    """One step: `decode` are the requests in slots 0, 1, …; `prefills` follow them."""

    decode: tuple[R, ...]
    prefills: tuple[PrefillBatch[R], ...]


@dataclass(frozen=True, slots=True)
class Move:
    """The request in slot `source` now belongs to slot `target`."""

    source: int
    target: int


class Scheduler(Generic[R]):
    """The queue and the batch of one engine.

    Args:
        slots: most requests that run at once.
        prefill_budget: prompt tokens taken up per step, so that a burst of long prompts does not
            hold up those that are streaming. One request is always taken up, however long.
    """

    def __init__(self, slots: int, prefill_budget: int) -> None:
        self._slots, self._budget = slots, prefill_budget
        self.waiting: WaitingLine[R] = WaitingLine()
        self.running: list[R] = []

    def add(self, request: R) -> None:
        self.waiting.add(request)

    def schedule(self) -> Step[R]:
        """Take up waiting requests; they count as running from here on."""
        decode = tuple(self.running)
        admitted: list[R] = []
        tokens = 0
        while self.waiting and len(decode) + len(admitted) < self._slots:
            tokens += self.waiting.first().prompt_tokens
            if admitted and tokens > self._budget:
                break
            admitted.append(self.waiting.pop())
        prefills = []
        for group in similar_lengths(admitted):
            prefills.append(PrefillBatch(len(self.running), group))
            self.running += group
        return Step(decode, tuple(prefills))

    def remove(self, request: R) -> Move | None:
        """Forget a request, waiting or running. The last slot's request takes its slot, if any."""
        if request in self.waiting:
            self.waiting.remove(request)
            return None
        target = self.running.index(request)
        last = self.running.pop()
        if last is request:
            return None
        self.running[target] = last
        return Move(source=len(self.running), target=target)


def similar_lengths(requests: Sequence[R]) -> list[tuple[R, ...]]:
    """Groups in which padding at most doubles the shortest prompt (and a few tokens more)."""
    groups: list[list[R]] = []
    for request in sorted(requests, key=lambda r: r.prompt_tokens):
        if groups and request.prompt_tokens <= 2 * groups[-1][0].prompt_tokens + _SIMILAR:
            groups[-1].append(request)
        else:
            groups.append([request])
    return [tuple(group) for group in groups]
