"""Hamiltonian network: numerical steps of ż = ∂H/∂p, ṗ = −∂H/∂z, H = T_l(p) + V_l(z) (Owren 2020).

pairwise: ż = A₁ᵀσ(A₁ p + b₁), ṗ = −A₂ᵀσ(A₂ z + b₂). second_order: z̈ = −Aᵀσ(A z + b), which is
ż = p. The state is (z, p), all z before all p. Symplectic Euler and leapfrog (Störmer–Verlet)
give symplectic maps, whose exponents pair as ±λ; explicit Euler of the same field does not.

Shapes: N members, B examples, D state, d = D/2, M rows of each A, K tangents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from tasks.base import Bounds, UnsuitableError
from tasks.networks.base import Network
from tasks.networks.flow import Block, BlockTangent, Flow, FlowConfig, View, draw_normal_bias
from tasks.networks.layers import draw_weight
from tasks.networks.mlp import ACTIVATIONS
from tasks.networks.potential import Hessian, Potential

Integrator = Literal["symplectic_euler", "leapfrog", "explicit_euler"]
Part = Literal["kick", "drift"]

SPLITTINGS: dict[Integrator, tuple[tuple[Part, float], ...]] = {
    "symplectic_euler": (("kick", 1.0), ("drift", 1.0)),
    "leapfrog": (("kick", 0.5), ("drift", 1.0), ("kick", 0.5)),
    "explicit_euler": (),
}
"""Moves of a step one after the other, with their share of h: p by −∇V(z), or z by ∇T(p).

Explicit Euler makes both moves from where the step starts, and is no such sequence.
"""


class Hamiltonian(Flow, Network):
    """A population of Hamiltonian networks."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FlowConfig):
        """Settings besides those of `flow.FlowConfig`.

        width: of z and p together, an even number. With lift "pad" and a width of twice the input
            z starts as the input and p as 0.
        field: "pairwise" or "second_order".
        integrator: of these, explicit_euler is the counter-example.
        rows: of each A, None for as many as z has components.
        """

        width: Annotated[int, Bounds(ge=2)] = 32
        field: Literal["pairwise", "second_order"] = "pairwise"
        integrator: Integrator = "symplectic_euler"
        rows: Annotated[int, Bounds(ge=1)] | None = None

    has_momenta = True
    """The state is (z, p), so that it can be asked whether maps are symplectic."""

    def _shape(self, config: FlowConfig) -> None:
        assert isinstance(config, Hamiltonian.Config)
        if config.width % 2:
            raise UnsuitableError(
                "Hamiltonian: width must be even, for as many momenta as coordinates, got "
                f"{config.width}"
            )
        self._is_pairwise = config.field == "pairwise"
        self._moves = SPLITTINGS[config.integrator]
        self._rows = config.width // 2 if config.rows is None else config.rows
        self.num_activations = self._rows * (2 if self._is_pairwise else 1)
        self._activation, self._derivative = ACTIVATIONS[config.activation]

    @property
    def block_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of V come first; T = p²/2 has none."""
        kinetic = ("weight_p", "bias_p") if self._is_pairwise else ()
        return ("weight_z", "bias_z", *kinetic)

    def _draw_block(
        self, config: Any, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        M, d, drawn = self._rows, config.width // 2, {}
        for part in ("z", "p") if self._is_pairwise else ("z",):
            drawn[f"weight_{part}"] = draw_weight(config.init, M, d, scale, generator)
            drawn[f"bias_{part}"] = draw_normal_bias(M, config.bias_scale, generator)
        return drawn

    def blocks(self, view: View = lambda tensor: tensor) -> Sequence[Block]:
        """See `Flow.blocks`."""
        V = self._potentials("z", view)
        T: Sequence[Potential | Quadratic] = [Quadratic()] * self.depth
        if self._is_pairwise:
            T = self._potentials("p", view)
        h_N = view(self.step_N)
        return [HamiltonianStep(V_l, T_l, h_N, self._moves) for V_l, T_l in zip(V, T, strict=True)]

    def _potentials(self, part: Literal["z", "p"], view: View) -> Sequence[Potential]:
        A_NLMD = view(self.get_parameter(f"weight_{part}"))
        b_NLM = view(self.get_parameter(f"bias_{part}"))
        return [
            Potential(A, b, self._activation, self._derivative)
            for A, b in zip(A_NLMD.unbind(1), b_NLM.unbind(1), strict=True)
        ]


@dataclass(frozen=True)
class Quadratic:
    """T = p²/2."""

    def gradient(self, p: Tensor, mask: Tensor | None = None) -> Tensor:
        """p; it has no activations that a mask could drop."""
        return p

    def hessian(self, p: Tensor) -> "Identity":
        """The identity."""
        return Identity()


@dataclass(frozen=True)
class Identity:
    """The Hessian of p²/2."""

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """Q."""
        return Q_NBDK


@dataclass(frozen=True)
class HamiltonianStep:
    """One step for (z, p)."""

    V: Potential
    T: "Potential | Quadratic"
    step_N: Tensor
    moves: tuple[tuple[Part, float], ...]

    def __call__(self, x_NDB: Tensor, mask_NFB: Tensor | None = None) -> Tensor:
        """See `Block`. The mask holds V's activations first, then T's."""
        z, p = x_NDB.chunk(2, 1)
        h_N11 = self.step_N.view(-1, 1, 1)
        rows = self.V.A_NMD.shape[1]
        of_V = None if mask_NFB is None else mask_NFB[:, :rows]
        of_T = None if mask_NFB is None else mask_NFB[:, rows:]
        if not self.moves:
            moved = z + h_N11 * self.T.gradient(p, of_T), p - h_N11 * self.V.gradient(z, of_V)
            return torch.cat(moved, 1)
        for part, share in self.moves:
            if part == "kick":
                p = p - share * h_N11 * self.V.gradient(z, of_V)
            else:
                z = z + share * h_N11 * self.T.gradient(p, of_T)
        return torch.cat([z, p], 1)

    def tangent(self, x_NDB: Tensor) -> BlockTangent:
        """See `Block`."""
        z, p = x_NDB.chunk(2, 1)
        h_N11, size = self.step_N.view(-1, 1, 1), x_NDB.shape[1]
        N, B = x_NDB.shape[0], x_NDB.shape[-1]
        if not self.moves:
            both = self.V.hessian(z), self.T.hessian(p)
            return ExplicitTangent(*both, self.step_N, (N, B, size))
        shears: list[tuple[Part, Tensor, Hessian | Identity]] = []
        for part, share in self.moves:
            length = (share * self.step_N).view(-1, 1, 1, 1)
            if part == "kick":
                shears.append((part, length, self.V.hessian(z)))
                p = p - share * h_N11 * self.V.gradient(z)
            else:
                shears.append((part, length, self.T.hessian(p)))
                z = z + share * h_N11 * self.T.gradient(p)
        return ShearTangent(shears, (N, B, size))

    def field(self, x_NDB: Tensor) -> Tensor:
        """Df = [[0, ∇²T], [−∇²V, 0]], (N, B, D, D)."""
        z, p = x_NDB.chunk(2, 1)
        eye = _identity(x_NDB, z.shape[1])
        zero = torch.zeros_like(eye)
        by_p, by_z = self.T.hessian(p)(eye), -self.V.hessian(z)(eye)
        return torch.cat([torch.cat([zero, by_p], -1), torch.cat([by_z, zero], -1)], -2)


def _identity(x_NDB: Tensor, size: int) -> Tensor:
    eye = torch.eye(size, dtype=x_NDB.dtype, device=x_NDB.device)
    return eye.expand(x_NDB.shape[0], x_NDB.shape[-1], size, size)


def _joined(z: Tensor, p: Tensor) -> Tensor:
    """(z, p); one of the two may still be of one frame for all examples."""
    num_examples = max(z.shape[1], p.shape[1])
    return torch.cat([part.expand(-1, num_examples, -1, -1) for part in (z, p)], -2)


@dataclass(frozen=True)
class ShearTangent:
    """The derivative of moves one after the other: each a shear, so that J is symplectic."""

    shears: "Sequence[tuple[Part, Tensor, Hessian | Identity]]"
    shape: tuple[int, int, int]

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q. One frame for all examples may be given as (N, 1, D, K)."""
        z, p = Q_NBDK.chunk(2, -2)
        for part, length, S in self.shears:
            if part == "kick":
                p = p - length * S(z)
            else:
                z = z + length * S(p)
        return _joined(z, p)

    def transposed(self, P_NBDK: Tensor) -> Tensor:
        """Jᵀ P: the transposed shears in reverse order."""
        z, p = P_NBDK.chunk(2, -2)
        for part, length, S in reversed(self.shears):
            if part == "kick":
                z = z - length * S(p)
            else:
                p = p + length * S(z)
        return _joined(z, p)

    def dense(self) -> Tensor:
        """J, (N, B, D, D)."""
        return self(_dense_start(self.shears[0][1], self.shape))


@dataclass(frozen=True)
class ExplicitTangent:
    """The derivative I + h Df of both moves at once."""

    of_V: Hessian
    of_T: "Hessian | Identity"
    step_N: Tensor
    shape: tuple[int, int, int]

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q. One frame for all examples may be given as (N, 1, D, K)."""
        z, p = Q_NBDK.chunk(2, -2)
        h = self.step_N.view(-1, 1, 1, 1)
        return _joined(z + h * self.of_T(p), p - h * self.of_V(z))

    def transposed(self, P_NBDK: Tensor) -> Tensor:
        """Jᵀ P."""
        z, p = P_NBDK.chunk(2, -2)
        h = self.step_N.view(-1, 1, 1, 1)
        return _joined(z - h * self.of_V(p), p + h * self.of_T(z))

    def dense(self) -> Tensor:
        """J, (N, B, D, D)."""
        return self(_dense_start(self.step_N, self.shape))


def _dense_start(like: Tensor, shape: tuple[int, int, int]) -> Tensor:
    N, B, D = shape
    return torch.eye(D, dtype=like.dtype, device=like.device).expand(N, B, D, D)
