"""Means with intervals that respect that rows of one household are alike.

In: one value and one household per row. Out: an `Estimate`. The interval is a t interval on G - 1 degrees of freedom
with the cluster-robust standard error sqrt(G / (G - 1) * sum over households of (sum of residuals)^2) / rows
(Liang and Zeger 1986; Cameron and Miller 2015, section II). A row-level interval would pass a true loss twice as
often as it says (`docs/evaluation.md`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

CONFIDENCE = 0.95
# Normal quantiles of a one-sided 5 % test that shall find a true difference 80 % of the time.
_TEST_AND_POWER = 1.6448536269514722 + 0.8416212335729143


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over rows; `standard_error` is clustered by household and None with fewer than two of them."""

    mean: float
    standard_error: float | None
    num_rows: int
    num_households: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The two-sided 95 % interval."""
        if self.standard_error is None:
            return None
        reach = float(stdtrit(self.num_households - 1, (1 + CONFIDENCE) / 2)) * self.standard_error
        return self.mean - reach, self.mean + reach

    @property
    def lower_bound(self) -> float | None:
        """The one-sided 95 % lower bound."""
        if self.standard_error is None:
            return None
        return self.mean - float(stdtrit(self.num_households - 1, CONFIDENCE)) * self.standard_error

    def households_needed(self) -> int | None:
        """Households with which the lower bound is above 0 four times in five, at the mean and spread seen here.

        None when no number would do (the mean is not above 0) or nothing is known of the spread.
        """
        if self.standard_error is None or self.mean <= 0:
            return None
        spread = self.standard_error * math.sqrt(self.num_households)
        return max(2, math.ceil((_TEST_AND_POWER * spread / self.mean) ** 2))


def exact_mean(values: Sequence[float]) -> float:
    """The mean from an exact sum: the same values in any order give the same mean."""
    return math.fsum(values) / len(values)


def clustered(values: ArrayLike, households: ArrayLike) -> Estimate:
    """Estimate a mean over rows.

    Args:
        values: one finite number per row, at least one row.
        households: one id per row.
    """
    x = np.asarray(values, dtype=np.float64)
    mean = exact_mean(x.tolist())
    _, cluster = np.unique(np.asarray(households), return_inverse=True)
    sums = np.bincount(cluster, weights=x - mean)
    num = len(sums)
    error = math.sqrt(num / (num - 1) * float(sums @ sums)) / len(x) if num > 1 else None
    return Estimate(mean, error, len(x), num)
