"""What stacked recurrent networks share: settings, start weights, the way through time and back.

A layer sees W x + b of the layer below and its own state, whose first part is the output h. A
cell (RNN, GRU, LSTM) adds its equations and their transpose for all members at once. Dropout acts
on every layer's output, never on the recurrence.

Shapes: N members, B sequences, T steps, I inputs, H units, G rows of W and U (gates times H).
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from tasks.base import Bounds, InputKind, PerMember, UnsuitableError
from tasks.base import Config as BaseConfig
from tasks.networks.base import StateConvention
from tasks.networks.dropout import DropoutRates, DropoutStreams, num_words
from tasks.networks.dual_orbit import DualLayer, DualOrbit
from tasks.networks.layers import (
    Initialiser,
    common_settings,
    draw_bias,
    draw_weight,
    initial_scales,
    register_members,
)
from tasks.networks.own_backward import OwnBackward
from tasks.networks.recurrent_orbit import ClosedLoop, Readout, RecurrentOrbit
from tasks.networks.recurrent_tangent import Cell, HiddenOrbit
from tasks.networks.recurrent_walk import Walk
from tasks.networks.recurrent_way import Parts, Place, State, Together, Way
from tasks.networks.workspace import Workspace

# Members that a CPU takes through time together: enough of them to pay for the calls, few enough
# that their weights and the sums of their gradients, which every step passes through, stay near
# the core.
_LEAST, _MOST, _BYTES = 4, 32, 1 << 21


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


class Recurrent(OwnBackward):
    """A population of stacked recurrent networks with a linear readout; a mixin for `Network`.

    An architecture says `num_gates`, rows of W and U for each unit; `num_parts`, what the state of
    a layer consists of; and `columns_a_unit`, how many numbers of each unit U multiplies: h alone,
    or what stands beside it in the first part of the state.
    """

    num_gates: ClassVar[int]
    num_parts: ClassVar[int]
    columns_a_unit: ClassVar[int] = 1
    walk: ClassVar[Callable[..., Walk]]
    accepts: ClassVar[frozenset[InputKind]] = frozenset({"tokens", "sequence"})
    is_recurrent: ClassVar[bool] = True
    num_members: int
    input_size: int
    output_size: int

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

        scales = initial_scales(configs, config.units)
        drawn = [
            self._draw(member, scale, generator)
            for member, scale, generator in zip(configs, scales, generators, strict=True)
        ]
        register_members(self, drawn, dtype, device)
        self.dropout = DropoutRates([c.dropout for c in configs], dtype, device)

    def _run(
        self,
        inputs: Tensor,
        state: State | None,
        dropout: DropoutStreams | None,
        workspace: Workspace,
        members: slice,
        *,
        keep: bool,
    ) -> tuple[Tensor, State, "_Tape"]:
        """Outputs (N, B, T, O) of tokens (B, T) or sequences (B, T, I), and the state reached."""
        x_TIB = self._entering(inputs)
        T, _, B = x_TIB.shape
        readout_NOH = self.get_parameter("weight_out")[members]
        N, drawn = len(readout_NOH), None
        if dropout is not None and self.dropout.is_on:
            count = self.num_layers * T * self.units * B
            words = workspace.take("words", (num_words(N, count),), x_TIB, torch.int64)
            drawn = dropout.draw(count, members, words).view(N, self.num_layers, T, self.units, B)
            readout_NOH = readout_NOH * self.dropout.scale_N11[members]
        way = self._way(members, (T, B), drawn, workspace, keep=keep)
        top_NHM = way.forth(x_TIB, state)
        bias = getattr(self, "bias_out", None)
        if bias is None:
            outputs_NOM = torch.bmm(readout_NOH, top_NHM)
        else:
            outputs_NOM = torch.baddbmm(bias[members].unsqueeze(-1), readout_NOH, top_NHM)
        outputs_NBTO = outputs_NOM.view(N, self.output_size, T, B).permute(0, 3, 2, 1)
        return outputs_NBTO, way.end(), _Tape(members, way, drawn is not None)

    def _pull(
        self, tape: "_Tape", d_outputs: Tensor, into: Sequence[Tensor], *, wants_inputs: bool
    ) -> Tensor | None:
        N, B, T, O = d_outputs.shape  # noqa: E741
        d_NOM = d_outputs.permute(0, 3, 2, 1).reshape(N, O, T * B)
        named = dict(zip(self._parameters, into, strict=True))
        readout_NOH = self.get_parameter("weight_out")[tape.members]
        d_readout_NOH = torch.bmm(d_NOM, tape.way.top_NHM.mT)
        if tape.drops:
            scale_N11 = self.dropout.scale_N11[tape.members]
            readout_NOH = readout_NOH * scale_N11
            d_readout_NOH.mul_(scale_N11)
        named["weight_out"].copy_(d_readout_NOH)
        if "bias_out" in named:
            torch.sum(d_NOM, -1, out=named["bias_out"])
        d_x_TIB = d_NOM.new_zeros(T, self.input_size, B) if wants_inputs else None
        tape.way.back(readout_NOH, d_NOM, d_x_TIB)
        tape.way.write_gradient(named)
        return None if d_x_TIB is None else d_x_TIB.permute(2, 0, 1)

    def _chunks(self, inputs: Tensor) -> list[slice]:
        weight_in: Tensor = self.get_parameter("weight_in_0")
        size = self.num_members
        if weight_in.device.type == "cpu":
            rows, columns = self._num_rows(), self._num_columns + max(self.units, self.input_size)
            each = 2 * self.num_layers * rows * columns * weight_in.element_size()
            size = min(size, max(_LEAST, min(_MOST, _BYTES // each)))
        return [slice(n, min(n + size, self.num_members)) for n in range(0, self.num_members, size)]

    def _of_members(self, state: State | None, members: slice) -> State | None:
        return state and tuple(tuple(part[members] for part in parts) for parts in state)

    def _joined(self, states: Sequence[State]) -> State:
        if len(states) == 1:
            return states[0]
        return tuple(
            tuple(torch.cat(parts) for parts in zip(*layers, strict=True))
            for layers in zip(*states, strict=True)
        )

    def _way(
        self,
        members: slice,
        shape: tuple[int, int],
        drawn: Tensor | None,
        workspace: Workspace,
        *,
        keep: bool,
    ) -> Way:
        """How these members go through `shape` steps and sequences."""
        V_LNRK = [
            self._stacked(layer, members, workspace, drawn is not None)
            for layer in range(self.num_layers)
        ]
        others = self._walk_options() | {"keep": keep}
        walks = [
            type(self).walk(V_NRK, self._num_columns, *shape, workspace, f"{layer}", **others)
            for layer, V_NRK in enumerate(V_LNRK)
        ]
        top_shape = (len(V_LNRK[0]), self.units, math.prod(shape))
        top_NHM = workspace.take("top", top_shape, V_LNRK[0])
        places = [self._places(layer) for layer in range(self.num_layers)]
        return Together(members, walks, places, self.dropout, top_NHM, drawn, workspace)

    def _stacked(self, layer: int, members: slice, workspace: Workspace, drops: bool) -> Tensor:
        """V = (U | W | b) of a layer. What dropout leaves of x is scaled up by way of W."""
        W_NGI = self.get_parameter(f"weight_in_{layer}")[members]
        shape = (len(W_NGI), self._num_rows(), self._num_columns + W_NGI.shape[2] + 1)
        V_NRK = workspace.take(f"V{layer}", shape, W_NGI).zero_()
        for name, of, rows, columns in self._places(layer):
            value: Tensor | None = getattr(self, name, None)
            if value is not None:
                part = value[members, of]
                V_NRK[:, rows, columns] = part if part.dim() == 3 else part.unsqueeze(-1)
        if layer > 0 and drops:
            V_NRK[:, :, self._num_columns : -1].mul_(self.dropout.scale_N11[members])
        return V_NRK

    @property
    def _num_columns(self) -> int:
        """Columns of U."""
        return self.columns_a_unit * self.units

    def _num_rows(self) -> int:
        """R, rows of V."""
        return self.num_gates * self.units

    def _blocks(self) -> Sequence[tuple[slice, slice]]:
        """Rows of U, W and b beside those of V in which they stand: the same, if not told."""
        return ((slice(None), slice(None)),)

    def _places(self, layer: int) -> list[Place]:
        """What of the parameters stands where in V; parameters that do not exist included."""
        h, x = slice(self._num_columns), slice(self._num_columns, -1)
        one = slice(-1, None)
        return [
            (f"{name}_{layer}", of, rows, columns)
            for of, rows in self._blocks()
            for name, columns in (("weight_rec", h), ("weight_in", x), ("bias", one))
        ]

    def _walk_options(self) -> dict[str, Any]:
        """What else a walk of this architecture is told."""
        return {}

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

    def differentiable_orbit(self, inputs: Tensor) -> DualOrbit:
        """See `Network.differentiable_orbit`; one map a time step."""
        layers = [
            DualLayer(*self._layer(layer), self._cell(layer)) for layer in range(self.num_layers)
        ]
        return DualOrbit(layers, inputs, num_parts=self.num_parts)

    def _orbit(
        self,
        inputs: Tensor,
        state: StateConvention,
        dtype: torch.dtype,
        closed: ClosedLoop | None,
    ) -> RecurrentOrbit[Any]:
        """The maps of an open loop, or of a closed one; of layers whose state is h alone."""
        cells = tuple(self._tangent_cell(layer, dtype) for layer in range(self.num_layers))
        return HiddenOrbit(cells, inputs, state=state, closed=closed)

    def _tangent_cell(self, layer: int, dtype: torch.dtype) -> Cell:
        """The equations and derivatives of a layer whose state is h alone."""
        raise NotImplementedError(f"{type(self).__name__} makes its orbit itself")

    @abstractmethod
    def _cell(self, layer: int) -> Callable[[Tensor, Parts], Parts]:
        """(W x + b of one step (N, B, G), state) ↦ state after it, for all members."""

    def _layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """W, U and b as the maps of an orbit take them."""
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
        """Inputs as (T, I, B); tokens are one-hot."""
        weight: Tensor = self.get_parameter("weight_out")
        if inputs.is_floating_point():
            return inputs.to(weight.dtype).permute(1, 2, 0).contiguous()
        tokens_T1B = inputs.mT.unsqueeze(1)
        shape = (len(tokens_T1B), self.input_size, tokens_T1B.shape[2])
        return weight.new_zeros(shape).scatter_(1, tokens_T1B, 1.0)

    def _zero_state(self, num_sequences: int) -> State:
        weight: Tensor = self.get_parameter("weight_out")
        zeros = weight.new_zeros(self.num_members, num_sequences, self._num_columns)
        return ((zeros,) * self.num_parts,) * self.num_layers


@dataclass(frozen=True)
class _Tape:
    members: slice
    way: Way
    drops: bool
