"""Lyapunov exponents of wide random networks, deep or recurrent, undriven or with white input.

Nats per layer or step (Sompolinsky et al. 1988; Molgedey et al. 1992; Poole et al. 2016).
"""

import math
from typing import Literal

import numpy as np
from scipy.special import digamma, gammaln

from pipeline.dynamics.wide.activations import TANH, Activation
from pipeline.dynamics.wide.checks import as_lengths, check_scales
from pipeline.dynamics.wide.lengths import chi_1, given_length
from pipeline.dynamics.wide.means import mean_of


def largest_exponent(
    sigma_w: float,
    sigma_b: float = 0.0,
    *,
    q: float | None = None,
    activation: Activation = TANH,
) -> float:
    """λ_1 = ½ log χ_1, nats per layer or step (Poole et al. 2016; Molgedey et al. 1992).

    Of a recurrent network h' = W φ(h) + input with σ_w = g, undriven or with white input of
    standard deviation σ_b, as of a deep network: N → ∞ before time. Storm et al. (2024) write
    log(G N σ²) for the same; the ½ belongs there, since theirs is the exponent of a singular
    value and G N σ² = χ_1 that of its square. −inf at χ_1 = 0; raises as `fixed_point` does.

    >>> print(f"{largest_exponent(3.0):.6f}")
    0.310249
    """
    growth = chi_1(sigma_w, sigma_b, q=q, activation=activation)
    return 0.5 * math.log(growth) if growth > 0 else -math.inf


def mean_exponent(
    sigma_w: float,
    sigma_b: float = 0.0,
    *,
    q: float | None = None,
    activation: Activation = TANH,
    weights: Literal["gaussian", "orthogonal"] = "gaussian",
) -> float:
    """Mean of all N exponents, ⟨log|det J|⟩/N = log σ_w − ½ + ∫Dz log|φ′(√q z)|.

    The −½ is log|det|/N of a Gaussian W/σ_w for N → ∞, and 0 where W/σ_w is orthogonal. Nats per
    layer or step. −inf where φ′ = 0 on a set of positive measure (ReLU) or σ_w = 0. Raises as
    `fixed_point` does, ValueError for other weights.

    >>> print(f"{mean_exponent(3.0):.6f}")
    -2.272805
    """
    if weights not in ("gaussian", "orthogonal"):
        raise ValueError(f"weights must be 'gaussian' or 'orthogonal', got {weights!r}")
    check_scales(sigma_w, sigma_b)
    if sigma_w == 0:
        return -math.inf
    q = given_length(sigma_w, sigma_b, q, activation)
    volume = math.log(sigma_w) - (0.5 if weights == "gaussian" else 0.0)
    if activation.slopes is not None:
        if 0 in activation.slopes:
            return -math.inf
        return volume + sum(0.5 * math.log(abs(slope)) for slope in activation.slopes)
    log_slope = activation.log_slope or (lambda x: np.log(np.abs(activation.slope(x))))
    return volume + float(mean_of(log_slope, activation, as_lengths(q)))


def relu_direction_exponent(width: int, sigma_w: float = math.sqrt(2)) -> float:
    """Exponent of a random direction in a deep bias-free ReLU network of finite width N.

    ½ E[log(σ_w² χ²_K/N) | K ≥ 1] with K ~ Binomial(N, ½) units active, nats per layer, given
    that the direction survives. Lies below ½ log χ_1 = ½ log(σ_w²/2), and tends to it for
    N → ∞. Raises ValueError for width < 1 or σ_w ≤ 0.

    >>> print(f"{relu_direction_exponent(16):.5f}")
    -0.08820
    """
    if width < 1 or not 0 < sigma_w < math.inf:
        raise ValueError(f"width must be ≥ 1 and σ_w > 0, got width={width}, σ_w={sigma_w}")
    K = np.arange(1, width + 1)
    log_weight = gammaln(width + 1) - gammaln(K + 1) - gammaln(width - K + 1)
    weight = np.exp(log_weight - log_weight.max())
    mean_log_chi2 = digamma(K / 2) + math.log(2)
    mean = float((weight * mean_log_chi2).sum() / weight.sum())
    return 0.5 * (mean + math.log(sigma_w**2 / width))
