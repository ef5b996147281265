"""MLP with a few units before its outputs, whose local fields map what it has learned.

Storm et al. (2024), Fig. 4(a): b = W x^(L) + c are the local fields of the bottleneck, plotted;
the outputs are V g(b) + d. There a trained network gets the bottleneck in place of its output
layer, and bottleneck and outputs are trained with all else held. With `learns: apart` both happen
in one training: the hidden layers learn by an output layer of their own, beside which bottleneck
and outputs learn by the same loss, without a gradient from them to the hidden layers. These learn
as if the bottleneck was not there, and the bottleneck ends on the hidden layers as they end.

Shapes: N members, B examples, I inputs, W width, O outputs, K units of the bottleneck.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tasks.base import Bounds
from tasks.networks.base import Network
from tasks.networks.dropout import DropoutStreams
from tasks.networks.layers import common_settings, draw_weight, linear
from tasks.networks.mlp import MLP
from tasks.networks.workspace import Workspace


class BottleneckMLP(MLP, Network):
    """A population of fully connected networks with a bottleneck before the outputs."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MLP.Config):
        """Settings of an MLP, and:

        bottleneck: its units, K. Their activation is that of the hidden layers.
        learns: "together", one network trained whole; or "apart", see the module.
        """

        bottleneck: Annotated[int, Bounds(ge=1)] = 2
        learns: Literal["together", "apart"] = "together"

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
        config: BottleneckMLP.Config = common_settings(configs)
        num_own = output_size if config.learns == "apart" else 0
        K = config.bottleneck
        super().__init__(
            configs,
            input_size=input_size,
            # The layer above the hidden ones: outputs of their own, if any, then the bottleneck.
            output_size=num_own + K,
            generators=generators,
            dtype=dtype,
            device=device,
        )
        self.output_size, self._num_own, self._is_apart = output_size, num_own, False
        ends = [draw_weight("gaussian", output_size, K, 1.0, each) for each in generators]
        weight = torch.stack(ends).to(dtype=dtype, device=device)
        self.weight_end = nn.Parameter(weight)
        self.bias_end = nn.Parameter(weight.new_zeros(len(configs), output_size))

    def forward(
        self, inputs: Tensor, state: Any = None, *, dropout: DropoutStreams | None = None
    ) -> tuple[Tensor, Any]:
        """Outputs (N, B, O) through the bottleneck; see `Network.forward`."""
        both, after = super().forward(inputs, state, dropout=dropout)
        return both[..., self._num_own :], after

    def gradient(
        self,
        losses: Callable[[Tensor], Tensor],
        inputs: Tensor,
        state: Any = None,
        *,
        dropout: DropoutStreams | None = None,
    ) -> tuple[Tensor, Any, Tensor]:
        """See `Network.gradient`. The losses are those through the bottleneck. With `learns: apart`
        the hidden layers' gradient is that of their own outputs' losses.
        """
        if not self._num_own:
            return super().gradient(losses, inputs, state, dropout=dropout)

        def of_both(both: Tensor) -> Tensor:
            own = losses(both[..., : self._num_own])
            return losses(both[..., self._num_own :]) + (own - own.detach())

        self._is_apart = True
        try:
            return super().gradient(of_both, inputs, state, dropout=dropout)
        finally:
            self._is_apart = False

    def own_outputs(self, inputs: Tensor) -> Tensor:
        """What the hidden layers' own output layer says, (N, B, O); (N, B, 0) without one."""
        return super().forward(inputs)[0][..., : self._num_own]

    @torch.no_grad()
    def local_fields(self, inputs: Tensor) -> Tensor:
        """b of the bottleneck, (N, B, K)."""
        everyone, space = slice(0, self.num_members), Workspace()
        upper, _, _ = super()._run(inputs, None, None, space, everyone, keep=False)
        return upper[..., self._num_own :]

    def _run(
        self,
        inputs: Tensor,
        state: None,
        dropout: DropoutStreams | None,
        workspace: Workspace,
        members: slice,
        *,
        keep: bool,
    ) -> tuple[Tensor, None, Any]:
        upper, _, tape = super()._run(inputs, state, dropout, workspace, members, keep=keep)
        b_NBK = upper[..., self._num_own :]
        ends = linear(self.activation(b_NBK), self.weight_end[members], self.bias_end[members])
        both = torch.cat([upper[..., : self._num_own], ends], dim=-1) if self._num_own else ends
        return both, None, _Tape(tape, b_NBK)

    def _pull(
        self, tape: Any, d_outputs: Tensor, into: Sequence[Tensor], *, wants_inputs: bool
    ) -> Tensor | None:
        d_ends = d_outputs[..., self._num_own :]
        torch.bmm(d_ends.mT, self.activation(tape.b_NBK), out=into[-2])
        torch.sum(d_ends, 1, out=into[-1])
        d_b = torch.bmm(d_ends, self.weight_end[tape.body.members]) * self.derivative(tape.b_NBK)
        d_upper = torch.cat([d_outputs[..., : self._num_own], d_b], dim=-1)
        return super()._pull(tape.body, d_upper, into[:-2], wants_inputs=wants_inputs)

    def _felt(self, g_NOB: Tensor) -> Tensor:
        if not self._is_apart:
            return g_NOB
        return torch.cat(
            [g_NOB[:, : self._num_own], torch.zeros_like(g_NOB[:, self._num_own :])], 1
        )

    def _composed(self, inputs: Tensor, state: Any) -> Tensor:
        upper = super()._composed(inputs, state)
        b = upper[..., self._num_own :]
        ends = linear(self.activation(b), self.weight_end, self.bias_end)
        return torch.cat([upper[..., : self._num_own], ends], dim=-1)


class _Tape(NamedTuple):
    """What the backward pass reads again: that of the layers below, and the local fields."""

    body: Any
    b_NBK: Tensor
