"""What mean-field theory can be asked for: scales and lengths that exist."""

import math

import numpy as np
from numpy.typing import ArrayLike

from pipeline.dynamics.wide.activations import Array


def as_lengths(q: ArrayLike) -> Array:
    """Mean squares as an array. Raises ValueError for what can be none."""
    values = np.asarray(q, dtype=np.float64)
    if not ((values >= 0) & np.isfinite(values)).all():
        raise ValueError(f"q is a mean square: it must be finite and at least 0, got {values}")
    return values


def check_scales(sigma_w: float, sigma_b: float) -> None:
    """Raises ValueError for σ that are negative or not finite."""
    for name, value in (("σ_w", sigma_w), ("σ_b", sigma_b)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {value}")
