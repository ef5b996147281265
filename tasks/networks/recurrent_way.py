"""How some members of a recurrent population go through all layers and steps, and back.

`Together` takes a group step by step, layer by layer, in products of all its members. Other ways
(`lstm_fused`) give the same numbers.

Shapes: N members (of the group), B sequences, T steps, M = T · B, I inputs, H units, O outputs,
L layers, R and K rows and columns of a layer's stacked weights.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tasks.networks.dropout import DropoutRates
from tasks.networks.recurrent_walk import Walk
from tasks.networks.workspace import Workspace

Parts = tuple[Tensor, ...]
"""The state of one layer, h first: (h,) or (h, c)."""

State = tuple[Parts, ...]
"""The state of every layer, each part (N, B, H)."""

Place = tuple[str, slice, slice, slice]
"""A parameter, rows of it, and the rows and columns of V where they stand."""


class Way(Protocol):
    """Some members' way through a batch.

    Attributes:
        top_NHM: after `forth`, what the readout sees. Where units are dropped it is 0, what is
            kept is not scaled: 1/(1 − rate) is a factor of the weights that come next.
    """

    top_NHM: Tensor

    def forth(self, x_TIB: Tensor, state: State | None) -> Tensor:
        """From inputs that all members share to `top_NHM`."""
        ...

    def end(self) -> State:
        """The state after the last step, in memory of its own."""
        ...

    def back(self, readout_NOH: Tensor, d_NOM: Tensor, d_x_TIB: Tensor | None) -> None:
        """From the gradient of the outputs; adds that of the inputs to `d_x_TIB`."""
        ...

    def write_gradient(self, into: Mapping[str, Tensor]) -> None:
        """Writes the gradient of every layer's parameters, by name, to parts of these members."""
        ...


class Together:
    """A group of members advancing step by step.

    Args:
        members: which of the population they are.
        walks: one a layer.
        places: of every layer, what of the parameters stands where in its stacked weights.
        top_NHM: memory.
        drawn_NLTHB: the numbers that decide what is dropped; None drops nothing.
    """

    def __init__(
        self,
        members: slice,
        walks: Sequence[Walk],
        places: Sequence[Sequence[Place]],
        rates: DropoutRates,
        top_NHM: Tensor,
        drawn_NLTHB: Tensor | None,
        workspace: Workspace,
    ) -> None:
        self._members, self.top_NHM = members, top_NHM
        self._walks, self._places, self._rates = walks, places, rates
        self._drawn, self._workspace = drawn_NLTHB, workspace

    def forth(self, x_TIB: Tensor, state: State | None) -> Tensor:
        """See `Way`."""
        for layer, walk in enumerate(self._walks):
            walk.begin(None if state is None else state[layer])
        top_TNHB = self._steps(self.top_NHM)
        for step, x_IB in enumerate(x_TIB.unbind(0)):
            x, mask = x_IB, None
            for layer, walk in enumerate(self._walks):
                walk.advance(step, x, mask)
                x, mask = walk.shown_NHB[step + 1], self._mask(layer, step)
            if mask is None:
                top_TNHB[step].copy_(x)
            else:
                torch.mul(x, mask, out=top_TNHB[step])
        return self.top_NHM

    def end(self) -> State:
        """See `Way`."""
        return tuple(walk.end() for walk in self._walks)

    def back(self, readout_NOH: Tensor, d_NOM: Tensor, d_x_TIB: Tensor | None) -> None:
        """See `Way`."""
        d_top_NHM = self._workspace.take("d_top", self.top_NHM.shape, self.top_NHM)
        torch.bmm(readout_NOH.mT, d_NOM, out=d_top_NHM)
        for layer, walk in enumerate(self._walks):
            walk.begin_back(wants_inputs=layer > 0 or d_x_TIB is not None)
        d_top_TNHB = self._steps(d_top_NHM)
        for step in range(len(d_top_TNHB) - 1, -1, -1):
            d_output = d_top_TNHB[step]
            for layer in range(len(self._walks) - 1, -1, -1):
                walk, mask = self._walks[layer], self._mask(layer, step)
                if mask is None:
                    walk.d_shown.add_(d_output)
                else:
                    walk.d_shown.addcmul_(d_output, mask)
                walk.retreat(step)
                d_output = walk.d_x
            if d_x_TIB is not None:
                d_x_TIB[step] += d_output.sum(0)

    def write_gradient(self, into: Mapping[str, Tensor]) -> None:
        """See `Way`."""
        for layer, walk in enumerate(self._walks):
            if layer > 0 and self._drawn is not None:
                scale_N11 = self._rates.scale_N11[self._members]
                walk.d_V[:, :, walk.num_units : -1].mul_(scale_N11)
            for name, of, rows, columns in self._places[layer]:
                if name in into:
                    target, part = into[name][:, of], walk.d_V[:, rows, columns]
                    target.copy_(part if target.dim() == 3 else part.squeeze(-1))

    def _steps(self, whole_NHM: Tensor) -> tuple[Tensor, ...]:
        num_steps = self._walks[0].num_steps
        return whole_NHM.view(*whole_NHM.shape[:2], num_steps, -1).unbind(2)

    def _mask(self, layer: int, step: int) -> Tensor | None:
        if self._drawn is None:
            return None
        drawn_NHB = self._drawn[:, layer, step]
        out = self._workspace.take("mask", drawn_NHB.shape, self.top_NHM)
        return self._rates.mask(drawn_NHB, out, self._members)
