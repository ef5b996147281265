"""What independently trained networks say together: differences, slopes and shares, with intervals.

Every interval is a 95 % interval over networks, each with a seed of its own, and every network is
one number however many inputs it was measured on.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.studies.base import Finding, by_interval
from analysis.studies.over_seeds import Mean


def difference(first: ArrayLike, second: ArrayLike) -> Mean:
    """Mean of the first networks minus that of the second; Welch's interval.

    NaN ends where one of the two has fewer than two networks.

    >>> found = difference([2.0, 4.0, 3.0], [1.0, 1.5, 0.5])
    >>> print(found)
    2 [0.009, 3.99]
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    mean = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Mean(mean, math.nan, math.nan)
    parts = [x.var(ddof=1) / len(x) for x in (a, b)]
    variance = parts[0] + parts[1]
    if variance == 0:
        return Mean(mean, mean, mean)
    freedom = variance**2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    half = float(stats.t.ppf(0.975, freedom) * math.sqrt(variance))
    return Mean(mean, mean - half, mean + half)


def slopes(columns: Mapping[str, ArrayLike], y: ArrayLike) -> dict[str, Mean]:
    """Coefficients of the columns in a least-squares fit of y with a constant; Student's intervals.

    What the line does not fit counts as scatter and widens them. NaN ends without a degree of
    freedom left.

    >>> found = slopes({"x": [0.0, 1.0, 2.0, 3.0]}, [0.0, 2.1, 3.9, 6.0])["x"]
    >>> print(found)
    1.98 [1.82, 2.14]
    """
    target = np.asarray(y, float)
    X = np.column_stack([np.ones(len(target)), *(np.asarray(c, float) for c in columns.values())])
    inverse = np.linalg.pinv(X.T @ X)
    fit = inverse @ X.T @ target
    freedom = len(target) - X.shape[1]
    half = np.full(len(fit), math.nan)
    if freedom > 0:
        variance = float(((target - X @ fit) ** 2).sum() / freedom)
        half = stats.t.ppf(0.975, freedom) * np.sqrt(variance * np.diag(inverse))
    return {
        name: Mean(float(b), float(b - h), float(b + h))
        for name, b, h in zip(columns, fit[1:], half[1:], strict=True)
    }


def least_case(
    claim: str,
    cases: Mapping[str, Mean],
    what: str,
    *,
    above: float = 0.0,
    unit: str = "nats",
) -> Finding:
    """Whether the intervals of all cases, by name, lie above a bound; reversed if all lie below.

    The finding's numbers are those of the case whose interval starts lowest; a case without an
    interval is that one. `what` is the beginning of "… 0.3 [0.1, 0.5] nats at N = 10".
    """
    at = min(cases, key=lambda key: -math.inf if math.isnan(cases[key].low) else cases[key].low)
    least = cases[at]
    highest = float(np.max([found.high for found in cases.values()]))  # NaN stays NaN
    others = [found.value for found in cases.values()]
    words = "" if unit == "1" else f" {unit}"
    rest = f"; the largest of {len(cases)} is {max(others):.3g}" if len(cases) > 1 else ""
    return Finding(
        claim,
        by_interval(least.low, highest, above=above),
        f"{what} {least}{words} at {at}{rest}.",
        least.value,
        least.low,
        least.high,
        unit,
    )
