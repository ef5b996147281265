"""Fully connected network with a linear output layer (Poole et al. 2016; Storm et al. 2024).

x^(l) = φ(W^(l) x^(l−1) + b^(l)), l = 1 … depth. With `init: gaussian` the weights are
N(0, σ_w²/fan-in) and the biases N(0, σ_b²), the ensemble of the mean-field theory.

Shapes: N members, B examples, I inputs, W width, O outputs, K tangents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from tasks.base import Bounds, PerMember
from tasks.base import Config as BaseConfig
from tasks.networks.activations import IN_PLACE, Activation
from tasks.networks.base import LayerSequence, Network, StateConvention
from tasks.networks.dropout import DropoutRates, DropoutStreams, num_words
from tasks.networks.layers import (
    Initialiser,
    common_settings,
    draw_bias,
    draw_weight,
    initial_scales,
    linear,
    matmul_tangents,
    register_members,
    relu_slope,
    sech2,
)
from tasks.networks.own_backward import OwnBackward
from tasks.networks.workspace import Workspace


def _gelu_derivative(a: Tensor) -> Tensor:
    density = torch.exp(-0.5 * a.square()) * 0.3989422804014327  # 1/√(2π)
    distribution: Tensor = torch.special.ndtr(a)
    return distribution + a * density


def _silu_derivative(a: Tensor) -> Tensor:
    return torch.sigmoid(a) * (1 + a * torch.sigmoid(-a))


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tanh": (torch.tanh, sech2),
    "relu": (torch.relu, relu_slope),
    "gelu": (nn.functional.gelu, _gelu_derivative),
    "silu": (nn.functional.silu, _silu_derivative),
    "sigmoid": (torch.sigmoid, lambda a: torch.sigmoid(a) * torch.sigmoid(-a)),
    "identity": (lambda a: a, torch.ones_like),
}
"""φ and φ′ by name, both of the argument a."""

# Activations that are kept at a time; fewer members at a time are slower, not faster.
_BYTES = 1 << 26


class MLP(OwnBackward, Network):
    """A population of fully connected networks."""

    @dataclass(frozen=True, kw_only=True)
    class Config(BaseConfig):
        """Settings of an MLP.

        width: units of every hidden layer.
        depth: number of hidden layers.
        activation: φ of the hidden layers.
        init: how hidden weights are drawn. The output layer always starts as N(0, 1/width)
            with bias 0, so that a sweep over `init_scale` does not also scale the first outputs.
        init_scale: σ_w of N(0, σ_w²/fan-in); p of uniform(−p, p); the gain of orthogonal and
            glorot. None: 1/√width for uniform, 1 for the others.
        bias_scale: σ_b of the hidden biases N(0, σ_b²), uniform(−σ_b, σ_b) with uniform.
        dropout: share of each hidden layer's activations that is dropped in training.
        trained: "all", or the "output" layer's weights and bias alone; the hidden layers then stay
            as drawn, whatever the optimiser does (Storm et al. 2024, Fig. 3a).
        """

        width: Annotated[int, Bounds(ge=1)] = 32
        depth: Annotated[int, Bounds(ge=1)] = 2
        activation: Activation = "tanh"
        init: Initialiser = "gaussian"
        init_scale: Annotated[float | None, Bounds(gt=0), PerMember()] = None
        bias_scale: Annotated[float, Bounds(ge=0), PerMember()] = 0.0
        dropout: Annotated[float, Bounds(ge=0, lt=1), PerMember()] = 0.0
        trained: Literal["all", "output"] = "all"

    accepts = frozenset({"vector"})
    is_recurrent = False

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
        config: MLP.Config = common_settings(configs)
        self.num_members = len(configs)
        self.input_size, self.output_size = input_size, output_size
        self.width, self.depth = config.width, config.depth
        self.activation, self.derivative = ACTIVATIONS[config.activation]
        self._in_place = IN_PLACE[config.activation]

        scales = initial_scales(configs, config.width)
        drawn = [
            _draw(member, scale, input_size, output_size, generator)
            for member, scale, generator in zip(configs, scales, generators, strict=True)
        ]
        register_members(self, drawn, dtype, device)
        if config.trained == "output":
            # As buffers they are stored and selected, but no optimiser and no decay sees them.
            for name in list(self._parameters)[: 2 * self.depth]:
                held = self.get_parameter(name).detach()
                delattr(self, name)
                self.register_buffer(name, held)
        self.dropout = DropoutRates([c.dropout for c in configs], dtype, device)

    def _run(
        self,
        inputs: Tensor,
        state: None,
        dropout: DropoutStreams | None,
        workspace: Workspace,
        members: slice,
        *,
        keep: bool,
    ) -> tuple[Tensor, None, "_Tape"]:
        """Outputs (N, B, O) of vectors (B, I); nothing is carried to the next batch."""
        N, B, W = members.stop - members.start, len(inputs), self.width
        parameters = self._of_layers(members)
        readout, bias_out = parameters[self.depth]
        x_NIB = inputs.to(readout.dtype).T.contiguous().expand(N, -1, -1)
        drawn_NLM, scale_N11 = None, None
        if dropout is not None and self.dropout.is_on:
            count = self.depth * W * B
            words = workspace.take("words", (num_words(N, count),), readout, torch.int64)
            drawn_NLM = dropout.draw(count, members, words).view(N, self.depth, W * B)
            scale_N11 = self.dropout.scale_N11[members]
        tape = _Tape(members, [x_NIB], [], drawn_NLM, scale_N11, workspace)
        for layer in range(self.depth):
            weight_NOI, bias_NO = parameters[layer]
            a_NWB = workspace.take(f"a{layer if keep else layer % 2}", (N, W, B), readout)
            torch.bmm(tape.scaled(weight_NOI, layer), x_NIB, out=a_NWB)
            a_NWB.add_(bias_NO.unsqueeze(-1))
            x_NIB = a_NWB
            if self._in_place.needs_argument:
                x_NIB = workspace.take(f"x{layer if keep else layer % 2}", (N, W, B), readout)
            self._in_place.apply(a_NWB, x_NIB)
            if drawn_NLM is not None:
                x_NIB.mul_(self._mask(tape, layer, x_NIB))
            if keep:
                tape.arguments.append(a_NWB)
                tape.inputs.append(x_NIB)
        scaled = tape.scaled(readout, self.depth)
        outputs_NOB = torch.baddbmm(bias_out.unsqueeze(-1), scaled, x_NIB)
        return outputs_NOB.mT, None, tape

    def _pull(
        self, tape: "_Tape", d_outputs: Tensor, into: Sequence[Tensor], *, wants_inputs: bool
    ) -> Tensor | None:
        g_NOB = d_outputs.mT
        parameters = self._of_layers(tape.members)
        held = len(self._buffers)
        lowest = 0 if wants_inputs else held // 2
        for layer in range(self.depth, lowest - 1, -1):
            x_NIB = tape.inputs[layer]
            W_NOI = parameters[layer][0]
            if 2 * layer >= held:
                to_weight, to_bias = into[2 * layer - held], into[2 * layer + 1 - held]
                d_W = tape.workspace.take("d_weight", W_NOI.shape, W_NOI)
                torch.bmm(g_NOB, x_NIB.mT, out=d_W)
                if layer > 0 and tape.scale_N11 is not None:
                    torch.mul(d_W, tape.scale_N11, out=to_weight)
                else:
                    to_weight.copy_(d_W)
                torch.sum(g_NOB, -1, out=to_bias)
            if layer == lowest:
                break
            if layer == self.depth:
                g_NOB = self._felt(g_NOB)
            d_x = tape.workspace.take(f"d{layer % 2}", x_NIB.shape, W_NOI)
            torch.bmm(tape.scaled(W_NOI, layer).mT, g_NOB, out=d_x)
            if tape.drawn_NLM is not None:
                d_x.mul_(self._mask(tape, layer - 1, d_x))
            # What is dropped has gradient 0 by now, so that φ(a) times the mask serves as φ(a).
            kept = tape.arguments[layer - 1] if self._in_place.needs_argument else x_NIB
            self._in_place.pull_back(d_x, kept)
            g_NOB = d_x
        if not wants_inputs:
            return None
        return torch.bmm(parameters[0][0].mT, g_NOB).sum(0).T

    def _felt(self, g_NOB: Tensor) -> Tensor:
        """The part of the outputs' gradient that reaches the hidden layers: all of it."""
        return g_NOB

    def _composed(self, inputs: Tensor, state: Any) -> Tensor:
        weight: Tensor = self._layer(0)[0]
        x = inputs.to(weight.dtype).expand(self.num_members, *inputs.shape)
        for layer in range(self.depth):
            x = self.activation(linear(x, *self._layer(layer)))
        return linear(x, self.get_parameter("weight_out"), self.get_parameter("bias_out"))

    def _mask(self, tape: "_Tape", layer: int, like_NWB: Tensor) -> Tensor:
        """0 or 1. It is made twice, from numbers of half its size, rather than kept."""
        assert tape.drawn_NLM is not None
        drawn_NWB = tape.drawn_NLM[:, layer].view(like_NWB.shape)
        out = tape.workspace.take("mask", like_NWB.shape, like_NWB)
        return self.dropout.mask(drawn_NWB, out, tape.members)

    def orbit(
        self,
        inputs: Tensor,
        *,
        state: StateConvention = "full",
        dtype: torch.dtype = torch.float64,
    ) -> "MLPOrbit":
        """One map a hidden layer, from the input; `state` makes no difference here."""
        layers = [
            (W.detach().to(dtype), b.detach().to(dtype))
            for W, b in map(self._layer, range(self.depth))
        ]
        return MLPOrbit(layers, self.activation, self.derivative, inputs.to(dtype))

    def _chunks(self, inputs: Tensor) -> list[slice]:
        size = self.num_members
        if inputs.device.type == "cpu":
            each = self.depth * self.width * len(inputs) * self.dropout.scale_N11.element_size()
            size = min(size, max(1, _BYTES // each))
        return [slice(n, min(n + size, self.num_members)) for n in range(0, self.num_members, size)]

    def _of_layers(self, members: slice) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of every layer: what is held, then what `parameters()` has, in order."""
        flat: list[Any] = [*self._buffers.values(), *self._parameters.values()]
        if members != slice(0, self.num_members):
            flat = [parameter[members] for parameter in flat]
        return list(zip(flat[::2], flat[1::2], strict=True))

    def _layer(self, layer: int) -> tuple[Tensor, Tensor]:
        return getattr(self, f"weight_{layer}"), getattr(self, f"bias_{layer}")

    def layer_sequence(self) -> LayerSequence | None:
        """Weights and biases of the hidden layers but the first, which has another shape."""
        weights, biases = zip(*map(self._layer, range(self.depth)), strict=True)
        is_learned = f"weight_{self.depth - 1}" in self._parameters
        return LayerSequence((weights[1:], biases[1:])) if self.depth > 2 and is_learned else None

    def differentiable_orbit(self, inputs: Tensor) -> "MLPOrbit":
        """See `Network.differentiable_orbit`; one map a hidden layer."""
        layers = [self._layer(layer) for layer in range(self.depth)]
        return MLPOrbit(layers, self.activation, self.derivative, inputs.to(layers[0][0].dtype))


@dataclass(frozen=True)
class _Tape:
    """What the backward pass reads again.

    Dropped activations are 0 and the others as they were: 1/(1 − rate) is a factor of the next
    layer's weights, of which there are fewer.

    members: whose they are.
    inputs: of every layer, examples last: products of narrow matrices then run along memory.
    arguments: of every hidden layer's φ; overwritten where φ does not need them.
    """

    members: slice
    inputs: list[Tensor]
    arguments: list[Tensor]
    drawn_NLM: Tensor | None
    scale_N11: Tensor | None
    workspace: Workspace

    def scaled(self, weight_NOI: Tensor, layer: int) -> Tensor:
        if self.scale_N11 is None or layer == 0:
            return weight_NOI
        return weight_NOI * self.scale_N11


@dataclass(frozen=True)
class LayerStep:
    """The derivative D W of one hidden layer, D = diag φ′(a)."""

    W_NED: Tensor
    slope_NBE: Tensor

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """D W Q, (N, B, E, K). One frame for all examples may be given as (N, 1, D, K)."""
        return self.slope_NBE.unsqueeze(-1) * matmul_tangents(self.W_NED, Q_NBDK)

    def transposed(self, P_NBEK: Tensor) -> Tensor:
        """Wᵀ D P, (N, B, D, K)."""
        return matmul_tangents(self.W_NED.mT, self.slope_NBE.unsqueeze(-1) * P_NBEK)

    def dense(self) -> Tensor:
        """D W, (N, B, E, D)."""
        return self.slope_NBE.unsqueeze(-1) * self.W_NED.unsqueeze(1)


class MLPOrbit:
    """The hidden layers that a vector passes through, without dropout and gradients."""

    def __init__(
        self,
        layers: list[tuple[Tensor, Tensor]],
        activation: Callable[[Tensor], Tensor],
        derivative: Callable[[Tensor], Tensor],
        inputs: Tensor,
    ) -> None:
        self._layers, self._activation, self._derivative = layers, activation, derivative
        self._inputs = inputs
        first = layers[0][0]
        self.num_members, self.num_sequences = first.shape[0], inputs.shape[0]
        self.num_steps, self.tangent_size = len(layers), first.shape[-1]
        self.dtype, self.device = first.dtype, first.device

    def maps(self) -> Iterator[LayerStep]:
        """The derivative of every hidden layer, in order."""
        x = self._inputs.expand(self.num_members, *self._inputs.shape)
        for W, b in self._layers:
            a = linear(x, W, b)
            yield LayerStep(W, self._derivative(a))
            x = self._activation(a)

    def active_directions(self) -> Tensor:
        """Orthonormal basis (N, I, r) of the inputs' directions that the first layer sees.

        r = min(I, width). All other directions are in the kernel of W^(1) for every example, so
        that tangents need to be carried for these alone.
        """
        W_NEI = self._layers[0][0]
        if W_NEI.shape[-1] <= W_NEI.shape[-2]:
            identity = torch.eye(W_NEI.shape[-1], dtype=self.dtype, device=self.device)
            return identity.expand(self.num_members, -1, -1)
        basis: Tensor = torch.linalg.qr(W_NEI.mT).Q
        return basis


def _draw(
    config: MLP.Config, scale: float, num_inputs: int, num_outputs: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Start weights of one member, float64, in the order in which they are drawn."""
    drawn: dict[str, Tensor] = {}
    for layer in range(config.depth):
        fan_in = config.width if layer else num_inputs
        drawn[f"weight_{layer}"] = draw_weight(config.init, config.width, fan_in, scale, generator)
        drawn[f"bias_{layer}"] = draw_bias(config.init, config.width, config.bias_scale, generator)
    drawn["weight_out"] = draw_weight("gaussian", num_outputs, config.width, 1.0, generator)
    drawn["bias_out"] = torch.zeros(num_outputs, dtype=torch.float64)
    return drawn
