"""What a change of weights does to a signal (Poole et al. 2016, app. F): chaos in weight space.

W(Δ) = √(1 − Δ²) W + Δ dW with dW drawn like W, so that the scale σ_w stays.
"""

import math

from pipeline.dynamics.wide.activations import TANH, Activation
from pipeline.dynamics.wide.checks import check_scales
from pipeline.dynamics.wide.correlations import correlation_map
from pipeline.dynamics.wide.lengths import given_length, length_map


def changed_weights_correlation(
    delta: float,
    sigma_w: float,
    sigma_b: float,
    *,
    c: float = 1.0,
    q: float | None = None,
    activation: Activation = TANH,
) -> float:
    """Correlation of h = W φ(k) + b with h′ = W(Δ) φ(k′) + b, where k and k′ have correlation c.

    √(1 − Δ²) (C(c) − σ_b²/V) + σ_b²/V with V = V(q), the length after the layer: weights that
    share √(1 − Δ²) leave that much of what they pass on, while biases stay. For c = 1 and q = q* it
    is (√(1 − Δ²)(q* − σ_b²) + σ_b²)/q*. Layers behind the changed one follow `correlation_map`.

    Args:
        delta: Δ, within 0 … 1.
        c: of the signals before the changed layer; 1 for one and the same.
        q: their length; None for the fixed point q*.

    Raises ValueError for Δ outside 0 … 1 and as `correlation_map` does.

    >>> print(f"{changed_weights_correlation(0.5, 2.5, 0.3):.6f}")
    0.868981
    """
    check_scales(sigma_w, sigma_b)
    if not 0 <= delta <= 1:
        raise ValueError(f"Δ must be within 0 … 1, got {delta}")
    q = given_length(sigma_w, sigma_b, q, activation)
    unchanged = float(correlation_map(c, sigma_w, sigma_b, q=q, activation=activation))
    from_bias = sigma_b**2 / float(length_map(q, sigma_w, sigma_b, activation=activation))
    return math.sqrt(1 - delta**2) * (unchanged - from_bias) + from_bias
