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
from tasks.networks.base import Network, StateConvention
from tasks.networks.layers import (
    Initialiser,
    common_settings,
    draw_bias,
    draw_weight,
    initial_scales,
    linear,
    matmul_tangents,
    sech2,
)
from tasks.networks.layers import dropout as drop

Activation = Literal["tanh", "relu", "gelu", "silu", "sigmoid", "identity"]


def _gelu_derivative(a: Tensor) -> Tensor:
    density = torch.exp(-0.5 * a.square()) * 0.3989422804014327  # 1/√(2π)
    distribution: Tensor = torch.special.ndtr(a)
    return distribution + a * density


def _silu_derivative(a: Tensor) -> Tensor:
    return torch.sigmoid(a) * (1 + a * torch.sigmoid(-a))


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "tanh": (torch.tanh, sech2),
    "relu": (torch.relu, lambda a: (a > 0).to(a.dtype)),
    "gelu": (nn.functional.gelu, _gelu_derivative),
    "silu": (nn.functional.silu, _silu_derivative),
    "sigmoid": (torch.sigmoid, lambda a: torch.sigmoid(a) * torch.sigmoid(-a)),
    "identity": (lambda a: a, torch.ones_like),
}
"""φ and φ′ by name, both of the argument a."""


class MLP(Network):
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
        """

        width: Annotated[int, Bounds(ge=1)] = 32
        depth: Annotated[int, Bounds(ge=1)] = 2
        activation: Activation = "tanh"
        init: Initialiser = "gaussian"
        init_scale: Annotated[float | None, Bounds(gt=0), PerMember()] = None
        bias_scale: Annotated[float, Bounds(ge=0), PerMember()] = 0.0
        dropout: Annotated[float, Bounds(ge=0, lt=1), PerMember()] = 0.0

    accepts = frozenset({"vector"})
    is_recurrent = False
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
        config: MLP.Config = common_settings(configs)
        self.num_members = len(configs)
        self.input_size, self.output_size = input_size, output_size
        self.width, self.depth = config.width, config.depth
        self.activation, self.derivative = ACTIVATIONS[config.activation]

        drawn: dict[str, list[Tensor]] = {}
        for member, scale, generator in zip(
            configs, initial_scales(configs, config.width), generators, strict=True
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
        state: None = None,
        *,
        dropout: Sequence[torch.Generator] | None = None,
    ) -> tuple[Tensor, None]:
        """Outputs (N, B, O) of vectors (B, I); nothing is carried to the next batch."""
        rates = self.dropout_rates.tolist()
        weight: Tensor = self.get_parameter("weight_0")
        x = inputs.to(weight.dtype).expand(self.num_members, *inputs.shape)
        for layer in range(self.depth):
            x = self.activation(linear(x, *self._layer(layer)))
            if dropout is not None:
                x = drop(x, rates, dropout)
        return linear(x, self.get_parameter("weight_out"), self.get_parameter("bias_out")), None

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

    def _layer(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.get_parameter(f"weight_{layer}"), self.get_parameter(f"bias_{layer}")


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
