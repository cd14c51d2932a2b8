"""What crosses from a replica to an ingress: events, several in one message where nobody minds.

A message costs about a millisecond of both processes, whatever is in it; an event of m3-tiny costs
less to compute. So an answer that is sent whole crosses in two messages, however long it is: that
it has started, which admission counts by, and all the rest.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from m3_backend.errors import ServiceError
from m3_backend.messages import Delta, Event

Message = tuple[Event | ServiceError, ...]


async def packed(
    events: AsyncGenerator[Event, None], *, whole: bool
) -> AsyncGenerator[Message, None]:
    """The events of an answer as messages; a ServiceError as the last item of the last one.

    The error is an item because Serve writes a traceback for every exception that leaves a
    replica, and a caller's mistake is not worth one.

    Args:
        whole: nobody reads the answer before its end.
    """
    kept: list[Delta] = []
    try:
        async with aclosing(events):
            async for event in events:
                if whole and isinstance(event, Delta):
                    kept.append(event)
                else:
                    yield (*_joined(kept), event)
                    kept.clear()
    except ServiceError as error:
        yield (error,)


def _joined(deltas: list[Delta]) -> list[Delta]:
    """The same text, tokens and log-probabilities in at most one piece."""
    if not deltas:
        return []
    return [
        Delta(
            "".join(delta.text for delta in deltas),
            tuple(token for delta in deltas for token in delta.token_ids),
            tuple(logprob for delta in deltas for logprob in delta.logprobs),
        )
    ]


async def unpacked(messages: AsyncIterator[Message]) -> AsyncGenerator[Event, None]:
    """The events again.

    Raises:
        ServiceError: the one that ended the answer.
    """
    async for message in messages:
        for item in message:
            if isinstance(item, ServiceError):
                raise item
            yield item
