"""Ray Serve's request router for the model's replicas: `placement` by what is outstanding here."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from deploy.placement import picture_of, rank, work_of
from m3_backend.messages import GenerationRequest


@dataclass(frozen=True, slots=True)
class _Given:
    """Work that a replica has been given, as far as is known here."""

    replica: str
    work_ms: float
    deadline: float | None
    pending: PendingRequest

    def is_over(self, now: float) -> bool:
        """Nobody will tell of it any more: cancelled before it was sent, or past its deadline."""
        late = self.deadline is not None and now > self.deadline
        return late or self.pending.future.cancelled()


class AffinityRouter(RequestRouter):
    """Sends a picture to the replica that had it before, unless that one has too much to do.

    Every ingress replica has one of these and knows the work that it has handed over itself. It is
    counted when it is decided, because Serve tells where a request went only in some of its modes.
    """

    def initialize_state(self, **_: Any) -> None:
        # By request id. Entries leave on other threads, one whole operation each.
        self._given: dict[str, _Given] = {}
        self._rng = random.Random()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # a full house is no busy loop
        free = self.select_available_replicas(candidate_replicas) or candidate_replicas
        by_name = {each.replica_id.unique_id: each for each in free}
        asked = _asked(pending_request)
        outstanding = self._outstanding(but=pending_request)
        ranks = rank(
            picture_of(asked) if asked else None,
            asked.encode_ms if asked else 0.0,
            {name: outstanding[name] for name in by_name},
            self._rng,
        )
        if ranks:
            self._note(pending_request, ranks[0][0])
        return [[by_name[name] for name in names] for names in ranks]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        self._note(pending_request, replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        self._given.pop(internal_request_id, None)

    def _note(self, pending: PendingRequest | None, replica: str) -> None:
        if pending is not None and (asked := _asked(pending)) is not None:
            given = _Given(replica, work_of(asked), asked.deadline, pending)
            self._given[pending.metadata.internal_request_id] = given

    def _outstanding(self, but: PendingRequest | None) -> defaultdict[str, float]:
        """Work per replica, without that of a request which is decided again."""
        now, outstanding = time.time(), defaultdict[str, float](float)
        for request_id, given in tuple(self._given.items()):
            if given.is_over(now):
                self._given.pop(request_id, None)
            elif given.pending is not but:
                outstanding[given.replica] += given.work_ms
        return outstanding


def _asked(pending: PendingRequest | None) -> GenerationRequest | None:
    """The request to the model, if this is one: replicas are asked for their state, too."""
    arguments = pending.args if pending is not None else ()
    first = arguments[0] if arguments else None
    return first if isinstance(first, GenerationRequest) else None
