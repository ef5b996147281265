"""How long signals and tangents are, layer by layer: V(q), its fixed point, χ_1 and χ_2.

Poole et al. 2016; Schoenholz et al. 2017. q is the mean square of a pre-activation.
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from pipeline.dynamics.wide.activations import TANH, Activation, Array
from pipeline.dynamics.wide.checks import as_lengths, check_scales
from pipeline.dynamics.wide.means import (
    half_square,
    mean_of,
    mean_square,
    mean_square_slope,
)


def length_map(
    q: ArrayLike, sigma_w: float, sigma_b: float, *, activation: Activation = TANH
) -> Array:
    """V(q) = σ_w² ∫Dz φ(√q z)² + σ_b² (Poole et al. 2016, fig. 1).

    Args:
        q: any shape, mean square of the pre-activations of a layer.
        sigma_w, sigma_b: σ_w and σ_b.
        activation: φ.

    Returns the mean square one layer on, in the shape of q. Raises ValueError for q < 0 and for
    σ that are negative or not finite.

    >>> print(f"{length_map(0.607046792, 1.3, 0.3):.9f}")
    0.607046792
    """
    check_scales(sigma_w, sigma_b)
    return np.asarray(sigma_w**2 * mean_square(activation, as_lengths(q)) + sigma_b**2)[()]


def fixed_point(sigma_w: float, sigma_b: float, *, activation: Activation = TANH) -> float:
    """q* = V(q*), the length that layers converge to (Poole et al. 2016, fig. 1).

    Where V has several fixed points, the one that V's iteration from q = 1 meets first. 0 where
    lengths shrink to nothing (tanh: σ_b = 0, σ_w ≤ 1).

    Raises ValueError where lengths grow without end and where every length is a fixed point
    (ReLU with σ_w = √2, σ_b = 0): there is no q* then.

    >>> print(f"{fixed_point(2.5, 0.3):.6f}")
    4.079124
    """
    check_scales(sigma_w, sigma_b)
    where = f"σ_w={sigma_w:g}, σ_b={sigma_b:g}"
    if activation.slopes is not None:
        return _fixed_point_of_line(sigma_w**2 * half_square(activation.slopes), sigma_b, where)

    def relative(log_q: float) -> float:
        q = math.exp(log_q)
        return float(length_map(q, sigma_w, sigma_b, activation=activation)) / q - 1

    at_1 = relative(0.0)
    if at_1 == 0:
        return 1.0
    step = math.log(2) if at_1 > 0 else -math.log(2)
    near, far = 0.0, step
    while relative(far) * at_1 > 0:
        near, far = far, far + step
        if far > 300:
            raise ValueError(f"lengths grow without end at {where}: no fixed point of V")
        if far < -32 and float(length_map(0.0, sigma_w, sigma_b, activation=activation)) == 0:
            return 0.0  # V(q) < q down to 1e-14, where rounding decides, and V(0) = 0
    return math.exp(brentq(relative, near, far, xtol=1e-15, rtol=1e-15))


def _fixed_point_of_line(gain: float, sigma_b: float, where: str) -> float:
    """V(q) = gain·q + σ_b²."""
    if gain < 1 - 1e-14:
        return sigma_b**2 / (1 - gain)
    if gain <= 1 + 1e-14 and sigma_b == 0:
        raise ValueError(f"every length is a fixed point at {where}; pass q, the one in question")
    raise ValueError(f"lengths grow without end at {where}: no fixed point of V")


def chi_1(
    sigma_w: float, sigma_b: float, *, q: float | None = None, activation: Activation = TANH
) -> float:
    """χ_1 = σ_w² ∫Dz φ′(√q z)² (Poole et al. 2016, fig. 2): mean square growth of a tangent.

    E‖J u‖²/‖u‖² of one layer, and the slope of the correlation map at c = 1. Order for χ_1 < 1,
    chaos for χ_1 > 1. `q=None` is the fixed point q*; raises as `fixed_point` does.

    >>> print(f"{chi_1(2.5, 0.3):.6f}")
    1.585225
    """
    check_scales(sigma_w, sigma_b)
    q = given_length(sigma_w, sigma_b, q, activation)
    return sigma_w**2 * float(mean_square_slope(activation, as_lengths(q)))


def chi_2(
    sigma_w: float, sigma_b: float, *, q: float | None = None, activation: Activation = TANH
) -> float:
    """χ_2 = σ_w² ∫Dz φ″(√q z)² (Poole et al. 2016, fig. 3): source of new curvature.

    C″(1) = q* χ_2. `q=None` is the fixed point q*; raises as `fixed_point` does, and ValueError
    where φ has kinks, whose φ″ has no square.

    >>> print(f"{chi_2(4.0, 0.3):.4f}")
    1.8572
    """
    check_scales(sigma_w, sigma_b)
    if activation.curvature is None:
        raise ValueError("χ_2 needs φ″ as a function; this activation gives no curvature")
    q = given_length(sigma_w, sigma_b, q, activation)
    curvature = activation.curvature
    return sigma_w**2 * float(mean_of(lambda x: curvature(x) ** 2, activation, as_lengths(q)))


def given_length(sigma_w: float, sigma_b: float, q: float | None, activation: Activation) -> float:
    """The q that was passed, or the fixed point q*; raises as `fixed_point` does.

    >>> given_length(1.0, 0.3, 2.0, TANH)
    2.0
    """
    if q is None:
        return fixed_point(sigma_w, sigma_b, activation=activation)
    as_lengths(q)
    return q
