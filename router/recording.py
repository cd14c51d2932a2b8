"""Keeps a record of every request that is over, without ever holding one up.

What is over is put into a bounded buffer; a thread of its own makes records of it and puts them on
the stream. While that does not take them they wait, the newest are dropped once the buffer is full,
and dropped ones are counted.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from predictor.routing_records import describe_question, encode
from router.records import RECORDED, record_of
from router.telemetry import Recorded, Trace

logger = logging.getLogger("m3_router.records")

_EVERY_S = 0.2
_BATCH = 200
_LONGEST_PAUSE_S = 5.0
_CLOSING_S = 3.0


class Recording:
    """Fits `router.telemetry.Follower`.

    Args:
        append: takes records, the first ones first, and gives how many it took; may block and
            raise, and then all of them are offered again.
        ingress: this process's name in the records.
        buffer: most records that wait.
        questions: also keep the text of questions.
    """

    def __init__(
        self,
        append: Callable[[Sequence[bytes]], int],
        *,
        ingress: str,
        buffer: int,
        questions: bool = False,
    ) -> None:
        self._append, self._ingress, self._questions = append, ingress, questions
        self._buffer = buffer
        self._over: deque[Trace] = deque()
        self._encoded: deque[bytes] = deque()
        self._closing = threading.Event()
        self._emptied = threading.Condition()
        self._failing = False
        self._acknowledged = self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Records that are in memory only."""
        return len(self._over) + len(self._encoded)

    @property
    def counts(self) -> Recorded:
        return Recorded(self._acknowledged, self._dropped, self.waiting)

    def follow(self, trace: Trace) -> None:
        if trace.endpoint not in RECORDED:
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
                    logger.warning("records wait in memory, the stream takes none: %r", error)
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
                    logger.warning("records wait in memory, the stream is full")
                self._failing = True
                return
        if self._failing:
            logger.warning("the stream takes records again")
        self._failing = False
        with self._emptied:
            self._emptied.notify_all()

    def _encode(self) -> None:
        while self._over and len(self._encoded) < _BATCH:
            trace = self._over[0]
            try:
                asks = None
                if trace.evidence is not None:
                    asks = describe_question(trace.evidence.question)
                record = record_of(trace, self._ingress, asks, question=self._questions)
                self._encoded.append(encode(record))
            except Exception:
                self._dropped += 1
                logger.exception("request %s leaves no record", trace.request_id)
            self._over.popleft()  # only now, so that `waiting` never says that all is done
