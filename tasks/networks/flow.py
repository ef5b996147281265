"""What networks share whose layers are numerical steps of a differential equation ẋ = f_k(x).

An input is lifted into the state x, `depth` blocks advance it, a linear readout gives outputs.
A block is the step of one layer: ResNets, Runge–Kutta networks, gradient flows and Hamiltonian
networks differ in their blocks alone. Weights of all blocks lie in one tensor a name, (N, L, …).

Shapes: N members, B examples, I inputs, O outputs, D state (`width`), L blocks, F activations of
a block that dropout acts on, K tangents. Examples come last, (N, D, B), but in what measures.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from tasks.base import Bounds, InputKind, PerMember, UnsuitableError
from tasks.base import Config as BaseConfig
from tasks.networks.activations import Activation
from tasks.networks.base import LayerSequence, StateConvention, TangentMap
from tasks.networks.dropout import DropoutRates, DropoutStreams
from tasks.networks.layers import (
    Initialiser,
    common_settings,
    draw_weight,
    initial_scales,
    matmul_tangents,
    register_members,
)

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class FlowConfig(BaseConfig):
    """Settings that every network of this kind has.

    width: components of the state ("channels").
    depth: number of blocks.
    step: h, the length of a block's step; None: 1/depth, so that all blocks take time 1.
    activation: φ or σ of the field.
    lift: how an input becomes a state: by a linear layer, or as it is with zeros after it ("pad";
        nothing is added where the width is that of the input).
    readout: a linear layer, or none: the first components of the state are the outputs.
    init: how the blocks' matrices are drawn. Lift and readout always start as N(0, 1/fan-in)
        with bias 0.
    init_scale: σ of N(0, σ²/fan-in) for gaussian; p of uniform(−p, p); the gain of orthogonal and
        glorot. None: 1/√width for uniform, 1 for the others.
    bias_scale: standard deviation of the blocks' biases, which are normal.
    dropout: share of the field's activations that is dropped in training. One draw a block and
        example: all stages of a step see the same field.
    """

    width: Annotated[int, Bounds(ge=1)] = 32
    depth: Annotated[int, Bounds(ge=1)] = 8
    step: Annotated[float | None, Bounds(gt=0), PerMember()] = None
    activation: Activation = "tanh"
    lift: Literal["linear", "pad"] = "linear"
    readout: Literal["linear", "none"] = "linear"
    init: Initialiser = "gaussian"
    init_scale: Annotated[float | None, Bounds(gt=0), PerMember()] = None
    bias_scale: Annotated[float, Bounds(ge=0), PerMember()] = 0.0
    dropout: Annotated[float, Bounds(ge=0, lt=1), PerMember()] = 0.0


class BlockTangent(TangentMap, Protocol):
    """The derivative of a block, forth and back."""

    def transposed(self, P_NBDK: Tensor) -> Tensor:
        """Jᵀ P."""
        ...


class Block(Protocol):
    """One numerical step of one layer's field, for all members."""

    @property
    def step_N(self) -> Tensor:
        """h."""
        ...

    def __call__(self, x_NDB: Tensor, mask_NFB: Tensor | None = None) -> Tensor:
        """The state after the step. A mask multiplies the field's activations."""
        ...

    def tangent(self, x_NDB: Tensor) -> BlockTangent:
        """The derivative of the step."""
        ...

    def field(self, x_NDB: Tensor) -> Tensor:
        """Df of the field at these states, (N, B, D, D)."""
        ...


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


class Flow(nn.Module):
    """A population of networks made of blocks; a mixin that goes before `Network`.

    Attributes set by subclasses:
        block_names: the parameters of the blocks, each (N, L, …).
        num_activations: F.
    """

    accepts: ClassVar[frozenset[InputKind]] = frozenset({"vector"})
    is_recurrent: ClassVar[bool] = False
    block_names: ClassVar[tuple[str, ...]]
    num_members: int
    input_size: int
    output_size: int
    num_activations: int
    step_N: Tensor

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
        config: FlowConfig = common_settings(configs)
        self.num_members = len(configs)
        self.input_size, self.output_size = input_size, output_size
        self.width, self.depth = config.width, config.depth
        self.has_lift, self.has_readout = config.lift == "linear", config.readout == "linear"
        self._check_sizes()
        self._shape(config)
        scales = initial_scales(configs, config.width)
        drawn = [
            self._draw(member, scale, generator)
            for member, scale, generator in zip(configs, scales, generators, strict=True)
        ]
        register_members(self, drawn, dtype, device)
        steps = [1 / c.depth if c.step is None else c.step for c in configs]
        step_N = torch.tensor(steps, dtype=torch.float64).to(device, dtype)
        self.register_buffer("step_N", step_N, persistent=False)
        self.dropout = DropoutRates([c.dropout for c in configs], dtype, device)

    @abstractmethod
    def _shape(self, config: Any) -> None:
        """Takes over what shapes the blocks and sets `num_activations`. Raises UnsuitableError."""

    @abstractmethod
    def _draw_block(
        self, config: Any, scale: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Start weights of one block of one member, float64, by the names in `block_names`."""

    @abstractmethod
    def blocks(self, view: View = _as_is) -> Sequence[Block]:
        """All blocks in order, made of what `view` makes of parameters and buffers (N, …)."""

    def forward(
        self, inputs: Tensor, state: Any = None, *, dropout: DropoutStreams | None = None
    ) -> tuple[Tensor, Any]:
        """See `Network.forward`."""
        x_NDB = self._lifted(inputs)
        masks = self._masks(dropout, inputs.shape[0])
        for block, mask_NFB in zip(self.blocks(), masks, strict=True):
            x_NDB = block(x_NDB, mask_NFB)
        if dropout is not None:
            dropout.advance()
        return self._read(x_NDB), None

    def orbit(
        self,
        inputs: Tensor,
        *,
        state: StateConvention = "full",
        dtype: torch.dtype = torch.float64,
    ) -> "FlowOrbit":
        """One map a block; that of the first block includes the lift, if it is a layer or pads.

        `state` makes no difference here.
        """

        def view(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype)

        return FlowOrbit(self, self.blocks(view), inputs.to(dtype), view)

    def layer_sequence(self) -> LayerSequence | None:
        """See `Network.layer_sequence`: weights and biases of the blocks, on the grid of `step`."""
        if self.depth < 2:
            return None
        roles = [self.get_parameter(name).unbind(1) for name in self.block_names]
        return LayerSequence(roles, self.step_N.unsqueeze(1))

    def differentiable_orbit(self, inputs: Tensor) -> "FlowOrbit":
        """See `Network.differentiable_orbit`."""
        return FlowOrbit(self, self.blocks(), inputs, _as_is)

    def _check_sizes(self) -> None:
        name = type(self).__name__
        if not self.has_lift and self.width < self.input_size:
            raise UnsuitableError(
                f"{name}: lift 'pad' needs a width of at least the {self.input_size} inputs, got "
                f"width {self.width}; lift 'linear' takes any"
            )
        if not self.has_readout and self.width < self.output_size:
            raise UnsuitableError(
                f"{name}: readout 'none' needs a width of at least the {self.output_size} outputs, "
                f"got width {self.width}; readout 'linear' takes any"
            )

    def _draw(self, config: Any, scale: float, generator: torch.Generator) -> dict[str, Tensor]:
        """Start weights of one member in the order in which they are drawn: blocks come first."""
        blocks = [self._draw_block(config, scale, generator) for _ in range(config.depth)]
        drawn = {name: torch.stack([block[name] for block in blocks]) for name in self.block_names}
        ends = {"in": (self.width, self.input_size), "out": (self.output_size, self.width)}
        kept = {"in": self.has_lift, "out": self.has_readout}
        for name, (rows, columns) in ends.items():
            if kept[name]:
                drawn[f"weight_{name}"] = draw_weight("gaussian", rows, columns, 1.0, generator)
                drawn[f"bias_{name}"] = torch.zeros(rows, dtype=torch.float64)
        return drawn

    def _lifted(self, inputs: Tensor, view: View = _as_is) -> Tensor:
        """First states (N, D, B) of inputs (B, I)."""
        step_N = view(self.step_N)
        x_NIB = inputs.to(step_N.dtype).T.expand(len(step_N), -1, -1)
        if self.has_lift:
            weight, bias = (view(self.get_parameter(f"{p}_in")) for p in ("weight", "bias"))
            return torch.baddbmm(bias.unsqueeze(-1), weight, x_NIB)
        missing = self.width - self.input_size
        return torch.cat([x_NIB, x_NIB.new_zeros(len(x_NIB), missing, x_NIB.shape[-1])], 1)

    def _lift_matrix(self, view: View) -> Tensor | None:
        """The derivative of the lift, (N, D, I); None where it is the identity."""
        if self.has_lift:
            return view(self.get_parameter("weight_in"))
        if self.width == self.input_size:
            return None
        step_N = view(self.step_N)
        columns = torch.eye(self.width, self.input_size, dtype=step_N.dtype, device=step_N.device)
        return columns.expand(len(step_N), -1, -1)

    def _read(self, x_NDB: Tensor, view: View = _as_is) -> Tensor:
        """Outputs (N, B, O) of last states."""
        if not self.has_readout:
            return x_NDB[:, : self.output_size].mT
        weight, bias = (view(self.get_parameter(f"{p}_out")) for p in ("weight", "bias"))
        return torch.baddbmm(bias.unsqueeze(-1), weight, x_NDB).mT

    def _masks(self, dropout: DropoutStreams | None, num_examples: int) -> Sequence[Tensor | None]:
        """For every block what its activations (N, F, B) are multiplied with; None for nothing."""
        if dropout is None or not self.dropout.is_on:
            return [None] * self.depth
        F, B = self.num_activations, num_examples
        drawn = dropout.draw(self.depth * F * B).view(-1, self.depth, F, B)
        kept = drawn >= self.dropout.keep_from_N11.unsqueeze(1)
        return (kept * self.dropout.scale_N11.unsqueeze(1)).unbind(1)


class FlowOrbit:
    """The blocks that a vector passes through, without dropout and gradients."""

    def __init__(self, network: Flow, blocks: Sequence[Block], inputs: Tensor, view: View) -> None:
        self._blocks = blocks
        self._states = network._lifted(inputs, view)
        self._lift = network._lift_matrix(view)
        self.num_members, self.num_sequences = self._states.shape[0], inputs.shape[0]
        self.num_steps, self.tangent_size = network.depth, network.input_size
        self.dtype, self.device = self._states.dtype, self._states.device

    def maps(self) -> Iterator[BlockTangent]:
        """The derivative of every block, in order."""
        lift = self._lift
        for block, x_NDB in self.steps():
            J = block.tangent(x_NDB)
            yield J if lift is None else AfterLift(J, lift)
            lift = None

    def steps(self) -> Iterator[tuple[Block, Tensor]]:
        """Every block with the states (N, D, B) that it starts from, in order."""
        x_NDB = self._states
        for block in self._blocks:
            yield block, x_NDB
            x_NDB = block(x_NDB)

    def states(self) -> Iterator[Tensor]:
        """The lifted inputs and the state after every block, each (N, B, D)."""
        x_NDB = self._states
        yield x_NDB.mT
        for block in self._blocks:
            x_NDB = block(x_NDB)
            yield x_NDB.mT

    def active_directions(self) -> Tensor:
        """Orthonormal basis (N, I, r) of the inputs' directions that the lift sees, r ≤ D."""
        num_inputs = self.tangent_size
        if self._lift is None or self._lift.shape[-2] >= num_inputs:
            identity = torch.eye(num_inputs, dtype=self.dtype, device=self.device)
            return identity.expand(self.num_members, -1, -1)
        basis: Tensor = torch.linalg.qr(self._lift.mT).Q
        return basis


@dataclass(frozen=True)
class AfterLift(BlockTangent):
    """The derivative J L of a block after the lift."""

    J: BlockTangent
    L_NDI: Tensor

    def __call__(self, Q_NBIK: Tensor) -> Tensor:
        """J L Q."""
        return self.J(matmul_tangents(self.L_NDI, Q_NBIK))

    def transposed(self, P_NBDK: Tensor) -> Tensor:
        """Lᵀ Jᵀ P."""
        return matmul_tangents(self.L_NDI.mT, self.J.transposed(P_NBDK))

    def dense(self) -> Tensor:
        """J L, (N, B, D, I)."""
        return self.J.dense() @ self.L_NDI.unsqueeze(1)


def identity_like(slope_NBF: Tensor, size: int) -> Tensor:
    """(N, B, D, D), as a view of one matrix."""
    eye = torch.eye(size, dtype=slope_NBF.dtype, device=slope_NBF.device)
    return eye.expand(*slope_NBF.shape[:2], size, size)


def draw_normal_bias(size: int, scale: float, generator: torch.Generator) -> Tensor:
    """One bias (size,), N(0, scale²), float64."""
    return scale * torch.randn(size, dtype=torch.float64, generator=generator)
