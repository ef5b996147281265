"""Do sweeps agree? Signs, intervals, and heterogeneity of one number known of each.

Cochran's Q and I² of Fisher's z (Cochran 1954; Higgins & Thompson 2002, with their test-based
interval of I²). The weight of a sweep comes from its own interval, so that the covariates it held
fixed are counted. Nothing is pooled: a mean over sweeps of different design would be of nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Relation = Literal["same", "some", "none", "contradict"]

_REACH = float(stats.norm.ppf(0.975))
_EDGE = 1 - 1e-12


@dataclass(frozen=True)
class Bounded:
    """A correlation with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval leaves out 0, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


@dataclass(frozen=True)
class Agreement:
    """How the sweeps' numbers lie to one another.

    Attributes:
        relation: all intervals leave out 0 on the same side ("same"), some do ("some"), none
            does ("none"), or some lie on either side ("contradict").
        positive, negative, open: names of the sweeps by the side of 0; open where it is held.
        apart: pairs whose intervals do not overlap.
        q, free, p: Cochran's statistic, its degrees of freedom and p value; NaN below two sweeps.
        i2, i2_low, i2_high: share of the spread beyond chance; no interval below three sweeps.
    """

    relation: Relation
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    open: tuple[str, ...]
    apart: tuple[tuple[str, str], ...]
    q: float
    free: int
    p: float
    i2: float
    i2_low: float
    i2_high: float


def agreement(numbers: Mapping[str, Bounded]) -> Agreement:
    """Of the sweeps by name, each with finite bounds."""
    sides = {
        side: tuple(name for name, number in numbers.items() if number.sign == side)
        for side in (1, -1, 0)
    }
    relation: Relation
    if sides[1] and sides[-1]:
        relation = "contradict"
    elif sides[0]:
        relation = "some" if sides[1] or sides[-1] else "none"
    else:
        relation = "same"
    names = list(numbers)
    apart = tuple(
        (a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if numbers[a].low > numbers[b].high or numbers[b].low > numbers[a].high
    )
    q, free = _cochran(list(numbers.values()))
    i2, low, high = _i_squared(q, free)
    p = float(stats.chi2.sf(q, free)) if free > 0 else math.nan
    return Agreement(
        relation, sides[1], sides[-1], sides[0], apart, q, free, p, i2, low, high
    )  # fmt: skip


def _cochran(numbers: list[Bounded]) -> tuple[float, int]:
    free = len(numbers) - 1
    if free < 1:
        return math.nan, free
    ends = np.array([[n.value, n.low, n.high] for n in numbers])
    z, low, high = np.arctanh(np.clip(ends, -_EDGE, _EDGE)).T
    weights = (2 * _REACH / (high - low)) ** 2
    mean = (weights * z).sum() / weights.sum()
    return float((weights * (z - mean) ** 2).sum()), free


def _i_squared(q: float, free: int) -> tuple[float, float, float]:
    if free < 1:
        return math.nan, math.nan, math.nan
    share = max(0.0, 1 - free / q) if q > 0 else 0.0
    if free < 2:
        return share, math.nan, math.nan
    # ln H, H² = Q / free, and its spread: their equations 26 and 27.
    log_h = 0.5 * math.log(max(q, free) / free)
    if q > free + 1:
        spread = 0.5 * (math.log(q) - math.log(free)) / (math.sqrt(2 * q) - math.sqrt(2 * free - 1))
    else:
        spread = math.sqrt(1 / (2 * (free - 1)) * (1 - 1 / (3 * (free - 1) ** 2)))
    low, high = (
        max(0.0, 1 - math.exp(-2 * end))
        for end in (log_h - _REACH * spread, log_h + _REACH * spread)
    )
    return share, low, high
