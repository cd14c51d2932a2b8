"""The predictor that decides, and which of its thresholds live labels have left standing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from predictor.records import Target
from predictor.tightening import Lows, Standing, standing
from router.ports import PredictorPort


@dataclass(frozen=True, slots=True, eq=False)
class InForce:
    """One for a whole request: it may be replaced meanwhile.

    Args:
        certified: (bound, price) of the predictor, strict to loose.
        lows: what live labels say that the regret at those prices is at least.
    """

    predictor: PredictorPort | None = None
    certified: tuple[tuple[float, float], ...] = ()
    lows: Lows = field(default_factory=dict)

    @classmethod
    def of(cls, predictor: PredictorPort | None, lows: Mapping[str, Lows]) -> InForce:
        """A predictor, with what is known of it among the lows of many, by version."""
        if predictor is None:
            return cls()
        pairs = ((bound, predictor.threshold(bound)) for bound in predictor.regret_bounds)
        certified = tuple((bound, price) for bound, price in pairs if price is not None)
        return cls(predictor, certified, lows.get(predictor.version, {}))

    @property
    def version(self) -> str | None:
        return None if self.predictor is None else self.predictor.version

    @property
    def target(self) -> Target | None:
        return None if self.predictor is None else self.predictor.target

    def standing(self, promise: float) -> Standing:
        """What a promise is decided at."""
        return standing(self.certified, self.lows, promise)

    def threshold(self, promise: float) -> float | None:
        """The price of a promise; None is the finest scale."""
        return self.standing(promise).price
