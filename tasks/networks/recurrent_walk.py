"""One recurrent layer of all members through time and back, in memory that is given.

With s = (h, x, 1) and V = (U | W | b) a cell's arguments are V s: one product a step forward, one
back (Vᵀ δ) and one for the whole gradient (δ sᵀ, summed as one goes). Sequences come last, so that
a step of narrow networks runs along memory; gates are turned into their values where they lie.

Shapes: N members, B sequences, T steps, I inputs, H units, R rows of V, K = H + I + 1.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.networks.workspace import Workspace


class Walk(ABC):
    """A layer on its way; an architecture adds what a step does with the arguments.

    Args:
        V_NRK: weights, the columns of h first, then those of x, the bias last.
        num_units: H.
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
        self._num_members, num_rows, num_columns = V_NRK.shape
        self._num_sequences = num_sequences
        self.s_NKB = self._of_steps("s", num_columns, num_steps + 1)
        self.arguments_NRB = self._of_steps("arguments", num_rows, num_steps)
        self.h_NHB = [s[:, :num_units] for s in self.s_NKB]
        self._x_NIB = [s[:, num_units:-1] for s in self.s_NKB[:num_steps]]
        for s in self.s_NKB if keep else self.s_NKB[:1]:
            s[:, -1].fill_(1)
        self._prepare()

    def _of_steps(self, name: str, rows: int, steps: int) -> list[Tensor]:
        """Memory (N, rows, B) for each of some steps."""
        different = steps if self._keep else 1
        shape = (different, self._num_members, rows, self._num_sequences)
        block = self._workspace.take(f"{self._name}.{name}", shape, self.V_NRK)
        return list(block.unbind(0)) if self._keep else [block[0]] * steps

    def _scratch(self, name: str, rows: int) -> Tensor:
        """Memory (N, rows, B) that layers and groups of members share."""
        shape = (self._num_members, rows, self._num_sequences)
        return self._workspace.take(f"scratch.{name}", shape, self.V_NRK)

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
    def _begin_back(self) -> None:
        """Sets what is carried back, beside the gradient of h, to zero."""

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
        self._d_arguments = self._scratch("d_arguments", self.V_NRK.shape[1])
        shape = (self._num_members, columns, self._num_sequences)
        self._d_s = self._workspace.take(f"{self._name}.d_s", shape, self.V_NRK)
        self.d_h = self._d_s[:, : self.num_units]
        self.d_x = self._d_s[:, self.num_units :]
        self.d_h.zero_()
        self.d_V = self._workspace.take(f"{self._name}.d_V", self.V_NRK.shape, self.V_NRK)
        self.d_V.zero_()
        self._begin_back()

    def retreat(self, step: int) -> None:
        """One step back. To `d_h` has been added what comes from outside.

        Leaves the gradient of h before the step in `d_h`, that of x in `d_x` where it is wanted.
        """
        direct = self._retreat(step, self.d_h, self._d_arguments)
        torch.bmm(self._back, self._d_arguments, out=self._d_s)
        if direct is not None:
            self.d_h.add_(direct)
        self.d_V.baddbmm_(self._d_arguments, self.s_NKB[step].mT)
