"""Networks that take Runge–Kutta steps of ẋ = φ(K_l x + b_l): what they share.

Shapes: N members, B examples, D state, L blocks, K tangents. Examples come last but in tangents.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tasks.networks.flow import (
    BlockTangent,
    Flow,
    FlowConfig,
    View,
    draw_normal_bias,
    identity_like,
)
from tasks.networks.layers import draw_weight, matmul_tangents
from tasks.networks.mlp import ACTIVATIONS
from tasks.networks.tableau import TABLEAUS, Method, Tableau


class Integrated(Flow):
    """A population of such networks; a mixin that goes before `Network`."""

    block_names = ("weight", "bias")

    def _shape(self, config: FlowConfig) -> None:
        self.num_activations = config.width
        self._tableau = TABLEAUS[self._method(config)]
        self._activation, self._derivative = ACTIVATIONS[config.activation]

    @abstractmethod
    def _method(self, config: Any) -> Method:
        """How the field is integrated."""

    def step_sizes(self, view: View = lambda tensor: tensor) -> Tensor:
        """h of every block, (N, L)."""
        return view(self.step_N).unsqueeze(1).expand(-1, self.depth)

    def _draw_block(
        self, config: FlowConfig, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        D = config.width
        return {
            "weight": draw_weight(config.init, D, D, scale, generator),
            "bias": draw_normal_bias(D, config.bias_scale, generator),
        }

    def blocks(self, view: View = lambda tensor: tensor) -> "Sequence[RungeKuttaStep]":
        """See `Flow.blocks`."""
        K_NLDD, b_NLD = (view(self.get_parameter(name)) for name in self.block_names)
        of_layers = (t.unbind(1) for t in (K_NLDD, b_NLD, self.step_sizes(view)))
        return [
            RungeKuttaStep(K, b, h, self._tableau, self._activation, self._derivative)
            for K, b, h in zip(*of_layers, strict=True)
        ]


class Pulled(NamedTuple):
    """Gradients by the state before a step (N, D, B), by K (N, D, D) and by b (N, D)."""

    state: Tensor
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class RungeKuttaStep:
    """x ← x + h Σ w_i k_i of ẋ = φ(K x + b)."""

    K_NDD: Tensor
    b_ND: Tensor
    step_N: Tensor
    tableau: Tableau
    activation: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]

    def __call__(self, x_NDB: Tensor, mask_NFB: Tensor | None = None) -> Tensor:
        """See `Block`."""
        h_N11, k = self.step_N.view(-1, 1, 1), list[Tensor]()
        for row in self.tableau.stages:
            y = self.activation(self._argument(_moved(x_NDB, h_N11, row, k)))
            k.append(y if mask_NFB is None else y * mask_NFB)
        return _moved(x_NDB, h_N11, self.tableau.weights, k)

    def tangent(self, x_NDB: Tensor) -> "RungeKuttaTangent":
        """See `Block`."""
        _, slopes = self._stages(x_NDB)
        return RungeKuttaTangent(self.K_NDD, self.step_N, self.tableau, [s.mT for s in slopes])

    def field(self, x_NDB: Tensor) -> Tensor:
        """diag(φ′) K, (N, B, D, D)."""
        slope_NBD = self.derivative(self._argument(x_NDB)).mT
        return slope_NBD.unsqueeze(-1) * self.K_NDD.unsqueeze(1)

    def pull_back(
        self,
        x_NDB: Tensor,
        G_NDB: Tensor,
        adjoint: Sequence[Sequence[float]] | None = None,
    ) -> Pulled:
        """Gradients before the step from that after it, by the adjoint method.

        P_i = G + h Σ_j ã_ij f′(Z_j)ᵀ P_j, last stage first; the state's is G + h Σ w_i f′(Z_i)ᵀ P_i
        and a parameter's h Σ w_i (∂f/∂θ)(Z_i)ᵀ P_i. Equal to what autograd finds in the composition
        of the stages. Another tableau than `Tableau.adjoint` may be given: a way to integrate the
        adjoint equation that does not belong to the way the states were found.
        """
        h, w = self.step_N.view(-1, 1, 1), self.tableau.weights
        table = self.tableau.adjoint() if adjoint is None else adjoint
        Z, slopes = self._stages(x_NDB)
        d_K, d_b, L = torch.zeros_like(self.K_NDD), torch.zeros_like(self.b_ND), list[Tensor]()
        for i in range(len(w) - 1, -1, -1):
            P = _moved(G_NDB, h, table[i][i + 1 :], L)
            g = slopes[i] * P
            d_K = d_K + h * w[i] * torch.bmm(g, Z[i].mT)
            d_b = d_b + (h * w[i] * g).sum(-1)
            L.insert(0, torch.bmm(self.K_NDD.mT, g))
        return Pulled(_moved(G_NDB, h, w, L), d_K, d_b)

    def _stages(self, x_NDB: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Z_i and φ′ there, of every stage."""
        h_N11, Z, k, slopes = self.step_N.view(-1, 1, 1), [], list[Tensor](), []
        for row in self.tableau.stages:
            Z.append(_moved(x_NDB, h_N11, row, k))
            a_NDB = self._argument(Z[-1])
            k.append(self.activation(a_NDB))
            slopes.append(self.derivative(a_NDB))
        return Z, slopes

    def _argument(self, x_NDB: Tensor) -> Tensor:
        return torch.baddbmm(self.b_ND.unsqueeze(-1), self.K_NDD, x_NDB)


def _moved(x: Tensor, h: Tensor, factors: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    """x + h Σ factor · k, over the factors that are not 0."""
    found: Tensor | None = None
    for factor, term in zip(factors, k, strict=True):
        if factor and found is None:
            found = term if factor == 1 else factor * term
        elif factor and found is not None:
            found = found.add(term, alpha=factor)
    return x if found is None else torch.addcmul(x, h, found)


@dataclass(frozen=True)
class RungeKuttaTangent(BlockTangent):
    """The derivative of a step: the same method for ẋ's variation, V̇ = diag(φ′) K V."""

    K_NDD: Tensor
    step_N: Tensor
    tableau: Tableau
    slopes_NBD: Sequence[Tensor]

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q. One frame for all examples may be given as (N, 1, D, K)."""
        h, U = self.step_N.view(-1, 1, 1, 1), list[Tensor]()
        for row, slope in zip(self.tableau.stages, self.slopes_NBD, strict=True):
            V = _moved(Q_NBDK, h, row, U)
            U.append(slope.unsqueeze(-1) * matmul_tangents(self.K_NDD, V))
        return _moved(Q_NBDK, h, self.tableau.weights, U)

    def transposed(self, P_NBDK: Tensor) -> Tensor:
        """Jᵀ P, by the adjoint tableau."""
        h, w = self.step_N.view(-1, 1, 1, 1), self.tableau.weights
        adjoint, L = self.tableau.adjoint(), list[Tensor]()
        for i in range(len(w) - 1, -1, -1):
            P = _moved(P_NBDK, h, adjoint[i][i + 1 :], L)
            L.insert(0, matmul_tangents(self.K_NDD.mT, self.slopes_NBD[i].unsqueeze(-1) * P))
        return _moved(P_NBDK, h, w, L)

    def dense(self) -> Tensor:
        """J, (N, B, D, D)."""
        return self(identity_like(self.slopes_NBD[0], self.K_NDD.shape[-1]))
