"""What a vanilla RNN does between the products of a step, forth and back: h' = φ(a), δa = φ′ δh'.

Shapes: N members, B sequences, H units, which are the rows of V and of the arguments.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tasks.networks.activations import IN_PLACE
from tasks.networks.recurrent_walk import Walk


class RNNWalk(Walk):
    """One layer of vanilla RNNs on its way; the state is h."""

    def __init__(self, *args: Any, activation: str, **others: Any) -> None:
        self._activation = IN_PLACE[activation]
        super().__init__(*args, **others)

    def _prepare(self) -> None:
        """h is all there is."""

    def begin(self, parts_NBH: Sequence[Tensor] | None) -> None:
        """Sets h before the first step; None for zeros."""
        if parts_NBH is None:
            self.h_NHB[0].zero_()
        else:
            self.h_NHB[0].copy_(parts_NBH[0].mT)

    def _advance(self, step: int) -> None:
        self._activation.apply(self.arguments_NRB[step], self.h_NHB[step + 1])

    def end(self) -> tuple[Tensor, ...]:
        """A copy of h after the last step, (N, B, H)."""
        return (self.h_NHB[-1].mT.clone(),)

    def _begin_back(self, d_arguments: Sequence[Tensor]) -> None:
        """Nothing but h is carried."""

    def _retreat(self, step: int, d_h: Tensor, d_arguments: Tensor) -> None:
        d_arguments.copy_(d_h)
        self._activation.pull_back(d_arguments, self.h_NHB[step + 1])
