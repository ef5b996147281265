"""Chaotic flows with known Lyapunov exponents, and how a series of each comes about.

Lorenz 1963 and 1996 and Mackey–Glass, by the classical Runge–Kutta method with a fixed step, in
float64: E. N. Lorenz, J. Atmos. Sci. 20, 130 (1963); E. N. Lorenz, "Predictability: a problem
partly solved", ECMWF seminar (1996); M. C. Mackey, L. Glass, Science 197, 287 (1977).

Shapes: T values in time, S series side by side, D values observed at a time, H state.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tasks.base import UnsuitableError

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class System:
    """A flow with its integrator; states are (H, S), the last `observed` rows are seen.

    advance: (state, h) ↦ state a step h later. largest_step: of the integrator, in units of time.
    exponents: the leading ones, nats per unit of time; further ones are smaller.
    """

    advance: Callable[[Array, float], Array]
    start: Callable[[int, float, torch.Generator], Array]
    observed: int
    dt: float
    largest_step: float
    transient: float
    exponents: tuple[float, ...]


def _runge_kutta(field: Callable[[Array], Array]) -> Callable[[Array, float], Array]:
    """The classical method of order 4 for ẋ = field(x)."""

    def advance(x: Array, h: float) -> Array:
        k1 = field(x)
        k2 = field(x + 0.5 * h * k1)
        k3 = field(x + 0.5 * h * k2)
        k4 = field(x + h * k3)
        after: Array = x + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        return after

    return advance


def _lorenz63(s: Array) -> Array:
    """σ = 10, ρ = 28, β = 8/3."""
    x, y, z = s
    rates = np.empty_like(s)
    rates[0] = 10.0 * (y - x)
    rates[1] = x * (28.0 - z) - y
    rates[2] = x * y - 8.0 / 3.0 * z
    return rates


_SITES = 40
_AHEAD, _BEHIND, _TWO_BEHIND = ((np.arange(_SITES) + n) % _SITES for n in (1, -1, -2))


def _lorenz96(x: Array) -> Array:
    """ẋ_i = (x_{i+1} − x_{i−2}) x_{i−1} − x_i + F with F = 8 on a ring of 40 sites."""
    rates: Array = (x[_AHEAD] - x[_TWO_BEHIND]) * x[_BEHIND] - x + 8.0
    return rates


_DELAY = 17.0


def _mackey_glass(history: Array, h: float) -> Array:
    """ẋ = 0.2 x(t−τ) / (1 + x(t−τ)¹⁰) − 0.1 x, τ = 17; the state holds x from t − τ − h to t.

    Between two steps of the past, x is the cubic through its four neighbours.
    """
    before, then, after, last = history[:4]
    between = (9 * (then + after) - before - last) / 16

    def production(past: Array) -> Array:
        made: Array = 0.2 * past / (1 + past**10)
        return made

    x, at_half = history[-1], production(between)
    k1 = production(then) - 0.1 * x
    k2 = at_half - 0.1 * (x + 0.5 * h * k1)
    k3 = at_half - 0.1 * (x + 0.5 * h * k2)
    k4 = production(after) - 0.1 * (x + h * k3)
    now = x + h / 6 * (k1 + 2 * (k2 + k3) + k4)
    return np.concatenate([history[1:], now[None]])


def _normal(rows: int, mean: float, spread: float) -> Callable[..., Array]:
    def start(count: int, h: float, generator: torch.Generator) -> Array:
        drawn = torch.randn(count, rows, generator=generator, dtype=torch.float64)
        found: Array = mean + spread * drawn.numpy().T
        return found

    return start


def _constant_past(count: int, h: float, generator: torch.Generator) -> Array:
    levels = 0.5 + torch.rand(count, generator=generator, dtype=torch.float64).numpy()
    return np.tile(levels, (round(_DELAY / h) + 2, 1))


SYSTEMS = {
    "lorenz63": System(
        _runge_kutta(_lorenz63),
        _normal(3, 5.0, 5.0),
        observed=3,
        dt=0.05,
        largest_step=0.01,
        transient=20.0,
        # J. C. Sprott, Chaos and Time-Series Analysis (2003); their sum is −(σ + 1 + β).
        exponents=(0.9056, 0.0, -14.5723),
    ),
    "lorenz96": System(
        _runge_kutta(_lorenz96),
        _normal(_SITES, 8.0, 1.0),
        observed=_SITES,
        dt=0.05,
        largest_step=0.025,
        transient=20.0,
        # Of this integrator, 40 series of 600 units of time; ±0.005. The literature rounds to 1.7.
        exponents=(1.689, 1.482, 1.307, 1.151),
    ),
    "mackey_glass": System(
        _mackey_glass,
        _constant_past,
        observed=1,
        dt=1.0,
        largest_step=0.1,
        transient=500.0,
        # Of this integrator, 60 series of 5000 units of time; ±0.0001 in the first.
        exponents=(0.0051, 0.0, -0.0387),
    ),
}


def integrate(
    system: System, dt: float, count: int, num_values: int, generator: torch.Generator
) -> Array:
    """`count` independent series of `num_values` values after a transient: (T, S, D).

    Raises UnsuitableError where a delay is no multiple of the integrator's step.
    """
    substeps = math.ceil(dt / system.largest_step - 1e-9)
    h = dt / substeps
    if system.advance is _mackey_glass and abs(_DELAY / h - round(_DELAY / h)) > 1e-6:
        raise UnsuitableError(
            f"dt must split the delay {_DELAY:g} into whole steps of at most "
            f"{system.largest_step:g}, got {dt:g} (steps of {h:g}); any multiple of 0.1 would do"
        )
    state = system.start(count, h, generator)
    for _ in range(round(system.transient / h)):
        state = system.advance(state, h)
    values = np.empty((num_values, count, system.observed))
    for time in range(num_values):
        values[time] = state[-system.observed :].T
        for _ in range(substeps):
            state = system.advance(state, h)
    return values
