"""How large a mean is, whenever one looks: a confidence sequence for values in [0, 1].

Bets against every candidate mean (Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting", JRSS B 2024): a mean whose bets have made 1/α of their stake is not the true
one, and by Ville's inequality that ever happens to the true one with probability α at most, however
often one looks and whenever one stops.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GRID = 1_001
_MOST = 0.5  # of the largest bet that cannot lose everything


class ConfidenceSequence:
    """Of the mean of values that come one after the other, none of them foretelling the mean.

    Args:
        error: probability that the mean is ever outside.
    """

    def __init__(self, error: float = 0.05) -> None:
        self._error = error
        self._means = np.linspace(0.0, 1.0, _GRID)
        self._up = np.zeros(_GRID)  # log wealth of bets that the mean is larger
        self._down = np.zeros(_GRID)
        self._low, self._high = 0, _GRID - 1
        self._sum, self._squares = 0.5, 0.25  # with one value of ½, so that there is a variance
        self.count = 0

    @property
    def interval(self) -> tuple[float, float]:
        """Where the mean is. It never grows."""
        step = 1.0 / (_GRID - 1)
        low, high = self._low * step, self._high * step
        # Between grid points nobody has bet; the next one outwards was ruled out, or is the end.
        return max(low - step, 0.0), min(high + step, 1.0)

    @property
    def mean(self) -> float:
        """Of what came so far; NaN before the first."""
        return (self._sum - 0.5) / self.count if self.count else float("nan")

    def add(self, values: ArrayLike) -> None:
        """The next values, in the order they came. Raises ValueError if one is outside [0, 1]."""
        for value in np.asarray(values, dtype=np.float64).ravel():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{value} is not in [0, 1]")
            self._bet(float(value))

    def _bet(self, value: float) -> None:
        stake = self._stake()
        left = slice(self._low, self._high + 1)  # nobody bets on what is ruled out
        means = self._means[left]
        with np.errstate(divide="ignore"):
            most_up = np.minimum(stake, _MOST / np.maximum(means, 1e-12))
            most_down = np.minimum(stake, _MOST / np.maximum(1.0 - means, 1e-12))
        self._up[left] += np.log1p(most_up * (value - means))
        self._down[left] += np.log1p(-most_down * (value - means))
        self.count += 1
        self._sum += value
        self._squares += (value - self._sum / (self.count + 1)) ** 2
        self._rule_out()

    def _stake(self) -> float:
        """From what came before only, or the bets would be no bets."""
        variance = self._squares / (self.count + 1)
        seen = self.count + 1
        return float(np.sqrt(2 * np.log(2 / self._error) / (variance * seen * np.log(seen + 1))))

    def _rule_out(self) -> None:
        """Half of the stake is on each side."""
        first, end = self._low, self._high + 1
        sides = self._up[first:end], self._down[first:end]
        wealth: NDArray[np.float64] = np.logaddexp(*sides) + np.log(0.5)
        left = np.flatnonzero(wealth < np.log(1 / self._error))
        if len(left):
            self._low, self._high = first + int(left[0]), first + int(left[-1])
