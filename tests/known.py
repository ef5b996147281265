"""Systems with known exponents, as orbits of many independent members, and as plain numbers.

Flows are integrated by classical Runge–Kutta; the tangent is the exact derivative of that map, so
that sum rules hold to rounding. Exponents of flows are per unit of time: divide by `dt`.

Shapes: N members, B sequences, D state, K tangents.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import psi
from torch import Tensor

F64 = torch.float64


@dataclass(frozen=True)
class Flow:
    """ẋ = field(x), tangents v̇ = tangent(x, v) with x (…, D, 1) and v (…, D, K)."""

    field: Callable[[Tensor], Tensor]
    tangent: Callable[[Tensor, Tensor], Tensor]
    size: int

    def step(self, x: Tensor, dt: float, v: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """One Runge–Kutta step of the state and of the tangents."""
        slopes, pushes = [], []
        for share in (0.0, 0.5, 0.5, 1.0):
            at = x + share * dt * slopes[-1] if slopes else x
            if v is not None:
                w = v + share * dt * pushes[-1] if pushes else v
                pushes.append(self.tangent(at, w))
            slopes.append(self.field(at))
        weights = (dt / 6, dt / 3, dt / 3, dt / 6)
        after = x + sum(w * s for w, s in zip(weights, slopes, strict=True))
        if v is None:
            return after, None
        return after, v + sum(w * p for w, p in zip(weights, pushes, strict=True))


class FlowOrbit:
    """N × B independent trajectories of a flow, after a transient."""

    def __init__(self, flow, *, members, sequences, steps, dt, seed, transient=2000):
        self.flow, self.dt = flow, dt
        self.num_members, self.num_sequences, self.num_steps = members, sequences, steps
        self.tangent_size, self.dtype = flow.size, F64
        g = torch.Generator().manual_seed(seed)
        self.start = 5 + torch.randn(members, sequences, flow.size, 1, generator=g, dtype=F64)
        self.device = self.start.device
        for _ in range(transient):
            self.start, _ = flow.step(self.start, dt)

    def maps(self):
        x = self.start
        for _ in range(self.num_steps):
            yield lambda Q, x=x: self.flow.step(x, self.dt, Q)[1]
            x, _ = self.flow.step(x, self.dt)


def lorenz63(sigma=10.0, rho=28.0, beta=8 / 3):
    """Lorenz 1963. Exponents 0.9056, 0, −14.572 (Sprott 2003); Σ = −(σ + 1 + β)."""

    def field(s):
        x, y, z = s.unbind(-2)
        return torch.stack([sigma * (y - x), x * (rho - z) - y, x * y - beta * z], -2)

    def tangent(s, v):
        x, y, z = s.unbind(-2)
        a, b, c = v.unbind(-2)
        return torch.stack(
            [sigma * (b - a), (rho - z) * a - b - x * c, y * a + x * b - beta * c], -2
        )

    return Flow(field, tangent, 3)


LORENZ63 = [0.90563, 0.0, -14.57219]


def rossler(a=0.2, b=0.2, c=5.7):
    """Rössler 1976. Exponents 0.0719, 0, −5.3947; Σ = a − c + ⟨x⟩."""

    def field(s):
        x, y, z = s.unbind(-2)
        return torch.stack([-y - z, x + a * y, b + z * (x - c)], -2)

    def tangent(s, v):
        x, _, z = s.unbind(-2)
        u, w, q = v.unbind(-2)
        return torch.stack([-w - q, u + a * w, z * u + (x - c) * q], -2)

    return Flow(field, tangent, 3)


ROSSLER = [0.0719, 0.0, -5.3947]
"""a = b = 0.2, c = 5.7 (Sprott 2003); ± 0.0003 in the first."""


def lorenz96(size=10, forcing=8.0):
    """Lorenz 1996: ẋ_i = (x_{i+1} − x_{i−2}) x_{i−1} − x_i + F; Σ = −N."""

    def field(x):
        ahead, behind, behind2 = (torch.roll(x, n, -2) for n in (-1, 1, 2))
        return (ahead - behind2) * behind - x + forcing

    def tangent(x, v):
        ahead, behind, behind2 = (torch.roll(x, n, -2) for n in (-1, 1, 2))
        v_ahead, v_behind, v_behind2 = (torch.roll(v, n, -2) for n in (-1, 1, 2))
        return (v_ahead - v_behind2) * behind + (ahead - behind2) * v_behind - v

    return Flow(field, tangent, size)


LORENZ96 = [1.1837, 0.7006, 0.0905, 0.0, -0.4327, -0.8760, -1.3230, -1.9370, -2.8096, -4.5964]
"""N = 10, F = 8. Means of 1600 sequences of 400 units of time each, whose statistical errors are
0.0005 to 0.0015, within those of 2·10⁴ units in the literature, ±0.006 in the first. That of the
flow is 0 exactly; what it lacks after a finite time is in the third, and put back here."""


def newman(size, sigma=1.0):
    """Exponents of products of iid N(0, σ²) matrices (Newman 1986)."""
    half = (size - np.arange(1, size + 1) + 1) / 2
    return 0.5 * (math.log(2) + psi(half)) + math.log(sigma)


def henon(s, a=1.4, b=0.3):
    """Hénon 1976. Exponents 0.41922, −1.62319; Σ = ln b exactly."""
    return torch.stack([1 - a * s[:, 0] ** 2 + s[:, 1], b * s[:, 0]], 1)


def ikeda(s, u=0.9):
    """Ikeda 1979, u = 0.9. Exponents 0.5076, −0.7183 (Sprott 2003); Σ = 2 ln u exactly."""
    x, y = s.unbind(-1)
    t = 0.4 - 6 / (1 + x * x + y * y)
    c, sine = torch.cos(t), torch.sin(t)
    return torch.stack([1 + u * (x * c - y * sine), u * (x * sine + y * c)], 1)


def standard_map(s, K=8.0):
    """Chirikov 1979: λ_1 ≈ ln(K/2) for large K, λ_1 + λ_2 = 0 exactly."""
    theta, p = s.unbind(-1)
    p = p + K * torch.sin(theta)
    return torch.stack([torch.remainder(theta + p, 2 * math.pi), p], 1)


def coupled_logistic(size=6, coupling=0.6):
    """Globally coupled maps (Kaneko 1990), f = 1 − 2x², with exact synchronised exponents.

    On the diagonal, stable for coupling > ½, the largest is ln 2 and all others are lower by
    −ln(1 − coupling) at every step.
    """

    def step(s):
        f = 1 - 2 * s**2
        return (1 - coupling) * f + coupling * f.mean(-1, keepdim=True)

    return step, [math.log(2)] + [math.log(2) + math.log(1 - coupling)] * (size - 1)
