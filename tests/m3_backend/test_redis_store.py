"""Who waits for whom between this process and its Redis."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from m3_backend.redis_store import RedisStore, StoreUnavailableError
from tests.conftest import RedisServer


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def test_pending_writes_do_not_delay_reads(redis_server: RedisServer) -> None:
    release = threading.Event()

    def slow_value() -> bytes:
        assert release.wait(60)
        return b"slow"

    with closing(RedisStore(redis_server.url, ttl_s=60, timeout_s=5)) as store:
        store.store(b"there", lambda: b"value")
        store.flush()
        for number in range(20):
            store.store(b"%d" % number, slow_value)
        try:
            assert store.fetch([(b"there", 5)], timeout_s=5) == (0, b"value")
        finally:
            release.set()
        store.flush()
        assert store.fetch([(b"19", 4)], timeout_s=5) == (0, b"slow")


def test_a_read_that_redis_never_saw_is_not_held_against_it(silent_server: socket.socket) -> None:
    url = f"redis://127.0.0.1:{silent_server.getsockname()[1]}/0"
    with (
        closing(RedisStore(url, ttl_s=60, timeout_s=60)) as store,
        ThreadPoolExecutor(4) as threads,
    ):
        reads = [threads.submit(store.fetch, [(b"key", 1)], 60) for _ in range(4)]
        connections = [silent_server.accept()[0] for _ in reads]  # now every reader is busy
        for _ in range(5):
            with pytest.raises(StoreUnavailableError):
                store.fetch([(b"key", 1)], timeout_s=0.01)
        assert (store.errors, store.breaker.state) == (0, "closed")
        for connection in connections:
            connection.close()
        for read in reads:
            with pytest.raises(StoreUnavailableError):
                read.result(60)
        assert (store.errors, store.breaker.state) == (4, "open")
