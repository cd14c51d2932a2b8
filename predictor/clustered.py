"""95% confidence intervals for questions that share pictures.

Questions about one picture are not independent, so pictures, not questions, are what chance draws.
Variances are the linearised ("sandwich", CR1) ones of a ratio of picture totals, quantiles those of
Student's t with one degree of freedom less than there are pictures; as Miller, "Adding Error Bars
to Evals" (arXiv 2411.00640), recommends for benchmarks.

A share gets the Wilson interval with the effective number of samples in the place of the number of
samples, the form that Franco, Little, Louis and Slud (Journal of Survey Statistics and Methodology
7, 2019) recommend for clustered samples: unlike ± 1.96 standard errors it stays inside [0, 1] and
says something when everything is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

_UPPER = 0.975
_NOTHING = 1e-12  # a standard error below this is rounding, not spread


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95% interval; no interval where the pictures are too few to tell."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def known(self) -> bool:
        return self.low is not None

    def excludes(self, value: float) -> bool:
        """Whether the interval exists and leaves `value` out."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Which picture each of N samples is about.

    Args:
        index: N numbers from 0 to count − 1.
        count: pictures.
    """

    index: NDArray[np.intp]
    count: int

    @classmethod
    def of(cls, images: Sequence[str] | NDArray[np.object_]) -> Clusters:
        names, index = np.unique(np.asarray(images, dtype=object), return_inverse=True)
        return cls(index, len(names))

    def _standard_error(
        self, values: NDArray[np.float64], weights: NDArray[np.float64] | None = None
    ) -> float:
        """Of the mean over samples, weighted or not; needs two pictures."""
        if weights is None:
            weights = np.ones(len(values))
        residuals = weights * (values - np.average(values, weights=weights))
        sums = np.bincount(self.index, residuals, self.count)
        variance = self.count / (self.count - 1) * float(sums @ sums)
        return sqrt(variance) / float(weights.sum())

    def share(self, values: ArrayLike, weights: NDArray[np.float64] | None = None) -> Estimate:
        """Mean of N values in [0, 1] with its clustered Wilson interval.

        The effective number of samples is p(1−p) over the clustered variance, at most the number of
        samples. Where that is 0/0, all right or all wrong, it is the number of pictures.

        Args:
            weights: N, such as inverse probabilities of having been drawn.
        """
        values = np.asarray(values, dtype=np.float64)
        share = float(np.average(values, weights=weights))
        if self.count < 2:
            return Estimate(share)
        return self._around(share, self._standard_error(values, weights))

    def share_by_picture(self, values: ArrayLike) -> Estimate:
        """Mean over pictures of each one's mean of N values in [0, 1], as `share` otherwise.

        Every picture counts the same, however much is asked about it: what regret bounds are about.
        """
        sums = np.bincount(self.index, np.asarray(values, dtype=np.float64), self.count)
        means = sums / np.bincount(self.index, minlength=self.count)
        share = float(means.mean())
        if self.count < 2:
            return Estimate(share)
        return self._around(share, float(means.std(ddof=1)) / sqrt(self.count))

    def _around(self, share: float, error: float) -> Estimate:
        """A share with its standard error → Wilson's interval; needs two pictures."""
        binomial = share * (1 - share)
        if binomial < _NOTHING:
            effective = float(self.count)
        else:
            effective = min(binomial / max(error, _NOTHING) ** 2, float(len(self.index)))
        return Estimate(share, *_wilson(share, effective, _t(self.count - 1)))

    def difference(self, values: ArrayLike, weights: NDArray[np.float64] | None = None) -> Estimate:
        """Mean of N paired differences, ± t standard errors, within [-1, 1].

        No interval where every picture has the same mean: that nothing differed yet is no bound on
        what may.

        Args:
            weights: N, as of `share`.
        """
        values = np.asarray(values, dtype=np.float64)
        mean = float(np.average(values, weights=weights))
        error = self._standard_error(values, weights) if self.count > 1 else 0.0
        if error < _NOTHING:
            return Estimate(mean)
        reach = _t(self.count - 1) * error
        return Estimate(mean, max(mean - reach, -1.0), min(mean + reach, 1.0))


def members(groups: NDArray[np.object_]) -> dict[str, NDArray[np.bool_]]:
    """Which of N samples belong to each group, by its name, in alphabetical order."""
    return {str(name): np.asarray(groups == name) for name in np.unique(groups)}


def gap(one: Estimate, other: Estimate) -> Estimate:
    """one − other for shares of *different* pictures.

    The interval is Newcombe's hybrid of the two given ones (Statistics in Medicine 17, 1998).
    """
    value = one.value - other.value
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return Estimate(value)
    return Estimate(
        value,
        value - hypot(one.value - one.low, other.high - other.value),
        value + hypot(one.high - one.value, other.value - other.low),
    )


def _t(degrees: int) -> float:
    return float(stdtrit(degrees, _UPPER))


def _wilson(share: float, samples: float, quantile: float) -> tuple[float, float]:
    pull = quantile**2 / samples
    centre = (share + pull / 2) / (1 + pull)
    reach = quantile * sqrt(share * (1 - share) / samples + pull / (4 * samples)) / (1 + pull)
    return max(centre - reach, 0.0), min(centre + reach, 1.0)
