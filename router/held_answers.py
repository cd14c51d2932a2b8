"""What every scale answered to a drawn request, and what would have been right: whichever comes
first waits for the other, and together they are a label of correctness.

Both are fingerprints (`predictor.feedback_records.fingerprint`), in the Redis that records pass
through, with a time to live. Each side first puts down its own and then looks for the other's, so
one of them sees both, or both do: then the label is written twice and read once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from predictor.feedback_records import fingerprint
from predictor.label_records import with_correctness
from router.record_stream import open_redis

_ANSWERS, _RIGHT = "m3:feedback:answers:", "m3:feedback:right:"


class HeldAnswers:
    """Blocks: not for an event loop.

    Args:
        append: puts labels of correctness on their stream and gives how many it took.
        ttl_s: how long each side waits for the other.
    """

    def __init__(
        self, url: str, append: Callable[[Sequence[bytes]], int], *, ttl_s: float, timeout_s: float
    ) -> None:
        self._redis = open_redis(url, timeout_s)
        self._append = append
        self._ttl_ms = max(round(ttl_s * 1e3), 1)

    def answered(self, request_id: str, label: bytes, texts: Sequence[str]) -> bool:
        """Holds what every scale answered; whether it is known what is right.

        Args:
            label: encoded.
            texts: coarse to fine.

        Raises:
            redis.RedisError: asking again does no harm.
        """
        found = [fingerprint(request_id, text) for text in texts]
        held = json.dumps([label.decode(), found])
        right = self._exchange(_ANSWERS + request_id, held, _RIGHT + request_id)
        return right is not None and self._label(label, found, right)

    def judged(self, request_id: str, answers: Sequence[str]) -> bool:
        """Holds what is right; whether it is known what every scale answered.

        Raises:
            redis.RedisError: asking again does no harm.
        """
        right = [fingerprint(request_id, answer) for answer in answers]
        held = self._exchange(_RIGHT + request_id, json.dumps(right), _ANSWERS + request_id)
        return held is not None and self._label(held[0].encode(), held[1], right)

    def close(self) -> None:
        self._redis.close()

    def _exchange(self, own: str, value: str, other: str) -> Any:
        self._redis.set(own, value, px=self._ttl_ms)
        found: Any = self._redis.get(other)
        try:
            return None if found is None else json.loads(found)
        except ValueError:  # whoever wrote that, it is not what the other side says
            return None

    def _label(self, label: bytes, found: Sequence[str], right: Sequence[str]) -> bool:
        return self._append([with_correctness(label, [each in right for each in found])]) == 1
