"""Means of functions of an activation's argument over one or two correlated Gaussians.

q is the variance of the argument, c the correlation of two, ∫Dz the mean over a standard normal z.
Closed forms where φ is linear on either side of 0 (the arc-cosine kernels of Cho & Saul 2009),
else `quadrature`: a Gauss–Hermite rule would not do.
"""

import math
from collections.abc import Callable

import numpy as np

from pipeline.dynamics.quadrature import Problem, gaussian_mean
from pipeline.dynamics.wide.activations import Activation, Array, Function

NOISE = 1e-13
"""Error of an inner mean, relative to its size, that the mean over it must not chase."""


def mean_of(f: Function, activation: Activation, q: Array) -> Array:
    """∫Dz f(√q z) in the shape of q."""
    scale = np.sqrt(q).ravel()
    result = gaussian_mean(
        lambda x, _: f(x), np.zeros_like(scale), scale, centres=activation.centres
    )
    return result.reshape(q.shape)


def mean_square(activation: Activation, q: Array) -> Array:
    """∫Dz φ(√q z)² in the shape of q."""
    if activation.slopes is not None:
        return np.asarray(half_square(activation.slopes) * q)
    return mean_of(lambda x: activation.value(x) ** 2, activation, q)


def mean_square_slope(activation: Activation, q: Array) -> Array:
    """∫Dz φ′(√q z)² in the shape of q."""
    if activation.slopes is not None:
        return np.full_like(q, half_square(activation.slopes))
    return mean_of(lambda x: activation.slope(x) ** 2, activation, q)


def half_square(slopes: tuple[float, float]) -> float:
    """∫Dz φ(z)² = ∫Dz φ′(z)² where φ is linear on either side of 0."""
    return (slopes[0] ** 2 + slopes[1] ** 2) / 2


def mean_product(activation: Activation, q: float, c: float) -> float:
    """∫Dz_1 Dz_2 φ(u_1) φ(u_2)."""
    if activation.slopes is None:
        return _product(activation.value, activation, q, c)
    a, b = _odd_even(activation.slopes)
    absolute = 2 / math.pi * (math.sqrt(1 - c * c) + c * math.asin(c))
    return q * (a * a * c + b * b * absolute)


def mean_slope_product(activation: Activation, q: float, c: float) -> float:
    """∫Dz_1 Dz_2 φ′(u_1) φ′(u_2)."""
    if activation.slopes is None:
        return _product(activation.slope, activation, q, c)
    a, b = _odd_even(activation.slopes)
    return a * a + b * b * 2 / math.pi * math.asin(c)


def _odd_even(slopes: tuple[float, float]) -> tuple[float, float]:
    """φ(x) = a x + b |x|."""
    return (slopes[1] + slopes[0]) / 2, (slopes[1] - slopes[0]) / 2


def mean_gap(activation: Activation, q: float, e: float) -> float:
    """∫Dz φ² − ∫Dz_1 Dz_2 φ(u_1) φ(u_2) at correlation c = 1 − e ≥ 0, right to its last digits."""
    # u_i = √q (√c w + √e a_i) with shared w, so that the gap is the mean variance over a.
    shared, own = math.sqrt(q * (1 - e)), math.sqrt(q * e)
    f = activation.value

    def variance(m: Array, _: Problem) -> Array:
        g = gaussian_mean(lambda x, _: f(x), m, own, centres=activation.centres)
        return gaussian_mean(
            lambda x, i: (f(x) - g[i]) ** 2,
            m,
            own,
            centres=activation.centres,
            noise=1e-15 * np.abs(g),
        )

    return float(_mean_of_means(variance, shared, activation, noise=0.0))


def _product(f: Function, activation: Activation, q: float, c: float) -> float:
    """∫Dz_1 Dz_2 f(u_1) f(u_2): u_i share √(q|c|) w and are independent given w."""
    shared, own = math.sqrt(q * abs(c)), math.sqrt(q * (1 - abs(c)))

    def given(mean: Array) -> Array:
        return gaussian_mean(lambda x, _: f(x), mean, own, centres=activation.centres)

    def product(m: Array, _: Problem) -> Array:
        first = given(m)
        return first * (first if c >= 0 else given(-m))

    size = math.sqrt(
        float(mean_of(lambda x: f(x) ** 2, activation, np.asarray(q, dtype=np.float64)))
    )
    return float(_mean_of_means(product, shared, activation, noise=NOISE * size))


def _mean_of_means(
    f: Callable[[Array, Problem], Array], shared: float, activation: Activation, *, noise: float
) -> float:
    """∫Dw f(shared·w), where f is itself a mean and good to NOISE only."""
    both_signs = tuple(sign * b for b in activation.centres for sign in (1, -1))
    mean = gaussian_mean(
        f,
        np.zeros(1),
        shared,
        centres=both_signs,
        tolerance=100 * NOISE,
        noise=np.array([noise]),
    )
    return float(mean[0])
