"""`POST /v1/feedback`: whether an answer was right, from whoever got it.

The first that is said of a request counts: the same once more changes nothing, something else is
refused. It goes the way of the records; of a right answer a fingerprint is kept and never the text.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256

from m3_backend.errors import InvalidRequestError, ServiceError
from predictor.feedback_records import encode, fingerprint
from predictor.metrics import canonical
from predictor.records import CORRECT_FROM
from router.access import Caller
from router.errors import Code
from router.held_answers import HeldAnswers
from router.receipts import Receipt, Receipts
from router.record_stream import Appended, RecordStream
from router.schemas import FeedbackRequest, FeedbackTaken, parse_feedback

logger = logging.getLogger("m3_router.records")

_GIVEN = "m3:feedback:given:"
# A receipt is on its way for a fifth of a second; who judges an answer at once waits for it.
_SETTLES_S = 0.5
_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Judged:
    """Feedback that was taken, and of what."""

    taken: FeedbackTaken
    receipt: Receipt

    @property
    def right(self) -> bool:
        return self.taken.score >= CORRECT_FROM


class Feedback:
    """Takes feedback.

    Args:
        stream: of feedback.
        held: None where no shadow answers are held.
        window_s: how long what was said is remembered.
        clock: Unix time, seconds.
    """

    def __init__(
        self,
        receipts: Receipts,
        stream: RecordStream,
        held: HeldAnswers | None,
        *,
        window_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._receipts, self._stream, self._held = receipts, stream, held
        self._window_s, self._clock = window_s, clock

    async def give(self, body: bytes, caller: Caller) -> Judged:
        """Takes the feedback in `body`.

        Raises:
            InvalidRequestError: `invalid_request` and the like; `request_unknown` (404), also for
                another key's requests; `feedback_conflict` (409).
            ServiceError: `feedback_unavailable` (503).
        """
        said = parse_feedback(body)
        try:
            receipt = await self._find(said.request_id, caller)
            if receipt is None:
                await asyncio.sleep(_SETTLES_S)
                receipt = await self._find(said.request_id, caller)
            if receipt is None:
                raise InvalidRequestError(
                    "No answer of that request id was given to this caller, or it is too long ago.",
                    status=404,
                    code=Code.REQUEST_UNKNOWN,
                    param="request_id",
                )
            taken = await asyncio.to_thread(self._take, said, receipt)
        except ServiceError:
            raise
        except Exception as error:  # damaged replies break the client's parser in many ways
            logger.debug("no feedback for now: %r", error)
            raise _unavailable() from error
        return Judged(taken, receipt)

    def close(self) -> None:
        self._receipts.close()
        self._stream.close()
        if self._held is not None:
            self._held.close()

    async def _find(self, request_id: str, caller: Caller) -> Receipt | None:
        """Of a request that this caller may judge: others' are not there, nor faster to tell."""
        receipt = await asyncio.to_thread(self._receipts.find, request_id)
        return receipt if receipt is not None and caller.may_judge(receipt.key) else None

    def _take(self, said: FeedbackRequest, receipt: Receipt) -> FeedbackTaken:
        score = _score(said, receipt)
        row = asdict(receipt)
        del row["answer"]
        row |= {
            "given_at": round(self._clock() * 1e6),
            "score": score,
            "answer_given": bool(said.answers),
        }
        name = _GIVEN + receipt.request_id
        appended = self._stream.append_once(encode(row), name, _mark(said), self._window_s)
        if appended is Appended.FULL:
            raise _unavailable()
        if appended is Appended.OTHER:
            raise InvalidRequestError(
                "Something else was said of this answer before; the first feedback counts.",
                status=409,
                code=Code.FEEDBACK_CONFLICT,
                param="request_id",
            )
        labelled = False
        if self._held is not None and said.answers:
            labelled = self._held.judged(receipt.request_id, said.answers)
        return FeedbackTaken(
            request_id=receipt.request_id,
            status="recorded" if appended is Appended.NEW else "repeated",
            score=score,
            labelled=labelled,
        )


def _score(said: FeedbackRequest, receipt: Receipt) -> float:
    """Of the answer that was served: the caller's own verdict, else whether it is a right one."""
    if said.score is not None:
        return said.score
    if said.verdict is not None:
        return float(said.verdict == "right")
    right = {fingerprint(receipt.request_id, answer) for answer in said.answers}
    return float(receipt.answer in right)


def _mark(said: FeedbackRequest) -> str:
    """Equal for feedback that says the same. A hash, because it lies in Redis."""
    answers = sorted({canonical(answer) for answer in said.answers})
    told = json.dumps([said.request_id, said.verdict, said.score, answers])
    return sha256(told.encode()).hexdigest()


def _unavailable() -> ServiceError:
    return ServiceError(
        "Feedback cannot be kept just now; send it again.",
        status=503,
        code=Code.FEEDBACK_UNAVAILABLE,
        retry_after_s=_RETRY_S,
    )
