"""A mean over independent networks, with its interval: Student's, 95 %."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy import stats


class Mean(NamedTuple):
    """A mean and its 95 % interval, which is NaN for a single value."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """`-1.10 [-1.12, -1.08]`, to three significant digits."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean(values: Iterable[float]) -> Mean:
    """Over values that are each another network's.

    Example:
        >>> print(mean([1.0, 2.0, 3.0]))
        2 [-0.484, 4.48]
    """
    found = np.asarray(list(values), dtype=float)
    centre = float(found.mean())
    if len(found) < 2:
        return Mean(centre, math.nan, math.nan)
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found))
    return Mean(centre, centre - float(half), centre + float(half))
