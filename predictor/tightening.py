"""Which certified threshold still holds, after what live labels say of each. Pure.

A promise is broken with confidence when the lower end of the confidence sequence of a threshold's
regret lies above the bound that it is used for. The next stricter threshold then stands in for it
of which that cannot be said; where there is none, the finest scale. Lower ends never fall, so what
was tightened stays so until another predictor serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Lows = Mapping[float, float]  # certified bound → at least this is its threshold's regret


@dataclass(frozen=True, slots=True)
class Standing:
    """The threshold that is used for a promise.

    Args:
        price: None is the finest scale.
        tightened_to: the stricter bound whose price it is, 0 for the finest scale; None where the
            promise's own price stands.
    """

    price: float | None
    tightened_to: float | None = None


def standing(certified: Sequence[tuple[float, float]], lows: Lows, promise: float) -> Standing:
    """The loosest price for a promise that nothing speaks against.

    Args:
        certified: (bound, price), strict to loose.
        promise: bound on regret; prices of bounds up to it may be used.
    """
    open_to = [(bound, price) for bound, price in certified if bound <= promise]
    left = [(bound, price) for bound, price in open_to if lows.get(bound, 0.0) <= promise]
    if not open_to or (left and left[-1] == open_to[-1]):
        return Standing(open_to[-1][1] if open_to else None)
    bound, price = left[-1] if left else (0.0, None)
    return Standing(price, bound)


def threshold_with(
    certified: Sequence[tuple[float, float]], lows: Lows
) -> Callable[[float], float | None]:
    """The price for a regret bound, as `Predictor.threshold` gives it while nothing is broken."""
    return lambda promise: standing(certified, lows, promise).price
