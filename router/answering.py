"""From the events of a replica to an answer: noted on their way, and closed at a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from m3_backend.errors import BackendError, DeadlineExceededError
from m3_backend.messages import Event, Started
from router.admission import Ticket
from router.planning import Plan
from router.retry import says_something
from router.trace import Trace


class Answer:
    """An answer that has started: iterate it to its Finished, or close it to cancel the request.

    Args:
        begun: its first events.
        events: the others. A Started among them (only of answers that are sent whole) means that
            another replica has begun the answer anew: forget what came before it.
    """

    def __init__(
        self,
        plan: Plan,
        begun: Sequence[Event],
        events: AsyncGenerator[Event, None],
        trace: Trace,
        ticket: Ticket,
    ) -> None:
        self.plan = plan
        self.trace = trace
        self._begun = begun
        self._events = events
        self._ticket = ticket

    @property
    def started(self) -> Started:
        """What the replica said that gives this answer."""
        assert self.trace.started is not None
        return self.trace.started

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        for event in self._begun:
            yield event
        async for event in self._events:
            yield event
        if self.trace.finished is None:
            raise BackendError("The replica stopped in the middle of the answer; try again.")

    async def aclose(self) -> None:
        try:
            await self._events.aclose()
        finally:
            self._ticket.close()


async def until(
    events: AsyncGenerator[Event, None], deadline: float, clock: Callable[[], float]
) -> AsyncGenerator[Event, None]:
    """`events`, closed at the deadline. A replica watches it too, but only one that answers.

    Args:
        deadline: on the clock, in seconds.

    Raises:
        DeadlineExceededError: it passed before the next event.
    """
    async with aclosing(events):
        while True:
            limit = asyncio.timeout(deadline - clock())
            try:
                async with limit:
                    event = await anext(events, None)
            except TimeoutError:
                if not limit.expired():  # not ours
                    raise
                raise DeadlineExceededError(
                    "The answer was not complete within the service's time limit; ask for "
                    "fewer tokens, or try again."
                ) from None
            if event is None:
                return
            yield event


async def watched(
    events: AsyncGenerator[Event, None], trace: Trace, ticket: Ticket
) -> AsyncGenerator[Event, None]:
    """`events`, each of them noted before anybody acts on it."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Started):  # perhaps once more, after a replica was lost
                ticket.begun()
            trace.saw(event)
            yield event


async def beginning(events: AsyncGenerator[Event, None], *, streamed: bool) -> list[Event]:
    """The first events of the answer; of a stream up to its first text. Until then it may begin
    anew elsewhere, and the headers must be those of the replica that gives it.
    """
    begun: list[Event] = []
    async for event in events:
        if isinstance(event, Started):
            begun.clear()
        elif not begun:
            break
        begun.append(event)
        if not streamed or says_something(event):
            return begun
    raise BackendError("The replica did not start on the request; try again.")
