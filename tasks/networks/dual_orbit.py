"""Steps of stacked recurrent layers whose derivatives can be differentiated by the weights.

J Q is the forward-mode derivative of the layers' own equations, so that a new cell has it for
nothing, in the graph of the parameters. `recurrent_orbit` and the `*_tangent` files have the same
maps in formulas, several times faster, out of the graph: measurements take those.

Shapes: N members, B sequences, H units, G rows of W and U, K tangents, D state (h, and c where
there is one, layer after layer).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tasks.networks.layers import linear
from tasks.networks.recurrent_orbit import RecurrentOrbit
from tasks.networks.recurrent_way import Parts

Cell = Callable[[Tensor, Parts], Parts]
"""(W x + b of one step (N, B, G), state of a layer) ↦ its state after the step."""


class DualLayer(NamedTuple):
    """W (N, G, I), U (N, G, H), b (N, G) and the equations of one layer, in the graph."""

    W: Tensor
    U: Tensor
    b: Tensor | None
    cell: Cell


@dataclass(frozen=True)
class DualStep:
    """The derivative of one time step."""

    layers: Sequence[DualLayer]
    drive_NBG: Tensor
    before: Sequence[Parts]

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q, (N, B, D, K), for a frame of every sequence."""
        N, B, D, K = Q_NBDK.shape
        H = self.before[0][0].shape[-1]
        # Tangents stand side by side like sequences, each with its own copy of the state.
        q_NMD = Q_NBDK.permute(0, 3, 1, 2).reshape(N, K * B, D)
        with forward_ad.dual_level():
            tangents = iter(q_NMD.chunk(D // H, dim=-1))
            states = [
                tuple(_dual(_copied(part, K), next(tangents)) for part in parts)
                for parts in self.before
            ]
            after = stacked(self.layers, _copied(self.drive_NBG, K), states)
            moved = [_tangent(part) for parts in after for part in parts]
        return torch.cat(moved, dim=-1).view(N, K, B, D).permute(0, 2, 3, 1)

    def dense(self) -> Tensor:
        """J, (N, B, D, D)."""
        N, B, H = self.before[0][0].shape
        D = H * sum(len(parts) for parts in self.before)
        identity = torch.eye(D, dtype=self.drive_NBG.dtype, device=self.drive_NBG.device)
        return self(identity.expand(N, B, D, D))


class DualOrbit(RecurrentOrbit[DualStep]):
    """Stacked layers driven by `inputs`, in the graph of their weights."""

    num_parts: int  # type: ignore[misc]

    def __init__(self, layers: Sequence[DualLayer], inputs: Tensor, *, num_parts: int) -> None:
        rows = num_parts * layers[0].U.shape[-1]
        super().__init__(layers, inputs, state="full", tangent_rows=rows, closed=None)
        self._layers, self.num_parts = layers, num_parts

    def _advance(self, states: list[Parts], drive_NBG: Tensor) -> DualStep:
        before = list(states)
        states[:] = stacked(self._layers, drive_NBG, before)
        return DualStep(self._layers, drive_NBG, before)


def stacked(layers: Sequence[DualLayer], drive_NBG: Tensor, states: Sequence[Parts]) -> list[Parts]:
    """The state of every layer after one step, given W x + b of the first."""
    after: list[Parts] = []
    for layer, parts in zip(layers, states, strict=True):
        drive = linear(after[-1][0], layer.W, layer.b) if after else drive_NBG
        after.append(layer.cell(drive, parts))
    return after


def _copied(x_NBE: Tensor, count: int) -> Tensor:
    N, B, E = x_NBE.shape
    return x_NBE.unsqueeze(1).expand(N, count, B, E).reshape(N, count * B, E)


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    found: Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return found


def _tangent(dual: Tensor) -> Tensor:
    found: Tensor | None = forward_ad.unpack_dual(dual).tangent  # type: ignore[no-untyped-call]
    # None is how forward mode says 0.
    return torch.zeros_like(dual) if found is None else found
