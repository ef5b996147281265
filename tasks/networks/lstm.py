"""LSTM of one or more layers with a linear readout (Hochreiter & Schmidhuber 1997; Gers 2000).

c' = f c + i g and h' = o tanh c', with i, f, o = σ(·) and g = tanh(·) of W x + U h + b, rows in
the order i, f, g, o. There is one bias a layer; `torch.nn.LSTM` has two, which only ever enter
as their sum. Dropout acts on every layer's output, as in Vogt et al. (2022), never on the
recurrence.

Shapes: N members, B sequences, T steps, I inputs, H units, O outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from tasks.base import PerMember, UnsuitableError
from tasks.networks.base import Network, StateConvention
from tasks.networks.lstm_fused import Fused
from tasks.networks.lstm_tangent import LayerWeights, LSTMOrbit
from tasks.networks.lstm_walk import LSTMWalk
from tasks.networks.recurrent import Recurrent, RecurrentConfig
from tasks.networks.recurrent_orbit import ClosedLoop
from tasks.networks.recurrent_way import Parts, Way
from tasks.networks.workspace import Workspace

_FUSED_FROM = 16


class LSTM(Recurrent, Network):
    """A population of LSTMs; the state of a layer is (h, c)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RecurrentConfig):
        """Settings of an LSTM, beside those that every recurrent network has.

        forget_bias: added to the forget gate's start bias. 0, as in the networks of
            Vogt et al. (2022); anything else needs `bias`.
        """

        forget_bias: Annotated[float, PerMember()] = 0.0

    num_gates = 4
    num_parts = 2
    walk = LSTMWalk

    def __init__(self, configs: Sequence[Any], **others: Any) -> None:
        if any(c.forget_bias != 0 and not c.bias for c in configs):
            raise UnsuitableError(
                "forget_bias needs bias: true; got bias: false with forget_bias "
                f"{[c.forget_bias for c in configs]}"
            )
        Recurrent.__init__(self, configs, **others)

    def _orbit(
        self,
        inputs: Tensor,
        state: StateConvention,
        dtype: torch.dtype,
        closed: ClosedLoop | None,
    ) -> LSTMOrbit:
        layers = [
            LayerWeights(*self._detached_layer(layer, dtype)) for layer in range(self.num_layers)
        ]
        return LSTMOrbit(tuple(layers), inputs, state=state, closed=closed)

    def _draw_biases(
        self, config: Any, layer: int, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        drawn = super()._draw_biases(config, layer, scale, generator)
        drawn[f"bias_{layer}"][config.units : 2 * config.units] += config.forget_bias
        return drawn

    def _cell(self, layer: int) -> Callable[[Tensor, Parts], Parts]:
        U_NHG = self._layer(layer)[1].mT

        def advance(drive_NBG: Tensor, parts: Parts) -> Parts:
            h, c = parts
            i, f, g, o = torch.baddbmm(drive_NBG, h, U_NHG).chunk(4, dim=-1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(c), c

        return advance

    def _blocks(self) -> Sequence[tuple[slice, slice]]:
        # V has i, f, o, g: the three that are logistic side by side.
        H = self.units
        i_f, g, o = slice(2 * H), slice(2 * H, 3 * H), slice(3 * H, 4 * H)
        return (i_f, i_f), (o, g), (g, o)

    def _chunks(self, inputs: Tensor) -> list[slice]:
        if not is_fused(self.get_parameter("weight_rec_0")):
            return super()._chunks(inputs)
        return [slice(n, n + 1) for n in range(self.num_members)]

    def _way(
        self,
        members: slice,
        shape: tuple[int, int],
        drawn: Tensor | None,
        workspace: Workspace,
        *,
        keep: bool,
    ) -> Way:
        if not is_fused(self.get_parameter("weight_rec_0")):
            return super()._way(members, shape, drawn, workspace, keep=keep)
        names = [
            [f"{kind}_{layer}" for kind in ("weight_in", "weight_rec", "bias")]
            for layer in range(self.num_layers)
        ]
        weights = [
            {name: self.get_parameter(name)[members.start] for name in layer if hasattr(self, name)}
            for layer in names
        ]
        return Fused(weights, members, self.dropout, None if drawn is None else drawn[0], keep=keep)


def is_fused(weight_rec: Tensor) -> bool:
    """Whether the fused kernel, one member after the other, beats products of all members.

    It exists for float32 on CPUs. Its share of overhead falls with the units.
    """
    on_cpu = weight_rec.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return on_cpu and weight_rec.dtype == torch.float32 and weight_rec.shape[-1] >= _FUSED_FROM
