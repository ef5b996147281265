"""GRU of one or more layers with a linear readout (Cho et al. 2014), in PyTorch's form.

r, z = σ(W x + U h + b), n = tanh(W_n x + b_n + r (U_n h + b_hn)) and h' = (1−z) n + z h, rows in
the order r, z, n. `torch.nn.GRU` has two biases for r and z as well, which only ever enter as
their sum; b_hn alone is apart, being inside the reset.

Shapes: N members, B sequences, T steps, I inputs, H units, O outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.networks.base import Network, StateConvention
from tasks.networks.gru_tangent import GRUCell
from tasks.networks.layers import draw_bias
from tasks.networks.recurrent import Parts, Recurrent, RecurrentConfig
from tasks.networks.recurrent_orbit import ClosedLoop
from tasks.networks.recurrent_tangent import HiddenOrbit

_kernel: Callable[..., tuple[Tensor, Tensor]] = torch._VF.gru


class GRU(Recurrent, Network):
    """A population of GRUs; the state of a layer is h."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RecurrentConfig):
        """Settings of a GRU: those that every recurrent network has."""

    num_gates = 3
    num_parts = 1

    def _orbit(
        self,
        inputs: Tensor,
        state: StateConvention,
        dtype: torch.dtype,
        closed: ClosedLoop | None,
    ) -> HiddenOrbit:
        cells = []
        for layer in range(self.num_layers):
            b_hn = self._reset_bias(layer)
            inside = None if b_hn is None else b_hn.detach().to(dtype)
            cells.append(GRUCell(*self._detached_layer(layer, dtype), inside))
        return HiddenOrbit(tuple(cells), inputs, state=state, closed=closed)

    def _reset_bias(self, layer: int) -> Tensor | None:
        return getattr(self, f"bias_reset_{layer}", None)

    def _biases(self, layer: int) -> tuple[Tensor, ...]:
        b, b_hn = self._layer(layer)[2], self._reset_bias(layer)
        if b is None or b_hn is None:
            return ()
        return b, torch.cat([torch.zeros_like(b[:, : 2 * self.units]), b_hn], dim=-1)

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

    def _fused(
        self, x_TBI: Tensor, parts_BH: Parts, weights: list[Tensor], options: tuple[Any, ...]
    ) -> tuple[Tensor, Parts]:
        y_TBH, h = _kernel(x_TBI, parts_BH[0], weights, *options)
        return y_TBH, (h,)
