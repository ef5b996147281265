"""What stacked recurrent networks share: settings, start weights, time loops on CPU and elsewhere.

A layer sees W x + b of the layer below and its own state, whose first part is the output h. A
cell (RNN, GRU, LSTM) adds its equations for all members at once and PyTorch's fused kernel for
one of them. Dropout acts on every layer's output, never on the recurrence.

Shapes: N members, B sequences, T steps, I inputs, H units, G rows of W and U (gates times H).
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from tasks.base import Bounds, InputKind, PerMember, UnsuitableError
from tasks.base import Config as BaseConfig
from tasks.networks.base import StateConvention
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
from tasks.networks.recurrent_orbit import ClosedLoop, Readout, RecurrentOrbit

Parts = tuple[Tensor, ...]
"""The state of one layer, h first: (h,) or (h, c)."""

State = tuple[Parts, ...]
"""The state of every layer, each part (N, B, H)."""


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(BaseConfig):
    """Settings that every recurrent network has.

    units: H of every layer.
    layers: number of layers, each fed by the h of the one below.
    bias: whether gates and readout have one.
    init: how W, U and b are drawn, every gate on its own. The readout always starts as
        U(±1/√units), without bias, so that a sweep over `init_scale` moves the dynamics and
        leaves the size of the first outputs.
    init_scale: p of uniform(−p, p); σ of N(0, σ²/fan-in); the gain of orthogonal and glorot.
        None: 1/√units for uniform, 1 for the others. Biases are uniform(−p, p) with
        uniform and 0 with the others.
    dropout: share of each layer's outputs that is dropped in training.
    """

    units: Annotated[int, Bounds(ge=1)] = 64
    layers: Annotated[int, Bounds(ge=1)] = 1
    bias: bool = True
    init: Initialiser = "uniform"
    init_scale: Annotated[float | None, Bounds(gt=0), PerMember()] = None
    dropout: Annotated[float, Bounds(ge=0, lt=1), PerMember()] = 0.0


class Recurrent(nn.Module):
    """A population of stacked recurrent networks with a linear readout; a mixin for `Network`.

    On the CPU each member runs through PyTorch's fused kernel, which beats batched products from
    64 units up; elsewhere all members advance together. Both give the same outputs.
    """

    num_gates: ClassVar[int]
    num_parts: ClassVar[int]
    accepts: ClassVar[frozenset[InputKind]] = frozenset({"tokens", "sequence"})
    is_recurrent: ClassVar[bool] = True
    num_members: int
    input_size: int
    output_size: int
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
        config: RecurrentConfig = common_settings(configs)
        self.num_members = len(configs)
        self.input_size, self.output_size = input_size, output_size
        self.units, self.num_layers = config.units, config.layers

        drawn: dict[str, list[Tensor]] = {}
        for member, scale, generator in zip(
            configs, initial_scales(configs, config.units), generators, strict=True
        ):
            for name, value in self._draw(member, scale, generator).items():
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
    ) -> RecurrentOrbit[Any]:
        """One map a time step of `inputs`, (B, T, I) or tokens (B, T), from the zero state.

        state: "full", all of what the next step depends on; "hidden", h with c held fixed, which
            is the same where h is the whole state.
        """
        return self._orbit(inputs, state, dtype, None)

    def closed_orbit(
        self,
        inputs: Tensor,
        *,
        steps: int,
        state: StateConvention = "full",
        dtype: torch.dtype = torch.float64,
    ) -> RecurrentOrbit[Any]:
        """The `steps` maps that follow `inputs` (B, T, I) when outputs are fed back as inputs.

        Raises UnsuitableError where outputs and inputs differ in size, and for tokens.
        """
        if not inputs.is_floating_point():
            raise UnsuitableError(
                "a closed loop needs real inputs (B, T, I): choosing the next token is no "
                f"differentiable map; got {inputs.dtype} of shape {tuple(inputs.shape)}"
            )
        if self.output_size != self.input_size:
            raise UnsuitableError(
                "a closed loop needs outputs of the size of the inputs; got input_size "
                f"{self.input_size} and output_size {self.output_size}"
            )
        bias = getattr(self, "bias_out", None)
        readout = Readout(
            self.get_parameter("weight_out").detach().to(dtype),
            None if bias is None else bias.detach().to(dtype),
        )
        return self._orbit(inputs, state, dtype, ClosedLoop(readout, steps))

    @abstractmethod
    def _orbit(
        self,
        inputs: Tensor,
        state: StateConvention,
        dtype: torch.dtype,
        closed: ClosedLoop | None,
    ) -> RecurrentOrbit[Any]:
        """The maps of an open loop, or of a closed one."""

    @abstractmethod
    def _cell(self, layer: int) -> Callable[[Tensor, Parts], Parts]:
        """(W x + b of one step (N, B, G), state) ↦ state after it, for all members."""

    @abstractmethod
    def _fused(
        self, x_TBI: Tensor, parts_BH: Parts, weights: list[Tensor], options: tuple[Any, ...]
    ) -> tuple[Tensor, Parts]:
        """One layer of one member through PyTorch's kernel: h at every step, last state (1, B, H).

        `weights` are W, U and, if there are any, the two biases; `options` what else the kernel
        asks for.
        """

    def _layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        bias = getattr(self, f"bias_{layer}", None)
        return getattr(self, f"weight_in_{layer}"), getattr(self, f"weight_rec_{layer}"), bias

    def _detached_layer(
        self, layer: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """W, U and b out of the graph, in the precision asked for."""
        W, U, b = self._layer(layer)
        return (
            W.detach().to(dtype),
            U.detach().to(dtype),
            None if b is None else b.detach().to(dtype),
        )

    def _biases(self, layer: int) -> tuple[Tensor, ...]:
        """What the fused kernel adds to W x and to U h, each (N, G); empty without biases."""
        b = self._layer(layer)[2]
        return () if b is None else (b, torch.zeros_like(b))

    def _draw_biases(
        self, config: Any, layer: int, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Start biases of one layer of one member, float64."""
        size = self.num_gates * config.units
        return {f"bias_{layer}": draw_bias(config.init, size, scale, generator)}

    def _draw(self, config: Any, scale: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Start weights of one member, float64, in the order in which they are drawn."""
        H = config.units
        drawn: dict[str, Tensor] = {}
        for layer in range(config.layers):
            for name, fan_in in (
                (f"weight_in_{layer}", H if layer else self.input_size),
                (f"weight_rec_{layer}", H),
            ):
                gates = [
                    draw_weight(config.init, H, fan_in, scale, generator)
                    for _ in range(self.num_gates)
                ]
                drawn[name] = torch.cat(gates)
            if config.bias:
                bias_scale = scale if config.init == "uniform" else 0.0
                drawn.update(self._draw_biases(config, layer, bias_scale, generator))
        drawn["weight_out"] = draw_weight("uniform", self.output_size, H, H**-0.5, generator)
        if config.bias:
            drawn["bias_out"] = torch.zeros(self.output_size, dtype=torch.float64)
        return drawn

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
        return ((zeros,) * self.num_parts,) * self.num_layers

    def _run_fused(
        self, x_TBI: Tensor, state: State, generators: Sequence[torch.Generator] | None
    ) -> tuple[Tensor, State]:
        # unbind, never weight[n]: the backward pass of an index allocates the whole weight.
        layers = [
            [p.unbind(0) for p in (*self._layer(layer)[:2], *self._biases(layer))]
            for layer in range(self.num_layers)
        ]
        readout = self.get_parameter("weight_out").unbind(0)
        readout_bias = getattr(self, "bias_out", None)
        readout_biases = None if readout_bias is None else readout_bias.unbind(0)
        starts = [[part.unbind(0) for part in parts] for parts in state]
        rates = self.dropout_rates.tolist()
        # One layer at a time, and the kernel's own dropout stays at 0. Its flag `train` makes it
        # keep what backward needs.
        options = (readout_bias is not None, 1, 0.0, torch.is_grad_enabled(), False, False)
        outputs: list[Tensor] = []
        reached: list[list[Parts]] = [[] for _ in layers]
        for n in range(self.num_members):
            y_TBH = x_TBI
            for layer, (weights, parts) in enumerate(zip(layers, starts, strict=True)):
                start = tuple(part[n].unsqueeze(0) for part in parts)
                y_TBH, end = self._fused(y_TBH, start, [w[n] for w in weights], options)
                reached[layer].append(tuple(part.detach() for part in end))
                if generators is not None:
                    mask = dropout_mask(y_TBH.shape, rates[n], generators[n], y_TBH)
                    y_TBH = y_TBH if mask is None else y_TBH * mask
            bias = None if readout_biases is None else readout_biases[n]
            outputs.append(nn.functional.linear(y_TBH, readout[n], bias).transpose(0, 1))
        ends = tuple(
            tuple(torch.cat(members) for members in zip(*parts, strict=True)) for parts in reached
        )
        return torch.stack(outputs), ends

    def _run_batched(
        self, x_TBI: Tensor, state: State, generators: Sequence[torch.Generator] | None
    ) -> tuple[Tensor, State]:
        rates = self.dropout_rates.tolist()
        y_NTBH = x_TBI.expand(self.num_members, *x_TBI.shape)
        ends: list[Parts] = []
        for layer, parts in enumerate(state):
            W, _, b = self._layer(layer)
            advance = self._cell(layer)
            steps: list[Tensor] = []
            for drive_NBG in linear(y_NTBH, W, b).unbind(1):
                parts = advance(drive_NBG, parts)
                steps.append(parts[0])
            ends.append(tuple(part.detach() for part in parts))
            y_NTBH = torch.stack(steps, dim=1)
            if generators is not None:
                y_NTBH = drop(y_NTBH, rates, generators)
        outputs = linear(y_NTBH, self.get_parameter("weight_out"), getattr(self, "bias_out", None))
        return outputs.transpose(1, 2), tuple(ends)
