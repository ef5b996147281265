"""Bootstrap intervals of correlations: many resamples at once, as counts of their trials.

The interval is bias-corrected and accelerated (BCa, Efron 1987), or the percentile one where that
is undefined.

Shapes: n trials, B resamples, G configurations.
"""

import math
from typing import Literal

import numpy as np
from scipy import stats

Kind = Literal["spearman", "pearson"]

CHUNK = 250_000  # elements of a (B, n) block held at once: what a cache holds
_JACKKNIFE_UP_TO = 500  # its cost grows as n², what it corrects shrinks as 1/√n


def midranks(counts: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Ranks of x, (n,), in resamples that hold its entries `counts`, (B, n), times."""
    levels, level = np.unique(x, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(len(levels)))
    per_level = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks: np.ndarray = (np.cumsum(per_level, axis=1) - (per_level - 1) / 2)[:, level]
    return ranks


def weighted(counts: np.ndarray, x: np.ndarray, y: np.ndarray, kind: Kind) -> np.ndarray:
    """The correlation in each resample, (B,); NaN where one side is constant in it."""
    total = counts.sum(axis=1, keepdims=True)
    if kind == "spearman":
        a, b = midranks(counts, x), midranks(counts, y)
    else:
        a, b = (np.broadcast_to((v - v.mean()) / v.std(), counts.shape) for v in (x, y))
    a = a - (counts * a).sum(axis=1, keepdims=True) / total
    b = b - (counts * b).sum(axis=1, keepdims=True) / total
    ca = counts * a
    square = (ca * a).sum(axis=1) * (counts * b * b).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = np.where(square > 1e-20, (ca * b).sum(axis=1) / np.sqrt(square), math.nan)
    clipped: np.ndarray = np.clip(value, -1, 1)
    return clipped


def bootstrap_interval(
    value: float,
    x: np.ndarray,
    y: np.ndarray,
    kind: Kind,
    B: int,
    rng: np.random.Generator,
    together: np.ndarray | None,
) -> tuple[float, float, str]:
    """Bounds and the name of the method; trials of one number in `together` are drawn as one."""
    n = len(x)
    unit = np.arange(n) if together is None else np.unique(together, return_inverse=True)[1]
    G = int(unit.max()) + 1
    rows = max(1, CHUNK // n)
    parts = []
    for start in range(0, B, rows):
        size = min(rows, B - start)
        drawn = rng.integers(0, G, (size, G)) + G * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * G).reshape(size, G).astype(float)
        parts.append(weighted(counts if together is None else counts[:, unit], x, y, kind))
    resampled = np.concatenate(parts)
    resampled = np.sort(resampled[np.isfinite(resampled)])
    left_out = np.zeros(0)
    if n <= _JACKKNIFE_UP_TO:
        left_out = weighted((1.0 - np.eye(G))[:, unit], x, y, kind)
    levels, name = bca(value, resampled, left_out)
    low, high = np.quantile(resampled, levels)
    return float(low), float(high), name


def bca(
    value: float, resampled: np.ndarray, left_out: np.ndarray, level: float = 0.05
) -> tuple[tuple[float, float], str]:
    """Levels of the bootstrap distribution that bound the interval (Efron 1987).

    left_out: the estimate without each trial; empty where it was too dear to compute.
    """
    ends = (level / 2, 1 - level / 2)
    percentile = (ends, "percentile")
    below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
    if len(left_out) == 0 or not 0 < below < 1:
        return percentile
    gap = np.nanmean(left_out) - left_out
    if not np.isfinite(gap).all() or gap @ gap == 0:
        return percentile
    acceleration = (gap**3).sum() / (6 * (gap @ gap) ** 1.5)
    z0 = stats.norm.ppf(below)
    shifted = z0 + stats.norm.ppf(ends)
    scale = 1 - acceleration * shifted
    if (scale <= 0).any():
        return percentile
    low, high = stats.norm.cdf(z0 + shifted / scale)
    return (float(low), float(high)), "BCa"
