"""How two inputs grow alike or apart, layer by layer: C(c), its slope, its fixed point, its scale.

Poole et al. 2016; Schoenholz et al. 2017. c is the correlation of two inputs of one length q.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from pipeline.dynamics.wide.activations import TANH, Activation, Array
from pipeline.dynamics.wide.checks import check_scales
from pipeline.dynamics.wide.lengths import chi_1, given_length, length_map
from pipeline.dynamics.wide.means import mean_gap, mean_product, mean_slope_product


def correlation_map(
    c: ArrayLike,
    sigma_w: float,
    sigma_b: float,
    *,
    q: float | None = None,
    activation: Activation = TANH,
) -> Array:
    """C(c) = (σ_w² ∫Dz_1 Dz_2 φ(u_1) φ(u_2) + σ_b²)/V(q) (Poole et al. 2016, fig. 2).

    u_1 and u_2 have variance q and correlation c.

    Args:
        c: any shape, correlations in [−1, 1] of two inputs of length q.
        q: their length; None for the fixed point q*, where V(q) = q.

    Returns the correlation one layer on, in the shape of c. Raises ValueError for |c| > 1, where
    V(q) = 0 and correlations do not exist, and as `fixed_point` does.

    >>> print(f"{correlation_map(0.122, 2.5, 0.3):.3f}")
    0.122
    """
    check_scales(sigma_w, sigma_b)
    values = np.asarray(c, dtype=np.float64)
    if not (np.abs(values) <= 1).all():
        raise ValueError(f"correlations must be within −1 … 1, got {values}")
    q = given_length(sigma_w, sigma_b, q, activation)
    after = float(length_map(q, sigma_w, sigma_b, activation=activation))
    if after == 0:
        raise ValueError(_no_correlation(sigma_w, sigma_b))
    if q == 0:  # both inputs are 0, whatever their correlation
        return np.ones_like(values)[()]
    product = np.array([mean_product(activation, q, float(x)) for x in values.ravel()])
    return np.asarray((sigma_w**2 * product.reshape(values.shape) + sigma_b**2) / after)[()]


def correlation_slope(
    c: float,
    sigma_w: float,
    sigma_b: float,
    *,
    q: float | None = None,
    activation: Activation = TANH,
) -> float:
    """C′(c) = σ_w² ∫Dz_1 Dz_2 φ′(u_1) φ′(u_2) at the fixed length (Schoenholz et al. 2017).

    χ_1 at c = 1. For a q that is not a fixed point, dC/dc is this times q/V(q). Arguments and
    errors as for `correlation_map`.

    >>> print(f"{correlation_slope(1.0, 1.3, 0.3):.6f}")
    0.939807
    """
    check_scales(sigma_w, sigma_b)
    if not -1 <= c <= 1:
        raise ValueError(f"correlations must be within −1 … 1, got {c}")
    q = given_length(sigma_w, sigma_b, q, activation)
    if c == 1:
        return chi_1(sigma_w, sigma_b, q=q, activation=activation)
    return sigma_w**2 * mean_slope_product(activation, q, c)


def fixed_correlation(
    sigma_w: float, sigma_b: float, *, q: float | None = None, activation: Activation = TANH
) -> float:
    """c*, the correlation that any two inputs converge to (Poole et al. 2016, fig. 2).

    The stable fixed point of C on [0, 1], where C is convex: 1 in the ordered phase and on the
    critical line, less in the chaotic one. A `q` that is passed must be a fixed point of V; it
    says which one where there are many. Raises as `correlation_map` does, and
    ValueError for a q that is not.

    >>> print(f"{fixed_correlation(2.5, 0.3):.3f}, {fixed_correlation(4.0, 0.3):.4f}")
    0.122, 0.0297
    """
    check_scales(sigma_w, sigma_b)
    q = given_length(sigma_w, sigma_b, q, activation)
    if q == 0:
        raise ValueError(_no_correlation(sigma_w, sigma_b))
    after = float(length_map(q, sigma_w, sigma_b, activation=activation))
    if abs(after - q) > 1e-6 * q:
        raise ValueError(f"q must be a fixed point of V, but V({q:g}) = {after:g}")
    if chi_1(sigma_w, sigma_b, q=q, activation=activation) <= 1 + 1e-12:
        return 1.0

    def relative(log_e: float) -> float:
        # (1 − C(1 − e))/e − 1, from the difference itself: C alone would cancel near c = 1.
        e = math.exp(log_e)
        return sigma_w**2 * mean_gap(activation, q, e) / (q * e) - 1

    if relative(0.0) > -1e-13:
        return 0.0
    far = -math.log(2)
    while relative(far) < 0:
        far -= math.log(2)
    return -math.expm1(brentq(relative, far, far + math.log(2), xtol=1e-12, rtol=1e-12))


def correlation_length(
    sigma_w: float, sigma_b: float, *, q: float | None = None, activation: Activation = TANH
) -> float:
    """ξ = −1/log C′(c*), layers in which |c − c*| falls by e (Schoenholz et al. 2017).

    −1/log χ_1 in the ordered phase, where c* = 1; infinite on the critical line; 0 where
    C′(c*) = 0. Raises as `fixed_correlation` does.

    >>> print(f"{correlation_length(1.3, 0.3):.3f}")
    16.108
    """
    c = fixed_correlation(sigma_w, sigma_b, q=q, activation=activation)
    slope = correlation_slope(c, sigma_w, sigma_b, q=q, activation=activation)
    if slope <= 0:
        return 0.0
    return math.inf if slope >= 1 - 1e-12 else -1 / math.log(slope)


def _no_correlation(sigma_w: float, sigma_b: float) -> str:
    return (
        f"signals vanish (q* = 0) at σ_w={sigma_w:g}, σ_b={sigma_b:g}, so that correlations do not "
        "exist; take σ_b > 0 or pass q"
    )
