"""GRU of one or more layers with a linear readout (Cho et al. 2014), in PyTorch's form.

r, z = σ(W x + U h + b), n = tanh(W_n x + b_n + r (U_n h + b_hn)) and h' = (1−z) n + z h, rows in
the order r, z, n. `torch.nn.GRU` has two biases for r and z as well, which only ever enter as
their sum; b_hn alone is apart, being inside the reset.

Shapes: N members, B sequences, T steps, I inputs, H units, O outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.networks.base import Network
from tasks.networks.gru_tangent import GRUCell
from tasks.networks.gru_walk import GRUWalk
from tasks.networks.layers import draw_bias
from tasks.networks.recurrent import Recurrent, RecurrentConfig
from tasks.networks.recurrent_tangent import Cell
from tasks.networks.recurrent_way import Parts, Place


class GRU(Recurrent, Network):
    """A population of GRUs; the state of a layer is h."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RecurrentConfig):
        """Settings of a GRU: those that every recurrent network has."""

    num_gates = 3
    num_parts = 1
    walk = GRUWalk

    def _tangent_cell(self, layer: int, dtype: torch.dtype) -> Cell:
        b_hn = self._reset_bias(layer)
        inside = None if b_hn is None else b_hn.detach().to(dtype)
        return GRUCell(*self._detached_layer(layer, dtype), inside)

    def _reset_bias(self, layer: int) -> Tensor | None:
        return getattr(self, f"bias_reset_{layer}", None)

    def _draw_biases(
        self, config: Any, layer: int, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        drawn = super()._draw_biases(config, layer, scale, generator)
        drawn[f"bias_reset_{layer}"] = draw_bias(config.init, config.units, scale, generator)
        return drawn

    def _cell(self, layer: int) -> Callable[[Tensor, Parts], Parts]:
        U_NHG = self._layer(layer)[1].mT
        b_hn = self._reset_bias(layer)
        inside = None if b_hn is None else b_hn.unsqueeze(1)

        def advance(drive_NBG: Tensor, parts: Parts) -> Parts:
            (h,) = parts
            u_r, u_z, m = torch.bmm(h, U_NHG).chunk(3, dim=-1)
            w_r, w_z, w_n = drive_NBG.chunk(3, dim=-1)
            r, z = torch.sigmoid(w_r + u_r), torch.sigmoid(w_z + u_z)
            n = torch.tanh(w_n + r * (m if inside is None else m + inside))
            return (n + z * (h - n),)

        return advance

    def _num_rows(self) -> int:
        # r, z, W_n x + b_n and U_n h + b_hn: the reset stands between the last two.
        return 4 * self.units

    def _blocks(self) -> Sequence[tuple[slice, slice]]:
        return ((slice(2 * self.units), slice(2 * self.units)),)

    def _places(self, layer: int) -> list[Place]:
        H = self.units
        n, outside, inside = slice(2 * H, 3 * H), slice(2 * H, 3 * H), slice(3 * H, None)
        h, x, one = slice(H), slice(H, -1), slice(-1, None)
        return [
            *super()._places(layer),
            (f"weight_in_{layer}", n, outside, x),
            (f"bias_{layer}", n, outside, one),
            (f"weight_rec_{layer}", n, inside, h),
            (f"bias_reset_{layer}", slice(None), inside, one),
        ]
