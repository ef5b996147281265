"""What an architecture is: a population of N networks of one shape, trained as one.

Every parameter leads with the member axis N. A single network is a population of one. Members
never mix: no operation reduces over N, so that what happens to one leaves the others' bits alone.

Shapes: N members, B sequences or examples, T steps, I inputs, O outputs, D state, K tangents,
P parameters of one member.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tasks.base import Config, InputKind
from tasks.networks.dropout import DropoutStreams

StateConvention = Literal["full", "hidden"]


class TangentMap(Protocol):
    """The derivative J of one application of the map, for every member and sequence."""

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q, without forming J where that is dear."""
        ...

    def dense(self) -> Tensor:
        """J itself, (N, B, D', D)."""
        ...


class Orbit(Protocol):
    """A start state and the maps applied along the way, whose tangents can be carried.

    `maps()` may be called once; it streams, so that memory does not grow with the steps.
    """

    num_members: int
    num_sequences: int
    num_steps: int
    tangent_size: int
    dtype: torch.dtype
    device: torch.device

    def maps(self) -> Iterator[TangentMap]:
        """The tangent maps in the order they are applied."""
        ...


class LayerSequence(NamedTuple):
    """Parameters that change from layer to layer as a function of depth (Owren 2020).

    roles: for each role (weights, biases, …) its tensors (N, …) from the first layer to the last,
        at least two of one shape. They are part of the graph: parameters, or views of them.
    step: h between neighbouring layers: a number, or (N, 1) or (N, layers − 1) where steps
        differ. 1 where the network knows no time.
    """

    roles: Sequence[Sequence[Tensor]]
    step: float | Tensor = 1.0


class Network(nn.Module, ABC):
    """Base of all architectures.

    Args:
        configs: one Config a member; they agree in every field not marked PerMember.
        input_size: I, or the alphabet's size for tokens (which enter one-hot).
        output_size: O.
        generators: one CPU generator a member; it alone decides that member's start weights.
            Weights are drawn in float64 and then cast, so both precisions start alike.

    Parameters and registered buffers all lead with the member axis; `select` relies on it.

    Raises UnsuitableError where `input_kind` is not among `accepts`.
    """

    Config: ClassVar[type[Config]]
    accepts: ClassVar[frozenset[InputKind]]
    is_recurrent: ClassVar[bool]

    num_members: int
    input_size: int
    output_size: int

    @abstractmethod
    def __init__(
        self,
        configs: Sequence[Any],
        *,
        input_size: int,
        output_size: int,
        generators: Sequence[torch.Generator],
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None: ...

    @abstractmethod
    def forward(
        self,
        inputs: Tensor,
        state: Any = None,
        *,
        dropout: DropoutStreams | None = None,
    ) -> tuple[Tensor, Any]:
        """Outputs (N, B, T, O) or (N, B, O), and the state to carry into the next batch.

        `inputs` have no member axis: all members see the same. `dropout` holds one stream of
        random bits a member in training; None switches dropout off (evaluation and measurement).
        The returned state is detached from the graph; it is None where nothing is carried.
        """

    @abstractmethod
    def orbit(
        self,
        inputs: Tensor,
        *,
        state: StateConvention = "full",
        dtype: torch.dtype = torch.float64,
    ) -> Orbit:
        """The maps this network applies to `inputs`, dropout off, without gradients.

        Recurrent networks: one map a time step, from the zero state. Feed-forward networks:
        one map a hidden layer, the output layer excluded.
        """

    def layer_sequence(self) -> LayerSequence | None:
        """The parameters that a penalty on their change over the layers looks at.

        None, which is the default, where layers are no sequence of equals.
        """
        return None

    def differentiable_orbit(self, inputs: Tensor) -> Orbit | None:
        """`orbit` (of the full state) in the precision and in the graph of the parameters.

        Its maps' products J Q can be differentiated by the parameters, and by nothing in-place.
        None, which is the default, where nobody has written it.
        """
        return None

    def gradient(
        self,
        losses: Callable[[Tensor], Tensor],
        inputs: Tensor,
        state: Any = None,
        *,
        dropout: DropoutStreams | None = None,
    ) -> tuple[Tensor, Any, Tensor]:
        """Losses (N,), the state to carry on, and the gradient (N, P) of each member's loss.

        `losses` turns outputs into one loss a member. The gradient is ordered as `parameters()`
        and may lie in memory that the next call writes to.
        """
        outputs, after = self(inputs, state, dropout=dropout)
        loss_N = losses(outputs)
        parts = torch.autograd.grad(loss_N.sum(), list(self.parameters()))
        return loss_N.detach(), after, torch.cat([part.flatten(1) for part in parts], dim=1)

    def pack(self) -> Tensor:
        """All weights as one (N, P) tensor, of which the parameters become views.

        An optimiser then moves a population in a handful of operations, whatever its depth.
        """
        parameters = list(self.parameters())
        with torch.no_grad():
            packed_NP = torch.cat([p.flatten(1) for p in parameters], dim=1)
        parts = torch.split(packed_NP, [p[0].numel() for p in parameters], dim=1)
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.data = part.view(parameter.shape)
        return packed_NP

    def select(self, members: Sequence[int]) -> None:
        """Keeps these members, in this order. `pack` again to have their weights as one."""
        rows = list(members)
        for parameter in self.parameters():
            parameter.data = parameter.data[rows]
            parameter.grad = None
        for module in self.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer[rows])
        self.num_members = len(rows)
