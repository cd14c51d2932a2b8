"""Makes shadow labels in a replica that has nobody to answer, within a budget of its time."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from deploy.config import Config
from m3_backend.errors import FeaturesGoneError, NotNowError, ServiceError
from m3_backend.messages import GenerationRequest
from predictor.errors import RecordsError
from predictor.label_records import encode
from predictor.records import agreement_share
from router.config import ShadowConfig
from router.draws import Order, read_order
from router.held_answers import HeldAnswers
from router.record_stream import Entry, RecordStream

if TYPE_CHECKING:
    from m3_backend.request_scoring import ScaleScore

logger = logging.getLogger("m3_router.shadow")

QUEUE = "shadow"
Outcome = Literal["labelled", "late", "gone", "failed"]
Load = Literal["low", "half", "full"]

_PAUSE_S = 0.2
_SAVED_S = 2.0  # time that a replica may save up
_ABANDONED_MS = 120_000


@dataclass(frozen=True, slots=True)
class ShadowStats:
    """What became of drawn requests, by the load at which they came, and the time it took.

    Args:
        interrupted: labels that were begun and gave way to requests.
    """

    outcomes: Mapping[tuple[Outcome, Load], int] = field(default_factory=dict)
    seconds: float = 0.0
    interrupted: int = 0


class Scores(Protocol):
    """`m3_backend.request_scoring.RequestScorer.scores`."""

    def __call__(
        self,
        request: GenerationRequest,
        *,
        max_tokens: int,
        may_go_on: Callable[[], bool] = ...,
        texts: bool = ...,
    ) -> tuple[ScaleScore, ...]: ...


class ShadowLabeller:
    """Takes drawn requests off the queue, one at a time.

    Args:
        queue: of drawn requests.
        append: puts labels on their stream and gives how many it took.
        scores: what every scale makes of a request.
        idle: whether nobody waits for an answer just now.
        replica: this replica's name, unique.
        held: keeps what every scale answered, for feedback; None keeps nothing.
        clock: seconds, monotonic, for the budget.
        wall: Unix time, seconds.
    """

    def __init__(
        self,
        queue: RecordStream,
        append: Callable[[Sequence[bytes]], int],
        scores: Scores,
        idle: Callable[[], bool],
        config: ShadowConfig,
        *,
        replica: str,
        held: HeldAnswers | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._queue, self._append, self._scores, self._idle = queue, append, scores, idle
        self._config, self._replica, self._held = config, replica, held
        self._clock, self._wall = clock, wall
        self._saved_s, self._saved_at = 0.0, clock()
        self._outcomes: Counter[tuple[Outcome, Load]] = Counter()
        self._seconds, self._interrupted = 0.0, 0

    @property
    def stats(self) -> ShadowStats:
        return ShadowStats(dict(self._outcomes), self._seconds, self._interrupted)

    def run(self, stopping: threading.Event) -> None:
        """Makes labels until it is stopped."""
        pause_s = _PAUSE_S
        while not stopping.wait(pause_s):
            try:
                pause_s = 0.0 if self.step() else _PAUSE_S
            except Exception as error:  # Redis is away; damaged replies break the client's parser
                logger.debug("no shadow labels for now: %r", error)
                pause_s = 5.0

    def step(self) -> bool:
        """Gives up what is too old; makes one label if this is the time for it. Whether there was
        something to do.

        Raises:
            redis.RedisError: the queue is away.
        """
        self._give_up_the_old()
        self._save()
        if self._saved_s <= 0 or not self._idle():
            return False
        for entry in self._queue.take(self._replica, 1, _ABANDONED_MS):
            return self._make(entry)
        return False

    def _make(self, entry: Entry) -> bool:
        began_s = self._clock()
        try:
            order = read_order(entry.data)
        except RecordsError:
            self._end(entry, "failed", None)
            return True
        outcome: Outcome = "labelled"
        try:
            scores = self._scores(
                order.request,
                max_tokens=self._config.max_tokens,
                may_go_on=self._idle,
                texts=self._held is not None,
            )
            label = encode(self._label(order, scores, self._clock() - began_s))
            if not self._append([label]):
                return False  # the stream is full; it stays in the queue
            if self._held is not None:
                texts = [score.text or "" for score in scores]
                self._held.answered(order.request.request_id, label, texts)
        except NotNowError:
            self._interrupted += 1
            return False
        except FeaturesGoneError:
            outcome = "gone"
        except ServiceError as error:
            logger.debug("request %s gets no label: %r", order.request.request_id, error)
            outcome = "failed"
        finally:
            spent_s = self._clock() - began_s
            self._saved_s -= spent_s
            self._seconds += spent_s
        self._end(entry, outcome, order)
        return True

    def _label(
        self, order: Order, scores: Sequence[ScaleScore], took_s: float
    ) -> dict[str, object]:
        return order.label | {
            "labelled_at": round(self._wall() * 1e6),
            "replica": self._replica,
            "scales": [score.scale for score in scores],
            "tokens_per_scale": [score.image_tokens for score in scores],
            "agrees": [agreement(score.matches) for score in scores],
            "reference_logprob": [score.logprob for score in scores],
            "answer_tokens": len(scores[-1].matches),
            "ms": took_s * 1e3,
        }

    def _give_up_the_old(self) -> None:
        before_ms = round((self._wall() - self._config.max_age_s) * 1e3)
        for entry in self._queue.older_than(before_ms, 100):
            if self._queue.drop(entry):
                try:
                    order = read_order(entry.data)
                except RecordsError:
                    self._outcomes["failed", load_of(None)] += 1
                else:
                    self._outcomes["late", load_of(order.label.get("pressure"))] += 1

    def _end(self, entry: Entry, outcome: Outcome, order: Order | None) -> None:
        self._queue.done([entry])
        pressure = None if order is None else order.label.get("pressure")
        self._outcomes[outcome, load_of(pressure)] += 1

    def _save(self) -> None:
        now = self._clock()
        earned_s = (now - self._saved_at) * self._config.budget
        self._saved_s, self._saved_at = min(self._saved_s + earned_s, _SAVED_S), now


def agreement(matches: Sequence[bool]) -> float:
    """How far a scale's answer is the finest's: equal or not, by position for long answers."""
    return agreement_share(all(matches), matches)


def load_of(pressure: float | None) -> Load:
    """A word for the load at which a request came."""
    if pressure is None or pressure < 0.25:
        return "low"
    return "half" if pressure < 0.75 else "full"


def open_queue(config: Config) -> RecordStream:
    """One end of the queue of drawn requests, where records are kept."""
    url = config.records_redis_url
    assert url is not None
    return RecordStream(url, QUEUE, longest=config.router.shadow.queue_length)
