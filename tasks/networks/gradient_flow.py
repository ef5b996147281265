"""Contractive network x ← x − h A_lᵀσ(A_l x + b_l): Euler steps down a potential (Owren 2020).

With 0 ≤ σ′ ≤ 1 two solutions of ẋ = −Aᵀσ(A x + b) never part. An Euler step keeps that exactly if
h‖A‖₂² ≤ 2, and keeps the rate of the flow, ‖J‖ ≤ e^{hν} with ν the logarithmic norm, if
h‖A‖₂² ≤ 1 (see `pipeline.dynamics.structure`). Training without a limit makes use of breaking it.

Shapes: N members, B examples, L blocks, D state, M rows of A.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from tasks.base import Bounds
from tasks.networks.base import Network
from tasks.networks.flow import Block, BlockTangent, Flow, FlowConfig, View, draw_normal_bias
from tasks.networks.layers import draw_weight
from tasks.networks.mlp import ACTIVATIONS
from tasks.networks.potential import Hessian, Potential

Limit = Literal["none", "non_expansive", "rate"]
Monotone = Literal["tanh", "relu", "sigmoid", "identity"]

LIMITS: dict[Limit, float | None] = {"none": None, "non_expansive": 2.0, "rate": 1.0}
"""Largest h‖A‖₂²."""


class GradientFlow(Flow, Network):
    """A population of contractive networks."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FlowConfig):
        """Settings besides those of `flow.FlowConfig`.

        activation: σ; only those with 0 ≤ σ′ ≤ 1 make the flow contractive.
        rows: of A, None for as many as the state has components. With fewer, directions remain
            in which nothing moves.
        limit: what is kept by dividing A where it is too large: "non_expansive" h‖A‖² ≤ 2,
            "rate" h‖A‖² ≤ 1, "none" nothing.
        """

        activation: Monotone = "tanh"
        rows: Annotated[int, Bounds(ge=1)] | None = None
        limit: Limit = "non_expansive"

    block_names = ("weight", "bias")

    def _shape(self, config: FlowConfig) -> None:
        assert isinstance(config, GradientFlow.Config)
        self.num_activations = config.width if config.rows is None else config.rows
        self._activation, self._derivative = ACTIVATIONS[config.activation]
        self.limit = LIMITS[config.limit]

    def _draw_block(
        self, config: Any, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        M = self.num_activations
        return {
            "weight": draw_weight(config.init, M, config.width, scale, generator),
            "bias": draw_normal_bias(M, config.bias_scale, generator),
        }

    def matrices(self, view: View = lambda tensor: tensor) -> Tensor:
        """A of every block within the limit, (N, L, M, D)."""
        A_NLMD = view(self.get_parameter("weight"))
        if self.limit is None:
            return A_NLMD
        stiffness_NL = view(self.step_N).unsqueeze(1) * squared_norm_bound(A_NLMD)
        # `where` would hide NaN, which has to stay with its member.
        factor_NL = (self.limit / stiffness_NL.clamp_min(self.limit)).sqrt()
        return A_NLMD * factor_NL[..., None, None]

    def blocks(self, view: View = lambda tensor: tensor) -> Sequence[Block]:
        """See `Flow.blocks`."""
        A_NLMD, b_NLM, h_N = self.matrices(view), view(self.get_parameter("bias")), self.step_N
        return [
            GradientStep(Potential(A, b, self._activation, self._derivative), view(h_N))
            for A, b in zip(A_NLMD.unbind(1), b_NLM.unbind(1), strict=True)
        ]


@dataclass(frozen=True)
class GradientStep:
    """x ← x − h ∇V(x)."""

    potential: Potential
    step_N: Tensor

    def __call__(self, x_NDB: Tensor, mask_NFB: Tensor | None = None) -> Tensor:
        """See `Block`."""
        return x_NDB - self.step_N.view(-1, 1, 1) * self.potential.gradient(x_NDB, mask_NFB)

    def tangent(self, x_NDB: Tensor) -> BlockTangent:
        """See `Block`."""
        return GradientTangent(self.potential.hessian(x_NDB), self.step_N)

    def field(self, x_NDB: Tensor) -> Tensor:
        """−∇²V, (N, B, D, D)."""
        return -self.potential.hessian(x_NDB).dense()


@dataclass(frozen=True)
class GradientTangent:
    """I − h ∇²V, which is symmetric."""

    hessian: Hessian
    step_N: Tensor

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q. One frame for all examples may be given as (N, 1, D, K)."""
        return Q_NBDK - self.step_N.view(-1, 1, 1, 1) * self.hessian(Q_NBDK)

    def transposed(self, P_NBDK: Tensor) -> Tensor:
        """Jᵀ P = J P."""
        return self(P_NBDK)

    def dense(self) -> Tensor:
        """J, (N, B, D, D)."""
        H = self.hessian.dense()
        eye = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
        return eye - self.step_N.view(-1, 1, 1, 1) * H


_SQUARINGS = 6


def squared_norm_bound(A: Tensor) -> Tensor:
    """An upper bound of ‖A‖₂², (…) of matrices (…, M, D), that can be differentiated.

    (tr G^64)^{1/64} of the Gram matrix G, which is λ_max(G) times at most r^{1/64} for rank r: 1 %
    above it for two rows, 5 % for twenty. Products alone, so that it runs recorded on a GPU, and
    NaN stays with its matrix; LAPACK raises on it. 0 has gradient 0.
    """
    G = A @ A.mT if A.shape[-2] <= A.shape[-1] else A.mT @ A
    tiny = torch.finfo(G.dtype).tiny
    log_bound, weight = torch.zeros(G.shape[:-2], dtype=G.dtype, device=G.device), 1.0
    for squaring in range(_SQUARINGS + 1):
        trace = G.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(tiny)
        log_bound = log_bound + weight * trace.log()
        if squaring < _SQUARINGS:
            G = G / trace[..., None, None]
            G = G @ G
            weight /= 2
    return log_bound.exp()
