"""The line in which requests of two priorities wait. No torch, no clock, no threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from m3_backend.messages import Priority

# However many interactive requests there are, one in so many turns is a batch request's, so that
# those which were let in also come out.
BATCH_TURN = 8


class Prioritised(Protocol):
    @property
    def priority(self) -> Priority: ...


R = TypeVar("R", bound=Prioritised)


class WaitingLine(Generic[R]):
    """Interactive requests before batch requests, each kind first come first served."""

    def __init__(self) -> None:
        self._interactive: deque[R] = deque()
        self._batch: deque[R] = deque()
        self._passed = 0  # interactive requests taken while a batch request waited

    def __len__(self) -> int:
        return len(self._interactive) + len(self._batch)

    def __iter__(self) -> Iterator[R]:
        yield from self._interactive
        yield from self._batch

    def add(self, request: R) -> None:
        self._of(request).append(request)

    def add_first(self, request: R) -> None:
        """Before all others of its kind."""
        self._of(request).appendleft(request)

    def first(self) -> R:
        """The one whose turn it is. The line must not be empty."""
        return self._next()[0]

    def pop(self) -> R:
        """Takes it."""
        line = self._next()
        if line is self._batch:
            self._passed = 0
        elif self._batch:
            self._passed += 1
        return line.popleft()

    def remove(self, request: R) -> None:
        self._of(request).remove(request)

    def _of(self, request: R) -> deque[R]:
        return self._batch if request.priority == "batch" else self._interactive

    def _next(self) -> deque[R]:
        if self._batch and (not self._interactive or self._passed >= BATCH_TURN - 1):
            return self._batch
        return self._interactive
