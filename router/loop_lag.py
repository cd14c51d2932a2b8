"""How long the event loop is kept from its work, measured by a timer that it should come to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

EVERY_S = 0.05


@asynccontextmanager
async def watched(observe: Callable[[float], None]) -> AsyncIterator[None]:
    """Tells `observe` twenty times a second how many seconds late the running loop is.

    What holds the loop, or the interpreter on any thread, shows up here and nowhere else: every
    request that arrives meanwhile waits as long, and none of them is to blame.
    """
    heart = asyncio.ensure_future(_beat(observe))
    try:
        yield
    finally:
        heart.cancel()
        with suppress(asyncio.CancelledError):
            await heart


async def _beat(observe: Callable[[float], None]) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + EVERY_S
        await asyncio.sleep(EVERY_S)
        observe(max(0.0, clock() - due))
