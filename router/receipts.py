"""What is remembered of an answered request while feedback on it is taken. Never any text.

Receipts lie in the Redis that records pass through, with a time to live.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from predictor.feedback_records import fingerprint, scale_name
from predictor.query_features import query_features, topic
from router.record_stream import open_redis
from router.trace import OK, Trace

ANSWERED = "/v1/chat/completions"
_PREFIX = "m3:feedback:receipt:"


@dataclass(frozen=True, slots=True)
class Receipt:
    """One answered request.

    Args:
        at: its arrival, Unix microseconds.
        key: name of the API key that it came with; only that one may judge it.
        group: what its question is about.
        answer: fingerprint of what was answered.
    """

    request_id: str
    at: int
    key: str | None
    answer: str
    served: str
    model_identity: str
    predictor: str | None
    bound: float | None
    images: tuple[str, ...]
    scales: tuple[int, ...]
    reasons: tuple[str, ...]
    image_tokens: int
    group: str

    @property
    def scale(self) -> str:
        """As the metric names it."""
        return scale_name(self.scales)


def is_answered(trace: Trace) -> bool:
    """Whether there is something that can be judged."""
    return trace.endpoint == ANSWERED and trace.code == OK and trace.finished is not None


def receipt_of(trace: Trace) -> bytes:
    """The receipt of a request that was answered. CPU work."""
    evidence, decision = trace.evidence, trace.decision
    assert evidence is not None
    assert decision is not None
    receipt = Receipt(
        request_id=trace.request_id,
        at=round(trace.wall_ns / 1e3),
        key=trace.caller.name,
        answer=fingerprint(trace.request_id, "".join(trace.answer)),
        served=evidence.model.name,
        model_identity=evidence.model.identity,
        predictor=trace.predictor,
        bound=evidence.bound,
        images=tuple(image.name for image in evidence.images),
        scales=decision.scales,
        reasons=tuple(choice.reason.value for choice in decision.images),
        image_tokens=sum(choice.tokens for choice in decision.images),
        group=topic(query_features(evidence.question).values()),
    )
    return json.dumps(asdict(receipt), separators=(",", ":")).encode()


class Receipts:
    """Blocks: not for an event loop.

    Args:
        ttl_s: how long one is kept.
    """

    def __init__(self, url: str, *, ttl_s: float, timeout_s: float) -> None:
        self._redis = open_redis(url, timeout_s)
        self._ttl_ms = max(round(ttl_s * 1e3), 1)

    def append(self, receipts: Sequence[bytes]) -> int:
        """Keeps what `receipt_of` wrote; how many. Raises redis.RedisError."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for receipt in receipts:
                name = json.loads(receipt)["request_id"]
                pipeline.set(_PREFIX + name, receipt, px=self._ttl_ms)
            return len(pipeline.execute())

    def find(self, request_id: str) -> Receipt | None:
        """Of a request; None if there is none, or none any more. Raises redis.RedisError."""
        found: Any = self._redis.get(_PREFIX + request_id)
        if found is None:
            return None
        row = json.loads(found)
        lists = {name: tuple(row[name]) for name in ("images", "scales", "reasons")}
        return Receipt(**row | lists)

    def close(self) -> None:
        self._redis.close()
