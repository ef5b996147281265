"""Numbers read off a Lyapunov spectrum: dimensions, entropies, sums, gaps, moments, counts.

All take exponents (…, k) in one unit and return (…). `dimension` is the size D of the tangent
space; with k < D, quantities that would need the missing exponents are NaN.

Policy: NaN makes its spectrum's result NaN. −inf (a direction that a map annihilates) is an
exponent like any other wherever order or sums decide; moments about the mean do not exist with
it and are NaN.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def _spectra(exponents: ArrayLike) -> Array:
    values = np.asarray(exponents, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"a spectrum needs at least one exponent, got shape {values.shape}")
    return values


def kaplan_yorke(exponents: ArrayLike, dimension: int) -> Array:
    """Kaplan–Yorke dimension j + (λ_1 + … + λ_j)/|λ_{j+1}| (Kaplan & Yorke 1979).

    j is the largest number of leading exponents with a sum ≥ 0; 0 where λ_1 < 0, D where the sum
    of all D is ≥ 0, NaN where k < D exponents do not reach a negative sum.

    Example:
        >>> round(float(kaplan_yorke([0.9056, 0.0, -14.5722], 3)), 4)  # Lorenz 1963
        2.0621
    """
    ordered = -np.sort(-_spectra(exponents), axis=-1)
    k = ordered.shape[-1]
    sums = np.cumsum(ordered, axis=-1)
    is_over = ~(sums >= 0)
    has_end = is_over.any(-1)
    j = np.where(has_end, is_over.argmax(-1), k)
    before = np.where(
        j > 0, np.take_along_axis(sums, np.maximum(j - 1, 0)[..., None], -1)[..., 0], 0.0
    )
    after = np.take_along_axis(ordered, np.minimum(j, k - 1)[..., None], -1)[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = j + before / np.abs(after)
    result = np.where(
        has_end, np.where(j == 0, 0.0, inside), dimension if k == dimension else np.nan
    )
    return np.where(np.isnan(ordered).any(-1), np.nan, result)


def entropy_bound(exponents: ArrayLike, dimension: int) -> Array:
    """Sum of the positive exponents, Ruelle's upper bound of the Kolmogorov–Sinai entropy.

    Equal to it where Pesin's formula holds. NaN where k < D and all k are positive.

    Example:
        >>> float(entropy_bound([0.5, 0.25, -1.0], 7))
        0.75
    """
    values = _spectra(exponents)
    total = np.where(values > 0, values, 0.0).sum(-1)
    is_open = (values > 0).all(-1) & (values.shape[-1] < dimension)
    return np.where(np.isnan(values).any(-1) | is_open, np.nan, total)


def total(exponents: ArrayLike) -> Array:
    """Sum of the exponents given: mean log|det J| where they are all of them.

    Example:
        >>> float(total([0.5, -1.0]))
        -0.5
    """
    return np.asarray(_spectra(exponents).sum(-1))


def gaps(exponents: ArrayLike) -> Array:
    """λ_i − λ_{i+1} (…, k − 1); NaN between two −inf.

    Example:
        >>> gaps([0.5, 0.0, -1.0]).tolist()
        [0.5, 1.0]
    """
    values = _spectra(exponents)
    with np.errstate(invalid="ignore"):
        return np.asarray(values[..., :-1] - values[..., 1:])


def near_zero(exponents: ArrayLike, threshold: float) -> Array:
    """Number of exponents with |λ| ≤ threshold: directions that neither grow nor fade.

    Example:
        >>> float(near_zero([0.5, 0.01, -0.02, -1.0], 0.05))
        2.0
    """
    values = _spectra(exponents)
    count = (np.abs(values) <= threshold).sum(-1).astype(np.float64)
    return np.where(np.isnan(values).any(-1), np.nan, count)


def moments(exponents: ArrayLike) -> dict[str, Array]:
    """Mean, population standard deviation, skewness and excess kurtosis over the exponents.

    Example:
        >>> found = moments([1.0, 0.0, -1.0])
        >>> {name: round(float(value), 3) for name, value in found.items()}
        {'mean': 0.0, 'std': 0.816, 'skewness': 0.0, 'kurtosis': -1.5}
    """
    values = _spectra(exponents)
    mean = values.mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = values - mean[..., None]
        variance = (centred**2).mean(-1)
        scale = np.where(variance > 0, variance, np.nan)
        return {
            "mean": np.asarray(mean),
            "std": np.sqrt(variance),
            "skewness": (centred**3).mean(-1) / scale**1.5,
            "kurtosis": (centred**4).mean(-1) / scale**2 - 3,
        }


def features(
    exponents: ArrayLike, dimension: int, *, near_zero_threshold: float, leading: int = 10
) -> dict[str, Array]:
    """The scalar features that the analysis relates to performance, by name.

    Example:
        >>> found = features([0.5, -0.01, -1.0], 3, near_zero_threshold=0.05)
        >>> float(found["max"]), float(found["gap"]), float(found["near_zero"])
        (0.5, 0.51, 1.0)
    """
    values = _spectra(exponents)
    ordered = np.where(np.isnan(values).any(-1, keepdims=True), np.nan, -np.sort(-values, axis=-1))
    result: dict[str, Any] = {
        "max": ordered[..., 0],
        "min": ordered[..., -1],
        "sum": total(values),
        **moments(values),
        "leading_mean": ordered[..., :leading].mean(-1),
        "median": np.median(ordered, axis=-1),
        "gap": gaps(ordered)[..., 0]
        if ordered.shape[-1] > 1
        else np.full(ordered.shape[:-1], math.nan),
        "near_zero": near_zero(values, near_zero_threshold),
        "positive_share": np.where(np.isnan(ordered[..., 0]), np.nan, (values > 0).mean(-1)),
        "kaplan_yorke": kaplan_yorke(values, dimension),
        "entropy_bound": entropy_bound(values, dimension),
    }
    return {name: np.asarray(value) for name, value in result.items()}
