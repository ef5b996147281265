"""The gradient Aᵀσ(A x + b) of a potential V(x) = Σ_i S((A x + b)_i), S′ = σ.

What gradient flows and Hamiltonian networks are made of.

Shapes: N members, B examples, D coordinates, M rows of A, K tangents. Examples come last.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.networks.flow import identity_like
from tasks.networks.layers import matmul_tangents


@dataclass(frozen=True)
class Potential:
    """V of all members, given by A and b, and by σ and its derivative."""

    A_NMD: Tensor
    b_NM: Tensor
    activation: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]

    def gradient(self, x_NDB: Tensor, mask_NMB: Tensor | None = None) -> Tensor:
        """∇V, (N, D, B). A mask multiplies σ."""
        y_NMB = self.activation(self._argument(x_NDB))
        if mask_NMB is not None:
            y_NMB = y_NMB * mask_NMB
        return torch.bmm(self.A_NMD.mT, y_NMB)

    def hessian(self, x_NDB: Tensor) -> "Hessian":
        """∇²V = Aᵀ diag(σ′) A at these points."""
        return Hessian(self.A_NMD, self.derivative(self._argument(x_NDB)).mT)

    def _argument(self, x_NDB: Tensor) -> Tensor:
        return torch.baddbmm(self.b_NM.unsqueeze(-1), self.A_NMD, x_NDB)


@dataclass(frozen=True)
class Hessian:
    """A symmetric matrix for every member and example."""

    A_NMD: Tensor
    slope_NBM: Tensor

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """∇²V Q. One frame for all examples may be given as (N, 1, D, K)."""
        moved = self.slope_NBM.unsqueeze(-1) * matmul_tangents(self.A_NMD, Q_NBDK)
        return matmul_tangents(self.A_NMD.mT, moved)

    def dense(self) -> Tensor:
        """∇²V, (N, B, D, D)."""
        return self(identity_like(self.slope_NBM, self.A_NMD.shape[-1]))
