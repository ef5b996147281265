"""Network whose blocks are explicit Runge–Kutta steps of ẋ = φ(K_l x + b_l) (Benning et al. 2019).

Methods of order 1 to 4. Each has an adjoint method that goes back through its steps, so that
discretising the problem and finding its optimality conditions may be done in either order (sec. 4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasks.networks.base import Network
from tasks.networks.flow import FlowConfig
from tasks.networks.integrated import Integrated
from tasks.networks.tableau import Method


class RungeKutta(Integrated, Network):
    """A population of Runge–Kutta networks."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FlowConfig):
        """Settings besides those of `flow.FlowConfig`.

        method: how the field is integrated; K_l and b_l stay as they are within a step.
        """

        method: Method = "kutta4"

    def _method(self, config: Any) -> Method:
        method: Method = config.method
        return method

    @torch.no_grad()
    def adjoint_gradient(
        self,
        losses: Callable[[Tensor], Tensor],
        inputs: Tensor,
        adjoint: Sequence[Sequence[float]] | None = None,
    ) -> dict[str, Tensor]:
        """Gradient of the loss by the blocks' weights and biases, by the adjoint method.

        `losses` turns outputs (N, B, O) into one loss a member. Training takes autograd's, which
        is the same; `adjoint` replaces the adjoint tableau (see `RungeKuttaStep.pull_back`).
        """
        blocks, states = self.blocks(), [self._lifted(inputs)]
        for block in blocks:
            states.append(block(states[-1]))
        with torch.enable_grad():
            last = states[-1].clone().requires_grad_()
            (G,) = torch.autograd.grad(losses(self._read(last)).sum(), last)
        found: dict[str, list[Tensor]] = {"weight": [], "bias": []}
        for block, before in zip(reversed(blocks), states[-2::-1], strict=True):
            pulled = block.pull_back(before, G, adjoint)
            G = pulled.state
            found["weight"].insert(0, pulled.weight)
            found["bias"].insert(0, pulled.bias)
        return {name: torch.stack(parts, 1) for name, parts in found.items()}
