"""Messages between a replica and an ingress: one answer, in fewer pieces where nobody minds."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from deploy.transport import Message, packed, unpacked
from m3_backend.errors import ContextLengthError, ServiceError
from m3_backend.messages import Delta, Event, Finished, Started, TokenLogprob

STARTED = Started((9,), 20, ("miss",), 0.0, 0.0, 0.0)
FINISHED = Finished("stop", 2, 1.0, 1.0)
RED, SQUARE = (
    Delta("red ", (4,), (TokenLogprob("red ", -0.1),)),
    Delta("square", (5,), (TokenLogprob("square", -0.2),)),
)


async def answer(*events: Event | ServiceError) -> AsyncGenerator[Event, None]:
    for event in events:
        if isinstance(event, ServiceError):
            raise event
        yield event


async def messages(*events: Event | ServiceError, whole: bool) -> list[Message]:
    return [message async for message in packed(answer(*events), whole=whole)]


async def test_a_stream_is_sent_as_it_comes() -> None:
    sent = await messages(STARTED, RED, SQUARE, FINISHED, whole=False)
    assert sent == [(STARTED,), (RED,), (SQUARE,), (FINISHED,)]


async def test_a_whole_answer_is_two_messages_however_long_it_is() -> None:
    joined = Delta("red square", (4, 5), (*RED.logprobs, *SQUARE.logprobs))
    sent = await messages(STARTED, RED, SQUARE, FINISHED, whole=True)
    assert sent == [(STARTED,), (joined, FINISHED)]
    assert await messages(STARTED, FINISHED, whole=True) == [(STARTED,), (FINISHED,)]


@pytest.mark.parametrize("whole", [True, False])
async def test_an_error_is_the_last_item_and_an_error_again(whole: bool) -> None:
    sent = await messages(STARTED, RED, ContextLengthError("too long"), whole=whole)
    assert isinstance(sent[-1][-1], ContextLengthError)

    async def received() -> AsyncGenerator[Message, None]:
        for message in sent:
            yield message

    seen = []
    with pytest.raises(ContextLengthError, match="too long"):
        async for event in unpacked(received()):
            seen.append(event)
    assert seen[0] == STARTED


async def test_what_nobody_foresaw_is_not_hidden() -> None:
    async def broken() -> AsyncGenerator[Event, None]:
        yield STARTED
        raise KeyError("an accident")

    with pytest.raises(KeyError):
        [message async for message in packed(broken(), whole=True)]


async def test_who_stops_listening_closes_the_answer() -> None:
    closed = False

    async def endless() -> AsyncGenerator[Event, None]:
        nonlocal closed
        try:
            while True:
                yield RED
        finally:
            closed = True

    listening = packed(endless(), whole=False)
    async for _ in listening:
        break
    await listening.aclose()
    assert closed
