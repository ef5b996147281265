"""What a vanilla RNN does between the products of a step, forth and back: h' = φ(a), δa = φ′ δh'.

Shapes: N members, B sequences, H units, which are the rows of V and of the arguments.
"""

from typing import Any

from torch import Tensor

from tasks.networks.activations import IN_PLACE
from tasks.networks.recurrent_walk import HiddenWalk


class RNNWalk(HiddenWalk):
    """One layer of vanilla RNNs on its way; the state is h."""

    def __init__(self, *args: Any, activation: str, **others: Any) -> None:
        self._activation = IN_PLACE[activation]
        super().__init__(*args, **others)

    def _advance(self, step: int) -> None:
        self._activation.apply(self.arguments_NRB[step], self.h_NHB[step + 1])

    def _retreat(self, step: int, d_h: Tensor, d_arguments: Tensor) -> None:
        d_arguments.copy_(d_h)
        self._activation.pull_back(d_arguments, self.h_NHB[step + 1])
