"""Sends what is told of requests that are over, without ever holding one up.

What is over is put into a bounded buffer; a thread of its own makes records of it and puts them on
a stream. While that does not take them they wait, the newest are dropped once the buffer is full,
and dropped ones are counted.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from predictor.routing_records import describe_question, encode
from router.collectors import Recorded
from router.observing import Observer
from router.records import is_recorded, record_of
from router.trace import Trace

logger = logging.getLogger("m3_router.records")

_EVERY_S = 0.2
_BATCH = 200
_LONGEST_PAUSE_S = 5.0
_CLOSING_S = 3.0


class Outbox:
    """Fits `router.telemetry.Follower`.

    Args:
        append: takes what was told, the first first, and gives how many it took; may block and
            raise, and then all of it is offered again.
        tell: what is sent of a request; on the outbox's own thread.
        buffer: most requests that wait.
        what: is sent, for the log.
    """

    def __init__(
        self,
        append: Callable[[Sequence[bytes]], int],
        tell: Callable[[Trace], bytes],
        wanted: Callable[[Trace], bool],
        *,
        buffer: int,
        what: str,
    ) -> None:
        self._append, self._tell, self._wanted = append, tell, wanted
        self._buffer, self._what = buffer, what
        self._over: deque[Trace] = deque()
        self._encoded: deque[bytes] = deque()
        self._closing = threading.Event()
        self._emptied = threading.Condition()
        self._failing = False
        self._acknowledged = self._dropped = 0
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Records that are in memory only."""
        return len(self._over) + len(self._encoded)

    @property
    def counts(self) -> Recorded:
        return Recorded(self._acknowledged, self._dropped, self.waiting)

    def follow(self, trace: Trace) -> None:
        if not self._wanted(trace):
            return
        if self.waiting >= self._buffer:
            self._dropped += 1
            return
        trace.total_s = trace.elapsed_s()
        self._over.append(trace)

    def flush(self, timeout_s: float) -> bool:
        """Waits until nothing is in memory only; whether that came true in time."""
        with self._emptied:
            return self._emptied.wait_for(lambda: self.waiting == 0, timeout_s)

    def close(self) -> None:
        self.flush(_CLOSING_S)
        self._closing.set()
        self._thread.join(_CLOSING_S)
        self._dropped += self.waiting

    def _run(self) -> None:
        pause_s = _EVERY_S
        while not self._closing.wait(pause_s):
            try:
                self._hand_over()
            except Exception as error:  # damaged replies break the client's parser in many ways
                if not self._failing:
                    logger.warning(
                        "%s wait in memory, the stream takes none: %r", self._what, error
                    )
                self._failing = True
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if self._failing else _EVERY_S

    def _hand_over(self) -> None:
        while self.waiting:
            self._encode()
            batch = list(islice(self._encoded, _BATCH))
            taken = self._append(batch) if batch else 0
            for _ in range(taken):
                self._encoded.popleft()
            self._acknowledged += taken
            if taken < len(batch):
                if not self._failing:
                    logger.warning("%s wait in memory, the stream is full", self._what)
                self._failing = True
                return
        if self._failing:
            logger.warning("the stream takes %s again", self._what)
        self._failing = False
        with self._emptied:
            self._emptied.notify_all()

    def _encode(self) -> None:
        while self._over and len(self._encoded) < _BATCH:
            trace = self._over[0]
            try:
                self._encoded.append(self._tell(trace))
            except Exception:
                self._dropped += 1
                logger.exception("request %s is left out of the %s", trace.request_id, self._what)
            self._over.popleft()  # only now, so that `waiting` never says that all is done


class Recording(Outbox):
    """Sends a record of every request.

    Args:
        append, buffer: as of an Outbox.
        ingress: this process's name in the records.
        questions: also keep the text of questions.
        observer: what another predictor would have decided is recorded besides.
    """

    def __init__(
        self,
        append: Callable[[Sequence[bytes]], int],
        *,
        ingress: str,
        buffer: int,
        questions: bool = False,
        observer: Observer | None = None,
    ) -> None:
        def tell(trace: Trace) -> bytes:
            seen = trace.evidence
            asks = None if seen is None else describe_question(seen.question)
            observed = None if observer is None else observer.observe(trace)
            return encode(record_of(trace, ingress, asks, question=questions, observed=observed))

        super().__init__(append, tell, is_recorded, buffer=buffer, what="records")
