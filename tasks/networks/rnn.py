"""Vanilla RNN of one or more layers with a linear readout (Elman 1990).

h' = φ(W x + U h + b), φ = tanh or relu. There is one bias a layer; `torch.nn.RNN` has two, which
only ever enter as their sum.

Shapes: N members, B sequences, T steps, I inputs, H units, O outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tasks.networks.base import Network
from tasks.networks.recurrent import Recurrent, RecurrentConfig
from tasks.networks.recurrent_tangent import Cell
from tasks.networks.recurrent_way import Parts
from tasks.networks.rnn_tangent import ACTIVATIONS, RNNCell
from tasks.networks.rnn_walk import RNNWalk


class RNN(Recurrent, Network):
    """A population of vanilla RNNs; the state of a layer is h."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RecurrentConfig):
        """Settings of an RNN, beside those that every recurrent network has.

        activation: φ.
        """

        activation: Literal["tanh", "relu"] = "tanh"

    num_gates = 1
    num_parts = 1
    walk = RNNWalk

    def __init__(self, configs: Any, **others: Any) -> None:
        Recurrent.__init__(self, configs, **others)
        self.activation: str = configs[0].activation

    def _tangent_cell(self, layer: int, dtype: torch.dtype) -> Cell:
        return RNNCell(*self._detached_layer(layer, dtype), self.activation)

    def _cell(self, layer: int) -> Callable[[Tensor, Parts], Parts]:
        U_NHG = self._layer(layer)[1].mT
        activation = ACTIVATIONS[self.activation][0]
        return lambda drive_NBG, parts: (activation(torch.baddbmm(drive_NBG, parts[0], U_NHG)),)

    def _walk_options(self) -> dict[str, Any]:
        return {"activation": self.activation}
