"""The orbit of stacked cells whose state is h alone, and the derivative of each of its steps.

A layer's cell says how δh and δx move δh'; stacking them makes J block lower-triangular, because
δx is 0 in the first layer and the δh' of the layer below in the others. In a closed loop δx of the
first layer is V δh of the last one, and the triangle is gone. The transposed step runs through the
layers from the top, and also yields the derivative by the input.

With h as the whole state, "full" and "hidden" name the same derivative; the orbit keeps the name
that was asked for.

Shapes: N members, B sequences, T steps, I inputs, H units, G rows of W and U, K tangents,
D = H·layers (the h of all layers, from the first to the last).
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from tasks.networks.base import StateConvention
from tasks.networks.layers import linear
from tasks.networks.recurrent_orbit import ClosedLoop, Readout, RecurrentOrbit, Weights, fed_back
from tasks.networks.staircase import Frame
from tasks.networks.workspace import ThreadsWorkspace, Workspace


def shared_product(x_NBKE: Tensor, W_NED: Tensor) -> Tensor:
    """x W for every member, (N, B, K, D), by one matrix product that all sequences share."""
    N, B, K, E = x_NBKE.shape
    return torch.bmm(x_NBKE.reshape(N, B * K, E), W_NED).view(N, B, K, W_NED.shape[-1])


class Cell(Weights, Protocol):
    """The equations of one layer for all members, and their derivative.

    `gains` are elementwise derivatives at one step, each (N, B, H); what they hold is the cell's
    own affair. Frames lead with their tangents, (N, B, K, H), so that all work runs along memory.
    """

    def advance(self, drive_NBG: Tensor, h: Tensor) -> tuple[Tensor, Any]:
        """h' and the gains, given W x + b and h."""
        ...

    def push(self, gains: Any, dh: Tensor, dx: Tensor | None, out: Tensor) -> None:
        """Writes the δh' of given δh and δx (None: 0) into `out`."""
        ...

    def by_h(self, gains: Any, member: int, sequence: int, out: Tensor) -> Tensor:
        """∂h'/∂h of one member and sequence transposed, (H, H), written into `out`."""
        ...

    def by_x(self, gains: Any, member: int, sequence: int) -> Tensor:
        """∂h'/∂x of one member and sequence, (H, I)."""
        ...

    def pull(self, gains: Any, p: Tensor) -> tuple[Tensor, Tensor]:
        """(∂h'/∂h)ᵀ p, and the adjoint (N, B, K, G) of W x + b."""
        ...

    def log_abs_det(self, gains: Any) -> Tensor | None:
        """ln|det ∂h'/∂h| (N, B), None where there is no closed form."""
        ...


@dataclass(frozen=True)
class HiddenStep:
    """The derivative of one time step."""

    cells: tuple[Cell, ...]
    gains: tuple[Any, ...]
    drive_NBG: Tensor
    before: tuple[Tensor, ...]
    readout: Readout | None = None
    work: Workspace = field(default_factory=ThreadsWorkspace, compare=False, repr=False)

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q, (N, B, D, K), for a frame of every sequence."""
        Q_NBKD = Q_NBDK.mT
        H = self.cells[0].U.shape[-1]
        moved_NBKD = torch.empty_like(Q_NBKD, memory_format=torch.contiguous_format)
        below: Tensor | None = None
        if self.readout is not None:
            below = shared_product(Q_NBKD[..., -H:], self.readout.V.mT)
        for layer, (cell, gains) in enumerate(zip(self.cells, self.gains, strict=True)):
            here = slice(layer * H, (layer + 1) * H)
            cell.push(gains, Q_NBKD[..., here], below, moved_NBKD[..., here])
            below = moved_NBKD[..., here]
        return moved_NBKD.mT

    def move(
        self, member: int, sequence: int, frame: Frame, out_KD: Tensor, *, may_shear: bool = False
    ) -> None:
        """Writes J of one frame into `out_KD`, transposed, in the coordinates of the state."""
        H = self.cells[0].U.shape[-1]
        below: Tensor | None = None
        if self.readout is not None:
            last = frame.rows(slice(out_KD.shape[1] - H, out_KD.shape[1]))
            below = last @ self.readout.V[member].mT
        for layer, (cell, gains) in enumerate(zip(self.cells, self.gains, strict=True)):
            here = slice(layer * H, (layer + 1) * H)
            out = out_KD[:, here]
            by_h = cell.by_h(gains, member, sequence, self.work.take("by h", (H, H), out_KD))
            frame.add_product(out, here, by_h, beta=0)
            if below is not None:
                out.addmm_(below, cell.by_x(gains, member, sequence).mT)
            below = out

    def transposed(self, P_NBDK: Tensor) -> Tensor:
        """Jᵀ P, (N, B, D, K)."""
        return self.transposed_with_inputs(P_NBDK)[0]

    def transposed_with_inputs(self, P_NBDK: Tensor) -> tuple[Tensor, Tensor]:
        """Jᵀ P (N, B, D, K) and (∂s'/∂x)ᵀ P (N, B, I, K), x the input of this step.

        In a closed loop Jᵀ P holds the path through x as well.
        """
        P_NBKD = P_NBDK.mT
        H = self.cells[0].U.shape[-1]
        pulled_NBKD = torch.empty_like(P_NBKD, memory_format=torch.contiguous_format)
        above: Tensor | None = None
        for layer in range(len(self.cells) - 1, -1, -1):
            cell, gains = self.cells[layer], self.gains[layer]
            here = slice(layer * H, (layer + 1) * H)
            p = P_NBKD[..., here] if above is None else P_NBKD[..., here] + above
            pulled_NBKD[..., here], drive = cell.pull(gains, p)
            above = shared_product(drive, cell.W)
        assert above is not None  # there is at least one layer
        if self.readout is not None:
            pulled_NBKD[..., -H:] += shared_product(above, self.readout.V)
        return pulled_NBKD.mT, above.mT

    def dense(self) -> Tensor:
        """J, (N, B, D, D)."""
        N, B, H = self.before[0].shape
        D = H * len(self.cells)
        identity = torch.eye(D, dtype=self.before[0].dtype, device=self.before[0].device)
        return self(identity.expand(N, B, D, D))

    def autodiff(self, q_NBD: Tensor) -> Tensor:
        """J q by differentiating the step itself twice, the reference for `__call__`.

        Jᵀu is linear in u, and its derivative by u applied to q is J q.
        """
        with torch.enable_grad():
            varied = [h.clone().requires_grad_() for h in self.before]
            after: list[Tensor] = []
            drive = self.drive_NBG
            if self.readout is not None:
                drive = fed_back(self.cells[0], self.readout, varied[-1])
            for layer, cell in enumerate(self.cells):
                if layer:
                    drive = linear(after[-1], cell.W, cell.b)
                after.append(cell.advance(drive, varied[layer])[0])
            whole = torch.cat(after, dim=-1)
            u = torch.zeros_like(whole, requires_grad=True)
            # As gradients of scalars: given `grad_outputs`, torch imports sympy, half a second.
            pulled = torch.autograd.grad((whole * u).sum(), varied, create_graph=True)
            along = zip(pulled, q_NBD.chunk(len(varied), dim=-1), strict=True)
            (moved,) = torch.autograd.grad(torch.stack([(p * q).sum() for p, q in along]).sum(), u)
        return moved

    def log_abs_det(self) -> Tensor | None:
        """ln|det J| (N, B): the sum over the layers, J being block lower-triangular.

        None where a cell has no closed form, and in a closed loop, where it is not triangular.
        """
        if self.readout is not None:
            return None
        found: list[Tensor] = []
        for cell, gains in zip(self.cells, self.gains, strict=True):
            log_det = cell.log_abs_det(gains)
            if log_det is None:
                return None
            found.append(log_det)
        return torch.stack(found).sum(0)


class HiddenOrbit(RecurrentOrbit[HiddenStep]):
    """Stacked cells whose state is h alone; open without `closed`."""

    num_parts = 1

    def __init__(
        self,
        cells: tuple[Cell, ...],
        inputs: Tensor,
        *,
        state: StateConvention,
        closed: ClosedLoop | None = None,
    ) -> None:
        H = cells[0].U.shape[-1]
        super().__init__(cells, inputs, state=state, tangent_rows=H, closed=closed)
        self._cells, self._work = cells, ThreadsWorkspace()

    def _advance(self, states: list[tuple[Tensor, ...]], drive_NBG: Tensor) -> HiddenStep:
        before = tuple(h for (h,) in states)
        drive = drive_NBG
        all_gains = []
        for layer, cell in enumerate(self._cells):
            if layer:
                drive = linear(states[layer - 1][0], cell.W, cell.b)
            h, gains = cell.advance(drive, before[layer])
            states[layer] = (h,)
            all_gains.append(gains)
        readout = None if self._closed is None else self._closed.readout
        return HiddenStep(self._cells, tuple(all_gains), drive_NBG, before, readout, self._work)
