"""What layers do to a curve: its metric and its curvature (Poole et al. 2016, fig. 3)."""

import math
from typing import NamedTuple

import numpy as np

from pipeline.dynamics.wide.activations import TANH, Activation, Array
from pipeline.dynamics.wide.lengths import chi_1 as mean_growth
from pipeline.dynamics.wide.lengths import chi_2 as mean_curvature
from pipeline.dynamics.wide.lengths import fixed_point


def metric_recursion(num_layers: int, chi_1: float, start: float) -> Array:
    """ḡ^l = χ_1 ḡ^{l−1} (Poole et al. 2016, fig. 3): stretching of a manifold, layer by layer.

    ḡ = g^E/N is the squared speed of a curve h(θ) per unit. Returns (num_layers,) with `start`
    first. Raises ValueError for num_layers < 1 and for values that are negative or not finite.

    >>> metric_recursion(3, 2.0, 0.5).tolist()
    [0.5, 1.0, 2.0]
    """
    _check_recursion(num_layers, chi_1=chi_1, start=start)
    return np.asarray(start * chi_1 ** np.arange(num_layers, dtype=np.float64))


def curvature_recursion(num_layers: int, chi_1: float, chi_2: float, start: float) -> Array:
    """(κ̄^l)² = 3χ_2/χ_1² + (κ̄^{l−1})²/χ_1 (Poole et al. 2016, fig. 3).

    κ̄ = √N κ is the curvature of a curve in units of 1/√N. Returns the *squared* curvatures
    (num_layers,) with `start` first. For χ_1 > 1 they tend to (3χ_2/χ_1²)/(1 − 1/χ_1); for
    χ_1 < 1 they grow. Raises ValueError for num_layers < 1, χ_1 = 0 and values that are negative
    or not finite.

    >>> curvature_recursion(3, 2.0, 4.0, 1.0).tolist()
    [1.0, 3.5, 4.75]
    """
    _check_recursion(num_layers, chi_1=chi_1, chi_2=chi_2, start=start)
    if chi_1 == 0:
        raise ValueError("curvature needs χ_1 > 0: at 0 curves shrink to points")
    squares = [start]
    for _ in range(num_layers - 1):
        squares.append(3 * chi_2 / chi_1**2 + squares[-1] / chi_1)
    return np.array(squares)


def curvature_limit(chi_1: float, chi_2: float) -> float:
    """κ̄*² = (3χ_2/χ_1²)/(1 − 1/χ_1), what `curvature_recursion` tends to in chaos.

    The *squared* curvature; infinite for χ_1 ≤ 1, where curvature grows without end. Raises
    ValueError for χ_1 = 0 and values that are negative or not finite.

    >>> curvature_limit(2.0, 4.0)
    6.0
    """
    _check_recursion(1, chi_1=chi_1, chi_2=chi_2)
    if chi_1 == 0:
        raise ValueError("curvature needs χ_1 > 0: at 0 curves shrink to points")
    return math.inf if chi_1 <= 1 else 3 * chi_2 / chi_1**2 / (1 - 1 / chi_1)


class CircleGeometry(NamedTuple):
    """A circle on its way through the layers, each (num_layers,), the circle itself first.

    metric: ḡ = g^E/N. curvature: κ̄ = √N κ. euclidean_length: L̄ = L^E/√N.
    grassmann_length: L^G in radians, 2π for the circle.
    """

    metric: Array
    curvature: Array
    euclidean_length: Array
    grassmann_length: Array


def circle_geometry(
    num_layers: int, sigma_w: float, sigma_b: float, *, activation: Activation = TANH
) -> CircleGeometry:
    """Theory of h^1(θ) = √(N q*)(u_0 cos θ + u_1 sin θ) in h^1, h^2, … (Poole et al. 2016, fig. 3).

    Starts at ḡ = q* and κ̄² = 1/q*. L̄ = 2π √ḡ and L^G = 2π κ̄ √ḡ, as both densities are the same
    for all θ. Raises as `fixed_point`, `chi_2` and `curvature_recursion` do, and ValueError where
    q* = 0, a circle of no radius.

    >>> circle_geometry(13, 2.5, 0.3).grassmann_length[[0, 6, 12]].round(1).tolist()
    [6.3, 96.4, 395.3]
    """
    q = fixed_point(sigma_w, sigma_b, activation=activation)
    if q == 0:
        raise ValueError(f"q* = 0 at σ_w={sigma_w:g}, σ_b={sigma_b:g}: a circle of no radius")
    growth = mean_growth(sigma_w, sigma_b, q=q, activation=activation)
    source = mean_curvature(sigma_w, sigma_b, q=q, activation=activation)
    metric = metric_recursion(num_layers, growth, q)
    curvature = np.sqrt(curvature_recursion(num_layers, growth, source, 1 / q))
    length = 2 * math.pi * np.sqrt(metric)
    return CircleGeometry(metric, curvature, length, curvature * length)


def _check_recursion(num_layers: int, **values: float) -> None:
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {value}")
