"""The parts of feedback, opened as a configuration says."""

from __future__ import annotations

from deploy.config import Config
from deploy.recorder import open_stream
from predictor.record_store import CORRECTNESS, FEEDBACK
from router.feedback import Feedback
from router.held_answers import HeldAnswers
from router.receipts import Receipts, is_answered, receipt_of
from router.recording import Outbox

TIMEOUT_S = 1.0  # of Redis, while a caller waits


def open_feedback(config: Config) -> Feedback | None:
    """What takes feedback; None where none is taken."""
    if not config.takes_feedback:
        return None
    stream = open_stream(config, FEEDBACK, TIMEOUT_S)
    window_s = config.router.feedback.window_s
    return Feedback(_receipts(config), stream, open_held_answers(config), window_s=window_s)


def open_receipting(config: Config) -> Outbox | None:
    """What keeps receipts of answered requests; None where no feedback is taken."""
    if not config.takes_feedback:
        return None
    append, buffer = _receipts(config).append, config.records.buffer
    return Outbox(append, receipt_of, is_answered, buffer=buffer, what="receipts")


def open_held_answers(config: Config) -> HeldAnswers | None:
    """What makes labels of correctness; None where no shadow answers are held."""
    url, ttl_s = config.records_redis_url, config.router.feedback.answers_s
    if url is None or not config.takes_feedback or not config.shadow_labels or ttl_s == 0:
        return None
    append = open_stream(config, CORRECTNESS, TIMEOUT_S).append
    return HeldAnswers(url, append, ttl_s=ttl_s, timeout_s=TIMEOUT_S)


def _receipts(config: Config) -> Receipts:
    url = config.records_redis_url
    assert url is not None
    return Receipts(url, ttl_s=config.router.feedback.window_s, timeout_s=TIMEOUT_S)
