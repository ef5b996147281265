"""The line χ_1 = 1 between order and chaos, solved for either scale (Poole et al. 2016)."""

import math
from collections.abc import Callable

from scipy.optimize import brentq

from pipeline.dynamics.wide.activations import TANH, Activation
from pipeline.dynamics.wide.checks import as_lengths, check_scales
from pipeline.dynamics.wide.means import mean_square, mean_square_slope


def critical_sigma_w(sigma_b: float, *, activation: Activation = TANH) -> float:
    """σ_w(σ_b) on the line χ_1 = 1 between order and chaos (Poole et al. 2016, fig. 2).

    Raises ValueError for a σ_b that is negative or not finite, and where no σ_w is critical.

    >>> print(f"{critical_sigma_w(0.3):.4f}, {critical_sigma_w(0.0):.1f}")
    1.3956, 1.0
    """
    check_scales(1.0, sigma_b)
    if activation.slopes is not None:
        slope2 = float(mean_square_slope(activation, as_lengths(1.0)))
        if slope2 == 0:
            raise ValueError("no σ_w is critical: φ′ = 0 everywhere")
        return 1 / math.sqrt(slope2)
    at_0 = as_lengths(0.0)
    slope2_at_0 = float(mean_square_slope(activation, at_0))
    if sigma_b == 0 and float(mean_square(activation, at_0)) == 0 and slope2_at_0 > 0:
        return 1 / math.sqrt(slope2_at_0)

    def excess(log_q: float) -> float:
        # On the line σ_w² = 1/∫φ′², so q = V(q) says which σ_b belongs to q.
        q = as_lengths(math.exp(log_q))
        ratio = mean_square(activation, q) / mean_square_slope(activation, q)
        return float(q - ratio) - sigma_b**2

    log_q = _first_root(excess, math.log(1e-6), 300.0, f"no σ_w is critical at σ_b={sigma_b:g}")
    return 1 / math.sqrt(mean_square_slope(activation, as_lengths(math.exp(log_q))))


def critical_sigma_b(sigma_w: float, *, activation: Activation = TANH) -> float:
    """σ_b(σ_w) on the line χ_1 = 1: the bias, or white input, that just silences chaos.

    Raises ValueError for a σ_w that is negative or not finite, and where no σ_b is critical
    (tanh: σ_w < 1, where nothing is chaotic; ReLU: the line does not depend on σ_b).

    >>> print(f"{critical_sigma_b(2.0):.3f}")
    1.279
    """
    check_scales(sigma_w, 0.0)
    nothing = f"no σ_b is critical at σ_w={sigma_w:g}"
    if activation.slopes is not None:
        raise ValueError(f"{nothing}: for a φ linear on either side of 0, σ_b does not matter")
    if sigma_w**2 * float(mean_square_slope(activation, as_lengths(0.0))) == 1:
        log_q = -math.inf
    else:
        log_q = _first_root(
            lambda x: (
                1 - sigma_w**2 * float(mean_square_slope(activation, as_lengths(math.exp(x))))
            ),
            math.log(1e-12),
            300.0,
            nothing,
        )
    q = as_lengths(math.exp(log_q))
    sigma_b2 = float(q - sigma_w**2 * mean_square(activation, q))
    if sigma_b2 < -1e-12 * float(q):
        raise ValueError(f"{nothing}: it would take a negative variance σ_b² = {sigma_b2:g}")
    return math.sqrt(max(sigma_b2, 0.0))


def _first_root(f: Callable[[float], float], low: float, high: float, failure: str) -> float:
    """Root of an f that is negative at first, found by steps of log 2 upwards from `low`."""
    if f(low) > 0:
        raise ValueError(failure)
    while low < high:
        above = low + math.log(2)
        if f(above) > 0:
            return float(brentq(f, low, above, xtol=1e-14, rtol=1e-14))
        low = above
    raise ValueError(failure)
