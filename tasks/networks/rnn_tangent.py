"""One layer of a vanilla RNN and its derivative: δh' = φ′(a) ∘ (U δh + W δx).

ln|det ∂h'/∂h| = Σ ln φ′(a_i) + ln|det U|, in closed form.

Shapes: N members, B sequences, I inputs, H units, K tangents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tasks.networks.layers import log_abs_det, matmul_states, relu_slope, sech2
from tasks.networks.recurrent_tangent import shared_product

ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tanh": (torch.tanh, sech2),
    "relu": (torch.relu, relu_slope),
}
"""φ and φ′ by name, both of the argument a: those for which PyTorch has a fused RNN."""


@dataclass(frozen=True)
class RNNCell:
    """Weights of one layer and its activation's name; W (N, H, I), U (N, H, H), b (N, H)."""

    W: Tensor
    U: Tensor
    b: Tensor | None
    activation: str

    def advance(self, drive_NBG: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """h' and φ′(a), given W x + b and h."""
        activation, derivative = ACTIVATIONS[self.activation]
        a = drive_NBG + matmul_states(h, self.U)
        return activation(a), derivative(a)

    def push(self, gains: Tensor, dh: Tensor, dx: Tensor | None, out: Tensor) -> None:
        """Writes δh' into `out`, (N, B, K, H)."""
        da = shared_product(dh, self.U.mT)
        if dx is not None:
            da += shared_product(dx, self.W.mT)
        torch.mul(gains.unsqueeze(2), da, out=out)

    def by_h(self, gains: Tensor, member: int, sequence: int, out: Tensor) -> Tensor:
        """∂h'/∂h of one member and sequence transposed, (H, H), written into `out`."""
        return torch.mul(self._transposed_U[member], gains[member, sequence], out=out)

    @cached_property
    def _transposed_U(self) -> Tensor:
        return self.U.mT.contiguous()

    def by_x(self, gains: Tensor, member: int, sequence: int) -> Tensor:
        """∂h'/∂x of one member and sequence, (H, I)."""
        return gains[member, sequence].unsqueeze(-1) * self.W[member]

    def pull(self, gains: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """(∂h'/∂h)ᵀ p, and the adjoint of W x + b."""
        drive = gains.unsqueeze(2) * p
        return shared_product(drive, self.U), drive

    def log_abs_det(self, gains: Tensor) -> Tensor | None:
        """ln|det ∂h'/∂h|, (N, B); −inf where a unit is dead."""
        return gains.log().sum(-1) + self._log_det_U.unsqueeze(1)

    @cached_property
    def _log_det_U(self) -> Tensor:
        return log_abs_det(self.U)
