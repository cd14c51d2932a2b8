from __future__ import annotations

import asyncio
import time

from router.loop_lag import EVERY_S, watched
from tests.fakes import FakeBackend
from tests.router.support import app_of, client_of


async def test_a_loop_that_is_held_is_seen_and_one_that_waits_is_not() -> None:
    late: asyncio.Queue[float] = asyncio.Queue()
    async with watched(late.put_nowait):
        await late.get()
        time.sleep(EVERY_S + 0.2)
        held = await late.get()
    assert held >= 0.15
    assert late.empty()


async def test_it_is_watched_while_the_app_runs() -> None:
    app = app_of(FakeBackend())
    async with app.router.lifespan_context(app), client_of(app) as client:
        beaten = 0.0
        async with asyncio.timeout(30):
            while not beaten:
                await asyncio.sleep(EVERY_S)
                lines = (await client.get("/metrics")).text.splitlines()
                [count] = [x for x in lines if x.startswith("m3_event_loop_lag_seconds_count")]
                beaten = float(count.split()[1])
    assert not [task for task in asyncio.all_tasks() if "_beat" in repr(task)]
