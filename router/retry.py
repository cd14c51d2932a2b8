"""A request whose replica dies is answered by another one, as long as nobody has seen a word of it.

What was sent cannot be taken back, so a streamed answer may begin anew until its first text, and a
whole one until its end. Three things can go wrong with an attempt, and each has its own rule:

    the replica had the request and is gone  try again, `max_attempts` times in all: a request that
                                             brings replicas down must not take every one of them
    the replica is going and never took it   try again until the deadline
    no room at the others                    the same, but only for requests that were accepted once

Everything else is about the request, and another replica would say the same.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from m3_backend.errors import BackendError, DeadlineExceededError, OverloadedError, ServiceError
from m3_backend.messages import Delta, Event, Finished, Started

LOST, STOPPING = "replica_lost", "replica_stopping"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0


@dataclass(frozen=True, slots=True)
class Retrying:
    """When to try again.

    Args:
        max_attempts: replicas that may be lost with one request.
        clock: Unix time in seconds, for deadlines.
        sleep: waits for that many seconds.
        jitter: a uniform number in [0, 1), so that those who lost one replica do not all fall upon
            the next one at the same moment.
    """

    max_attempts: int = 3
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random

    async def answer(
        self,
        attempt: Callable[[], AsyncGenerator[Event, None]],
        *,
        streamed: bool,
        deadline: float,
        lost: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[Event, None]:
        """The events of an attempt that gets to its end, after those of attempts that did not.
        Every Started begins the answer anew.

        Args:
            attempt: hands the request over once; gives the events, and an error at the deadline.
            streamed: text goes to the client as it comes, so that the first of it settles whose
                answer this is.
            lost: called when an attempt is given up for another one.

        Raises:
            ServiceError: of the last attempt; `backend_unavailable` (503) if the deadline passed
                with nobody there to take the request over.
        """
        losses = failures = 0
        while True:
            started = sent = False
            try:
                async with aclosing(attempt()) as events:
                    async for event in events:
                        started = started or isinstance(event, Started)
                        sent = sent or (streamed and says_something(event))
                        yield event
                return
            except DeadlineExceededError:
                if failures and not started:
                    raise _nobody_took_over() from None
                raise
            except ServiceError as error:
                losses += error.code == LOST
                if sent or losses >= self.max_attempts or not _is_passing(error, failures):
                    raise
            left_s = deadline - self.clock()
            if left_s <= 0:
                raise _nobody_took_over()
            lost()
            await self.sleep(min(self._pause_s(failures), left_s))
            failures += 1

    def _pause_s(self, failures: int) -> float:
        """Twice as long after every failure, and up to half of it left to chance."""
        longest = min(FIRST_PAUSE_S * 2.0 ** min(failures, 10), LONGEST_PAUSE_S)
        return longest * (1.0 - self.jitter() / 2)


def says_something(event: Event) -> bool:
    """Whether a client of a stream is sent something because of it."""
    if isinstance(event, Delta):
        return bool(event.text or event.logprobs)
    return isinstance(event, Finished)


def _is_passing(error: ServiceError, failures: int) -> bool:
    """Whether the same request may succeed elsewhere, or later."""
    return error.code in (LOST, STOPPING) or (isinstance(error, OverloadedError) and failures > 0)


def _nobody_took_over() -> BackendError:
    return BackendError(
        "The replica that had this request is gone, and no other one could take it over in time; "
        "send it again.",
        code="backend_unavailable",
        status=503,
        retry_after_s=1.0,
    )
