"""Activations with the derivatives that mean-field theory needs, and those of common networks."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, ndtr

from pipeline.dynamics.quadrature import normal_density

Array = NDArray[np.float64]
Function = Callable[[Array], Array]


@dataclass(frozen=True)
class Activation:
    """φ with the derivatives that the theory needs, each elementwise on float64 arrays.

    Attributes:
        value, slope: φ and φ′.
        curvature: φ″; None where it does not exist as a function, which rules out `chi_2`.
        log_slope: log|φ′|, where taking the logarithm of `slope` would underflow.
        centres: arguments at which φ bends or kinks; integration is refined around them.
        slopes: (φ′ below 0, φ′ above 0) of a φ that is linear on either side of 0; the means
            then have closed forms.

    >>> from pipeline.dynamics.meanfield import fixed_point
    >>> softsign = Activation(lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2.0)
    >>> print(f"{fixed_point(2.0, 0.3, activation=softsign):.6f}")
    0.706646
    """

    value: Function
    slope: Function
    curvature: Function | None = None
    log_slope: Function | None = None
    centres: tuple[float, ...] = (0.0,)
    slopes: tuple[float, float] | None = None


def _sech2(x: Array) -> Array:
    # 1 − tanh² cancels to 0 for |x| > 19, and cosh² overflows for |x| > 355.
    decay = np.exp(-2 * np.abs(x))
    return np.asarray(4 * decay / (1 + decay) ** 2)


def _log_sech2(x: Array) -> Array:
    size = np.abs(x)
    return np.asarray(2 * (math.log(2) - size - np.log1p(np.exp(-2 * size))))


def piecewise_linear(below: float, above: float) -> Activation:
    """φ(x) = `below`·x for x < 0 and `above`·x for x ≥ 0, with closed-form means.

    (0, 1) is ReLU, (1, 1) the identity. The means are the arc-cosine kernels of Cho & Saul (2009),
    split into the even and the odd part of φ. Raises ValueError unless both slopes are finite.

    >>> from pipeline.dynamics.meanfield import chi_1
    >>> leaky = piecewise_linear(0.1, 1.0)
    >>> print(f"{chi_1(1.4, 0.1, activation=leaky):.4f}")
    0.9898
    """
    if not (math.isfinite(below) and math.isfinite(above)):
        raise ValueError(f"the slopes of φ must be finite, got below={below}, above={above}")
    return Activation(
        value=lambda x: np.where(x < 0, below, above) * x,
        slope=lambda x: np.where(x < 0, below, above),
        curvature=np.zeros_like if below == above else None,
        slopes=(below, above),
    )


TANH = Activation(np.tanh, _sech2, lambda x: -2 * np.tanh(x) * _sech2(x), _log_sech2)
RELU = piecewise_linear(0.0, 1.0)
LINEAR = piecewise_linear(1.0, 1.0)
SIGMOID = Activation(
    expit,
    lambda x: expit(x) * expit(-x),
    lambda x: expit(x) * expit(-x) * (expit(-x) - expit(x)),
    lambda x: log_expit(x) + log_expit(-x),
)
GELU = Activation(
    lambda x: x * ndtr(x),
    lambda x: ndtr(x) + x * normal_density(x),
    lambda x: (2 - x * x) * normal_density(x),
)
SILU = Activation(
    lambda x: x * expit(x),
    lambda x: expit(x) * (1 + x * expit(-x)),
    lambda x: expit(x) * expit(-x) * (2 + x * (expit(-x) - expit(x))),
)
