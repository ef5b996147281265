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
from torch import Tensor, nn

from tasks.base import Bounds, PerMember, UnsuitableError
from tasks.base import Config as BaseConfig
from tasks.networks.base import Network, StateConvention
from tasks.networks.layers import (
    Initialiser,
    common_settings,
    draw_bias,
    draw_weight,
    dropout_mask,
    initial_scales,
    linear,
)
from tasks.networks.layers import dropout as drop
from tasks.networks.lstm_tangent import LayerWeights, LSTMOrbit

State = tuple[tuple[Tensor, Tensor], ...]
"""(h, c) of every layer, each (N, B, H)."""


class LSTM(Network):
    """A population of LSTMs.

    On the CPU each member runs through PyTorch's fused kernel, which beats batched products from
    64 units up; elsewhere all members advance together. Both give the same outputs.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings of an LSTM.

        units: H of every layer.
        bias: whether gates and readout have one.
        init: how W, U and b are drawn, every gate on its own. The readout always starts as
            U(±1/√units), without bias, so that a sweep over `init_scale` moves the dynamics and
            leaves the size of the first outputs.
        init_scale: p of uniform(−p, p); σ of N(0, σ²/fan-in); the gain of orthogonal and glorot.
            None: 1/√units for uniform, 1 for the others. Biases are uniform(−p, p) with
            uniform and 0 with the others.
        forget_bias: added to the forget gate's start bias. 0, as in the networks of
            Vogt et al. (2022); anything else needs `bias`.
        dropout: share of each layer's outputs that is dropped in training.
        """

        units: Annotated[int, Bounds(ge=1)] = 64
        layers: Annotated[int, Bounds(ge=1)] = 1
        bias: bool = True
        init: Initialiser = "uniform"
        init_scale: Annotated[float | None, Bounds(gt=0), PerMember()] = None
        forget_bias: Annotated[float, PerMember()] = 0.0
        dropout: Annotated[float, Bounds(ge=0, lt=1), PerMember()] = 0.0

    accepts = frozenset({"tokens", "sequence"})
    is_recurrent = True
    dropout_rates: Tensor

    def __init__(
        self,
        configs: Sequence[Any],
        *,
        input_size: int,
        output_size: int,
        generators: Sequence[torch.Generator],
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        nn.Module.__init__(self)
        config: LSTM.Config = common_settings(configs)
        if not config.bias and any(c.forget_bias != 0 for c in configs):
            raise UnsuitableError(
                "forget_bias needs bias: true; got bias: false with forget_bias "
                f"{[c.forget_bias for c in configs]}"
            )
        self.num_members = len(configs)
        self.input_size, self.output_size = input_size, output_size
        self.units, self.num_layers = config.units, config.layers
        H = config.units

        drawn: dict[str, list[Tensor]] = {}
        for member, scale, generator in zip(
            configs, initial_scales(configs, H), generators, strict=True
        ):
            for name, value in _draw(member, scale, input_size, output_size, generator).items():
                drawn.setdefault(name, []).append(value)
        for name, values in drawn.items():
            stacked = torch.stack(values).to(dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(stacked))
        rates = torch.tensor([c.dropout for c in configs], dtype=torch.float64)
        self.register_buffer("dropout_rates", rates)

    def forward(
        self,
        inputs: Tensor,
        state: State | None = None,
        *,
        dropout: Sequence[torch.Generator] | None = None,
    ) -> tuple[Tensor, State]:
        """Outputs (N, B, T, O) of tokens (B, T) or sequences (B, T, I), and the state reached."""
        x_TBI = self._entering(inputs)
        if state is None:
            state = self._zero_state(x_TBI.shape[1])
        run = self._run_fused if x_TBI.device.type == "cpu" else self._run_batched
        return run(x_TBI, state, dropout)

    def orbit(
        self,
        inputs: Tensor,
        *,
        state: StateConvention = "full",
        dtype: torch.dtype = torch.float64,
    ) -> LSTMOrbit:
        """One map a time step, from the zero state; `LSTMOrbit` says what `state` means."""
        layers: list[LayerWeights] = []
        for layer in range(self.num_layers):
            W, U, b = self._layer(layer)
            b = None if b is None else b.detach().to(dtype)
            layers.append(LayerWeights(W.detach().to(dtype), U.detach().to(dtype), b))
        return LSTMOrbit(tuple(layers), inputs, state=state)

    def _layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        bias = getattr(self, f"bias_{layer}", None)
        return getattr(self, f"weight_in_{layer}"), getattr(self, f"weight_rec_{layer}"), bias

    def _entering(self, inputs: Tensor) -> Tensor:
        """Inputs as (T, B, I): the fused kernel wants time first, and tokens one-hot."""
        weight: Tensor = self.get_parameter("weight_in_0")
        if inputs.is_floating_point():
            return inputs.transpose(0, 1).to(weight.dtype)
        tokens_TB1 = inputs.mT.unsqueeze(-1)
        one_hot = weight.new_zeros(*tokens_TB1.shape[:2], self.input_size)
        return one_hot.scatter_(-1, tokens_TB1, 1.0)

    def _zero_state(self, num_sequences: int) -> State:
        weight: Tensor = self.get_parameter("weight_in_0")
        zeros = weight.new_zeros(self.num_members, num_sequences, self.units)
        return ((zeros, zeros),) * self.num_layers

    def _run_fused(
        self, x_TBI: Tensor, state: State, generators: Sequence[torch.Generator] | None
    ) -> tuple[Tensor, State]:
        # unbind, never weight[n]: the backward pass of an index allocates the whole weight.
        layers = [
            (W.unbind(0), U.unbind(0), None if b is None else b.unbind(0))
            for W, U, b in map(self._layer, range(self.num_layers))
        ]
        readout = self.get_parameter("weight_out").unbind(0)
        readout_bias = getattr(self, "bias_out", None)
        readout_biases = None if readout_bias is None else readout_bias.unbind(0)
        starts = [(h.unbind(0), c.unbind(0)) for h, c in state]
        rates = self.dropout_rates.tolist()
        outputs: list[Tensor] = []
        reached: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
        for n in range(self.num_members):
            y_TBH = x_TBI
            for layer, ((W, U, b), (h, c)) in enumerate(zip(layers, starts, strict=True)):
                weights = [W[n], U[n]]
                if b is not None:
                    weights += [b[n], torch.zeros_like(b[n])]
                y_TBH, h_1BH, c_1BH = _fused_lstm(
                    y_TBH, (h[n].unsqueeze(0), c[n].unsqueeze(0)), weights, b is not None
                )
                reached[layer].append((h_1BH.detach(), c_1BH.detach()))
                if generators is not None:
                    mask = dropout_mask(y_TBH.shape, rates[n], generators[n], y_TBH)
                    y_TBH = y_TBH if mask is None else y_TBH * mask
            bias = None if readout_biases is None else readout_biases[n]
            outputs.append(nn.functional.linear(y_TBH, readout[n], bias).transpose(0, 1))
        ends = tuple(
            (torch.cat([h for h, _ in members]), torch.cat([c for _, c in members]))
            for members in reached
        )
        return torch.stack(outputs), ends

    def _run_batched(
        self, x_TBI: Tensor, state: State, generators: Sequence[torch.Generator] | None
    ) -> tuple[Tensor, State]:
        rates = self.dropout_rates.tolist()
        y_NTBH = x_TBI.expand(self.num_members, *x_TBI.shape)
        ends: list[tuple[Tensor, Tensor]] = []
        for layer, (h, c) in enumerate(state):
            W, U, b = self._layer(layer)
            U_NHG = U.mT
            steps: list[Tensor] = []
            for drive_NBG in linear(y_NTBH, W, b).unbind(1):
                i, f, g, o = torch.baddbmm(drive_NBG, h, U_NHG).chunk(4, dim=-1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
                steps.append(h)
            ends.append((h.detach(), c.detach()))
            y_NTBH = torch.stack(steps, dim=1)
            if generators is not None:
                y_NTBH = drop(y_NTBH, rates, generators)
        outputs = linear(y_NTBH, self.get_parameter("weight_out"), getattr(self, "bias_out", None))
        return outputs.transpose(1, 2), tuple(ends)


_lstm_kernel: Callable[..., tuple[Tensor, Tensor, Tensor]] = torch._VF.lstm


def _fused_lstm(
    x_TBI: Tensor, state: tuple[Tensor, Tensor], weights: list[Tensor], has_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # The flag `train` makes the kernel keep what backward needs; its own dropout stays at 0.
    train = torch.is_grad_enabled()
    return _lstm_kernel(x_TBI, state, weights, has_bias, 1, 0.0, train, False, False)


def _draw(
    config: "LSTM.Config",
    scale: float,
    num_inputs: int,
    num_outputs: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Start weights of one member, float64, in the order in which they are drawn."""
    H = config.units
    drawn: dict[str, Tensor] = {}
    for layer in range(config.layers):
        for name, fan_in in (
            (f"weight_in_{layer}", H if layer else num_inputs),
            (f"weight_rec_{layer}", H),
        ):
            drawn[name] = torch.cat(
                [draw_weight(config.init, H, fan_in, scale, generator) for _ in range(4)]
            )
        if config.bias:
            bias_scale = scale if config.init == "uniform" else 0.0
            bias = draw_bias(config.init, 4 * H, bias_scale, generator)
            bias[H : 2 * H] += config.forget_bias
            drawn[f"bias_{layer}"] = bias
    drawn["weight_out"] = draw_weight("uniform", num_outputs, H, H**-0.5, generator)
    if config.bias:
        drawn["bias_out"] = torch.zeros(num_outputs, dtype=torch.float64)
    return drawn
