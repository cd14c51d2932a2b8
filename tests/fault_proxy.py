"""A TCP proxy in front of a Redis that can be slow, refuse, cut and damage what passes."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Damage = Callable[[bytes], bytes]


def untouched(data: bytes) -> bytes:
    return data


def flips(seed: int, share: float) -> Damage:
    """Flips one bit in that share of all bytes, the same ones every time."""
    generator = random.Random(seed)

    def damage(data: bytes) -> bytes:
        return bytes(
            byte ^ (1 << generator.randrange(8)) if generator.random() < share else byte
            for byte in data
        )

    return damage


class FaultProxy:
    """Passes bytes both ways between its own port and a server's. Faults may change at any time.

    Args:
        delay_s: how long every piece of an answer is held back.
        piece: bytes of an answer that are passed on at once.
        asked, answered: what becomes of requests and of answers; b"" cuts the connection.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.connections = 0
        self.port = 0  # any that is free, and from then on the same
        self.mend()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def mend(self) -> None:
        """No faults from now on. Connections that had some are gone."""
        self.delay_s, self.piece = 0.0, 1 << 16
        self.asked: Damage = untouched
        self.answered: Damage = untouched
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self.port = self._listener.getsockname()[1]
            threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()
        self.cut()

    def refuse(self) -> None:
        """Nobody listens any more, and what was connected is cut."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut()

    def cut(self) -> None:
        """Ends all connections in the middle of whatever they are at."""
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed.set()
        self.refuse()

    def _serve(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._open |= {client, server}
                for pump in (self._ask, self._answer):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with self._ending(client, server):
            while data := client.recv(1 << 16):
                if not (passed := self.asked(data)):
                    return
                server.sendall(passed)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with self._ending(client, server):
            while data := server.recv(1 << 16):
                if not (passed := self.answered(data)):
                    return
                while passed:
                    if self._closed.wait(self.delay_s):
                        return
                    client.sendall(passed[: self.piece])
                    passed = passed[self.piece :]

    @contextmanager
    def _ending(self, *ends: socket.socket) -> Iterator[None]:
        """When one direction ends, so does the other."""
        try:
            with suppress(OSError):
                yield
        finally:
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._open.difference_update(ends)


@contextmanager
def fault_proxy(target: int) -> Iterator[FaultProxy]:
    proxy = FaultProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
