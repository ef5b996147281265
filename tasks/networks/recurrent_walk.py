"""One recurrent layer of all members through time and back, in memory that is given.

With s = (h, x, 1) and V = (U | W | b) a cell's arguments are V s: one product a step forward, one
back (Vᵀ δ), and δ sᵀ for the gradient of V. On a CPU that is summed as one goes, from what is
still in the cache. On a GPU, where V leaves it between steps, it is one product over all steps in
the end: then steps lie side by side in memory rather than one after the other. Sequences come last,
so that a step of narrow networks runs along memory; gates are turned into their values where they
lie.

Shapes: N members, B sequences, T steps, I inputs, H units, R rows of V, K = H + I + 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tasks.networks.workspace import Workspace


def is_gathered(V_NRK: Tensor) -> bool:
    """Whether the gradient of V is one product over all steps."""
    return V_NRK.device.type == "cuda"


Kept = TypeVar("Kept")


def of(each: Sequence[Kept], step: int) -> Kept:
    """What belongs to a step, where there is one for each or one for all."""
    return each[step] if len(each) > 1 else each[0]


class Walk(ABC):
    """A layer on its way; an architecture adds what a step does with the arguments.

    Args:
        V_NRK: weights, the columns of h first, then those of x, the bias last.
        num_units: H, the columns of h.
        num_steps, num_sequences: T and B.
        workspace, name: where the activations go and under which name.
        keep: whether there will be a way back; otherwise all steps share their memory.
    """

    def __init__(
        self,
        V_NRK: Tensor,
        num_units: int,
        num_steps: int,
        num_sequences: int,
        workspace: Workspace,
        name: str,
        *,
        keep: bool,
    ) -> None:
        self.V_NRK, self.num_units, self.num_steps = V_NRK, num_units, num_steps
        self._workspace, self._name, self._keep = workspace, name, keep
        self._is_gathered = keep and is_gathered(V_NRK)
        self._num_members, num_rows, num_columns = V_NRK.shape
        self._num_sequences = num_sequences
        self.s_NKB = self._of_steps("s", num_columns, num_steps + 1)
        self.arguments_NRB = self._of_steps("arguments", num_rows, num_steps)
        self.h_NHB = [s[:, :num_units] for s in self.s_NKB]
        self.shown_NHB = [self._shown(h) for h in self.h_NHB]
        self._x_NIB = [s[:, num_units:-1] for s in self.s_NKB[:num_steps]]
        for s in self.s_NKB if keep else self.s_NKB[:1]:
            s[:, -1].fill_(1)
        self._prepare()

    def _of_steps(self, name: str, rows: int, steps: int) -> list[Tensor]:
        """Memory (N, rows, B) for each of some steps."""
        if self._is_gathered:
            return list(self._side_by_side(name, rows, steps).unbind(2))
        different = steps if self._keep else 1
        shape = (different, self._num_members, rows, self._num_sequences)
        block = self._workspace.take(f"{self._name}.{name}", shape, self.V_NRK)
        return list(block.unbind(0)) if self._keep else [block[0]] * steps

    def _side_by_side(self, name: str, rows: int, steps: int) -> Tensor:
        shape = (self._num_members, rows, steps, self._num_sequences)
        return self._workspace.take(f"{self._name}.{name}", shape, self.V_NRK)

    def _scratch(self, name: str, rows: int) -> Tensor:
        """Memory (N, rows, B) that layers and groups of members share."""
        shape = (self._num_members, rows, self._num_sequences)
        return self._workspace.take(f"scratch.{name}", shape, self.V_NRK)

    @staticmethod
    def _shown(h_NHB: Tensor) -> Tensor:
        """What of h layers above and the readout see: all of it."""
        return h_NHB

    @abstractmethod
    def _prepare(self) -> None:
        """Takes memory and cuts it into what the steps read and write."""

    @abstractmethod
    def begin(self, parts_NBH: Sequence[Tensor] | None) -> None:
        """Sets the state before the first step; None for zeros."""

    @abstractmethod
    def _advance(self, step: int) -> None:
        """From the arguments to h (and what else is carried) of `step + 1`."""

    @abstractmethod
    def end(self) -> tuple[Tensor, ...]:
        """Copies of the state after the last step, each (N, B, H)."""

    @abstractmethod
    def _begin_back(self, d_arguments: Sequence[Tensor]) -> None:
        """Sets what is carried back, beside the gradient of h, to zero.

        d_arguments: what `_retreat` will write to, one for all steps or one for each.
        """

    @abstractmethod
    def _retreat(self, step: int, d_h: Tensor, d_arguments: Tensor) -> Tensor | None:
        """Writes the arguments' gradient, given that of h at `step + 1`.

        Returns what h at `step` gets past the arguments, None for nothing.
        """

    def advance(self, step: int, x_NIB: Tensor, mask_NIB: Tensor | None) -> None:
        """One step, of inputs (N, I, B) or (I, B), times `mask` where there is one."""
        if mask_NIB is None:
            self._x_NIB[step].copy_(x_NIB)
        else:
            torch.mul(x_NIB, mask_NIB, out=self._x_NIB[step])
        torch.bmm(self.V_NRK, self.s_NKB[step], out=self.arguments_NRB[step])
        self._advance(step)

    def begin_back(self, *, wants_inputs: bool) -> None:
        """Before the first call of `retreat`."""
        columns = self.V_NRK.shape[2] - 1 if wants_inputs else self.num_units
        self._back = self.V_NRK[:, :, :columns].mT
        rows = self.V_NRK.shape[1]
        if self._is_gathered:
            self._d_arguments = self._of_steps("d_arguments", rows, self.num_steps)
        else:
            self._d_arguments = [self._scratch("d_arguments", rows)]
        shape = (self._num_members, columns, self._num_sequences)
        self._d_s = self._workspace.take(f"{self._name}.d_s", shape, self.V_NRK)
        self.d_h = self._d_s[:, : self.num_units]
        self.d_shown = self._shown(self.d_h)
        self.d_x = self._d_s[:, self.num_units :]
        self.d_h.zero_()
        self.d_V = self._workspace.take(f"{self._name}.d_V", self.V_NRK.shape, self.V_NRK)
        self.d_V.zero_()
        self._begin_back(self._d_arguments)

    def retreat(self, step: int) -> None:
        """One step back. To `d_shown`, a part of `d_h`, has been added what comes from outside.

        Leaves the gradient of h before the step in `d_h`, that of x in `d_x` where it is wanted.
        """
        d_arguments = of(self._d_arguments, step)
        direct = self._retreat(step, self.d_h, d_arguments)
        torch.bmm(self._back, d_arguments, out=self._d_s)
        if direct is not None:
            self.d_h.add_(direct)
        if not self._is_gathered:
            self.d_V.baddbmm_(d_arguments, self.s_NKB[step].mT)
        elif step == 0:
            rows, columns = self.V_NRK.shape[1:]
            d_all = self._side_by_side("d_arguments", rows, self.num_steps).flatten(2)
            s_all = self._side_by_side("s", columns, self.num_steps + 1).flatten(2)
            torch.bmm(d_all, s_all[:, :, : d_all.shape[2]].mT, out=self.d_V)


class HiddenWalk(Walk):
    """A layer whose state is h alone."""

    def _prepare(self) -> None:
        """h is all there is."""

    def begin(self, parts_NBH: Sequence[Tensor] | None) -> None:
        """Sets h before the first step; None for zeros."""
        if parts_NBH is None:
            self.h_NHB[0].zero_()
        else:
            self.h_NHB[0].copy_(parts_NBH[0].mT)

    def end(self) -> tuple[Tensor, ...]:
        """A copy of h after the last step, (N, B, H)."""
        return (self.h_NHB[-1].mT.clone(),)

    def _begin_back(self, d_arguments: Sequence[Tensor]) -> None:
        """Nothing but h is carried."""
