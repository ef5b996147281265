"""Antisymmetric RNN: Euler steps of a stable ordinary differential equation (Chang et al. 2019).

h' = h + ε tanh((M − Mᵀ − γ 1) h + W x + b), eq. (10) of Chang, Chen, Haber, Chi, "AntisymmetricRNN:
a dynamical system view on recurrent neural networks", ICLR 2019. M − Mᵀ has imaginary eigenvalues
only, so that the equation neither forgets nor explodes; the friction γ makes up for what an Euler
step adds. Exponents near 0 are thus built in, not learned.

Shapes: N members, B sequences, T steps, I inputs, H units, K tangents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from tasks.base import Bounds
from tasks.networks.base import Network
from tasks.networks.recurrent import Recurrent, RecurrentConfig
from tasks.networks.recurrent_tangent import Cell
from tasks.networks.recurrent_walk import HiddenWalk
from tasks.networks.recurrent_way import Parts
from tasks.networks.rnn_tangent import RNNCell
from tasks.networks.workspace import Workspace


class AntisymmetricWalk(HiddenWalk):
    """h' = h + ε t, t = tanh(arguments) kept where these were; back, δa = ε (1 − t²) δh'."""

    def __init__(self, *args: Any, euler_step: float, **others: Any) -> None:
        self._euler_step = euler_step
        super().__init__(*args, **others)

    def _advance(self, step: int) -> None:
        t = self.arguments_NRB[step].tanh_()
        torch.add(self.h_NHB[step], t, alpha=self._euler_step, out=self.h_NHB[step + 1])

    def _begin_back(self, d_arguments: Sequence[Tensor]) -> None:
        self._direct = self._scratch("direct", self.num_units)

    def _retreat(self, step: int, d_h: Tensor, d_arguments: Tensor) -> Tensor:
        t = self.arguments_NRB[step]
        torch.mul(t, t, out=d_arguments).neg_().add_(1).mul_(d_h).mul_(self._euler_step)
        # d_h is written over before what is returned here is added to it.
        return self._direct.copy_(d_h)


class AntisymmetricRNN(Recurrent, Network):
    """A population of antisymmetric RNNs; the state of a layer is h."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RecurrentConfig):
        """Settings of an antisymmetric RNN, beside those that every recurrent network has.

        step: ε, length of the Euler step.
        friction: γ.
        """

        step: Annotated[float, Bounds(gt=0)] = 0.1
        friction: Annotated[float, Bounds(ge=0)] = 0.01

    num_gates = 1
    num_parts = 1
    walk = AntisymmetricWalk

    def __init__(self, configs: Any, **others: Any) -> None:
        Recurrent.__init__(self, configs, **others)
        self.step: float = configs[0].step
        self.friction: float = configs[0].friction

    def _layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """W, A = M − Mᵀ − γ 1 and b."""
        W, M, b = super()._layer(layer)
        identity = torch.eye(self.units, dtype=M.dtype, device=M.device)
        return W, M - M.mT - self.friction * identity, b

    def _stacked(self, layer: int, members: slice, workspace: Workspace, drops: bool) -> Tensor:
        V_NRK = super()._stacked(layer, members, workspace, drops)
        V_NRK[:, :, : self.units] = self._layer(layer)[1][members].detach()
        return V_NRK

    def _pull(
        self, tape: Any, d_outputs: Tensor, into: Sequence[Tensor], *, wants_inputs: bool
    ) -> Tensor | None:
        d_inputs = super()._pull(tape, d_outputs, into, wants_inputs=wants_inputs)
        for name, d_M in zip(self._parameters, into, strict=True):
            if name.startswith("weight_rec"):
                # What has been written is the gradient by A; M enters it twice.
                d_M.sub_(d_M.mT.clone())
        return d_inputs

    def _tangent_cell(self, layer: int, dtype: torch.dtype) -> Cell:
        return AntisymmetricCell(*self._detached_layer(layer, dtype), "tanh", self.step)

    def _cell(self, layer: int) -> Callable[[Tensor, Parts], Parts]:
        A_NHH, step = self._layer(layer)[1], self.step

        def after(drive_NBG: Tensor, parts: Parts) -> Parts:
            h = parts[0]
            return (h + step * torch.tanh(torch.baddbmm(drive_NBG, h, A_NHH.mT)),)

        return after

    def _walk_options(self) -> dict[str, Any]:
        return {"euler_step": self.step}


@dataclass(frozen=True)
class AntisymmetricCell(RNNCell):
    """δh' = δh + ε sech²(a) ∘ (A δh + W δx): that of an RNN with U = A, times ε, beside δh.

    The determinant has no closed form, since 1 is added to the product.
    """

    step: float

    def advance(self, drive_NBG: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """h' and ε sech²(a), given W x + b and h."""
        change, gains = super().advance(drive_NBG, h)
        return h + self.step * change, self.step * gains

    def push(self, gains: Tensor, dh: Tensor, dx: Tensor | None, out: Tensor) -> None:
        """Writes δh' into `out`, (N, B, K, H)."""
        super().push(gains, dh, dx, out)
        out.add_(dh)

    def by_h(self, gains: Tensor, member: int, sequence: int, out: Tensor) -> Tensor:
        """∂h'/∂h of one member and sequence transposed, (H, H), written into `out`."""
        super().by_h(gains, member, sequence, out).diagonal().add_(1)
        return out

    def pull(self, gains: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """(∂h'/∂h)ᵀ p, and the adjoint of W x + b."""
        pulled, drive = super().pull(gains, p)
        return pulled + p, drive

    def log_abs_det(self, gains: Tensor) -> None:
        """None: there is no closed form."""
