"""The orbit of stacked recurrent layers: driven by given inputs, or fed with its own outputs.

Both start at the zero state and run without dropout and gradients. A closed loop takes the given
inputs first; then the map is s' = F(s, V h + b) with h of the last layer, and its derivative holds
the path through readout and input weights beside the recurrent one.

Shapes: N members, B sequences, T steps, I inputs, H units, G rows of W and U (gates times H).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

from tasks.networks.base import StateConvention
from tasks.networks.layers import linear

Step = TypeVar("Step")


class Readout(NamedTuple):
    """V (N, I, H) and b (N, I): the outputs V h + b that a closed loop takes as its inputs."""

    V: Tensor
    b: Tensor | None


class ClosedLoop(NamedTuple):
    """What turns states into inputs, and how many steps follow the given inputs."""

    readout: Readout
    num_steps: int


class Weights(Protocol):
    """Those of one layer that every kind of layer has."""

    @property
    def W(self) -> Tensor:
        """(N, G, I)."""
        ...

    @property
    def U(self) -> Tensor:
        """(N, G, H)."""
        ...

    @property
    def b(self) -> Tensor | None:
        """(N, G), added to W x."""
        ...


def fed_back(first: Weights, readout: Readout, h_last: Tensor) -> Tensor:
    """W x + b (N, B, G) of the first layer where x is what the readout makes of the last h."""
    return linear(linear(h_last, *readout), first.W, first.b)


class RecurrentOrbit(ABC, Generic[Step]):
    """Stacked recurrent layers and the derivative of each of their steps.

    inputs: sequences (B, T, I) or tokens (B, T).
    tangent_rows: of one layer, its h first.
    closed: None for an open loop. Otherwise only the steps after `inputs` have maps.

    num_parts: what the state of a layer consists of: h alone, or h and c.
    output_rows: where the h of the last layer, which the readout sees, stands in the state.

    Only the current state is kept, so that memory does not grow with the number of steps. Raises
    ValueError for inputs of another shape or size, and for tokens out of range.
    """

    num_parts: ClassVar[int]

    def __init__(
        self,
        layers: Sequence[Weights],
        inputs: Tensor,
        *,
        state: StateConvention,
        tangent_rows: int,
        closed: ClosedLoop | None,
    ) -> None:
        _check_inputs(inputs, layers[0].W.shape[-1])
        self._first, self._num_layers = layers[0], len(layers)
        self._inputs, self._closed = inputs, closed
        self.state: StateConvention = state
        self.loop = "open" if closed is None else "closed"
        U = self._first.U
        self.num_members, self._units = U.shape[0], U.shape[-1]
        self.num_sequences = inputs.shape[0]
        self.num_steps = inputs.shape[1] if closed is None else closed.num_steps
        self.tangent_size = tangent_rows * len(layers)
        last = self.tangent_size - tangent_rows
        self.output_rows = slice(last, last + self._units)
        self.dtype, self.device = U.dtype, U.device

    @abstractmethod
    def _advance(self, states: list[tuple[Tensor, ...]], drive_NBG: Tensor) -> Step:
        """The derivative of the next step, given W x + b of the first layer.

        `states` are moved on: h, and c where there is one, of every layer.
        """

    def maps(self) -> Iterator[Step]:
        """The derivative of every step, in order."""
        zeros = self._first.U.new_zeros(self.num_members, self.num_sequences, self._units)
        states: list[tuple[Tensor, ...]] = [(zeros,) * self.num_parts] * self._num_layers
        for x_now in self._inputs.unbind(1):
            step = self._advance(states, self._drive(x_now))
            if self._closed is None:
                yield step
        if self._closed is not None:
            for _ in range(self.num_steps):
                h_last = states[-1][0]
                yield self._advance(states, fed_back(self._first, self._closed.readout, h_last))

    def _drive(self, x_now: Tensor) -> Tensor:
        """W x + b of the first layer, (N, B, G); a token picks a column of W."""
        W, b = self._first.W, self._first.b
        if x_now.is_floating_point():
            return linear(x_now.to(W.dtype).expand(self.num_members, *x_now.shape), W, b)
        drive = W.index_select(2, x_now).mT
        return drive if b is None else drive + b.unsqueeze(1)


def _check_inputs(inputs: Tensor, size: int) -> None:
    if inputs.is_floating_point():
        if inputs.ndim != 3 or inputs.shape[-1] != size:
            raise ValueError(f"inputs must be (B, T, {size}), got {tuple(inputs.shape)}")
        return
    if inputs.ndim != 2:
        raise ValueError(f"tokens must be (B, T), got {tuple(inputs.shape)}")
    if not inputs.numel():
        return
    least, most = (int(x) for x in inputs.aminmax())
    if not 0 <= least <= most < size:
        raise ValueError(f"tokens must be within 0 … {size - 1}, got {least} … {most}")
