"""A predictor beside the one that serves: what it would have decided is recorded, and never used.

It works where records are made, on a thread of its own and after the response, from the features
that the serving predictor has measured. So it delays no request, and where it fails only its own
decision is missing.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

from predictor.routing_records import Observed, ObservedImage
from router.collectors import Observations
from router.ports import WatchingPort
from router.trace import Trace

logger = logging.getLogger("m3_router.predictor")


class Observer:
    """Asks the predictor that watches."""

    def __init__(self) -> None:
        self._predictor: WatchingPort | None = None
        self._refused = False
        self._counts: Counter[tuple[int, int]] = Counter()
        self._failures = 0
        self._failing = False

    def use(self, predictor: WatchingPort | None, *, refused: bool = False) -> None:
        """Lets this one watch from now on.

        Args:
            refused: a newer one is there and cannot be used.
        """
        self._predictor, self._refused = predictor, refused

    @property
    def observations(self) -> Observations:
        version = None if self._predictor is None else self._predictor.version
        return Observations(version, self._refused, dict(self._counts), self._failures)

    def observe(self, trace: Trace) -> Observed | None:
        """What it would have decided; None where nobody watches, where the request was not decided
        or nothing is known of its images, and where it fails. Never raises.
        """
        predictor = self._predictor
        if predictor is None or trace.evidence is None or trace.decision is None:
            return None
        seen = trace.evidence
        if any(image.features is None for image in seen.images):
            return None
        try:
            cases = [
                replace(image.case, p_success=predictor.expect(image.features, seen.question))
                for image in seen.images
                if image.features is not None
            ]
            decision = seen.rule(cases, threshold=predictor.threshold)
        except Exception:
            self._failures += 1
            if not self._failing:  # once, not once a request
                logger.exception("the predictor %s cannot watch", predictor.version)
            self._failing = True
            return None
        self._failing = False
        pairs = zip(trace.decision.scales, decision.scales, strict=True)
        self._counts.update(pairs)
        return Observed(
            predictor.version,
            tuple(
                ObservedImage(
                    choice.scale,
                    choice.reason.value,
                    choice.tokens,
                    choice.p_sufficient,
                    case.p_success or (),
                )
                for choice, case in zip(decision.images, cases, strict=True)
            ),
        )
