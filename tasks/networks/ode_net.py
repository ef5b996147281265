"""Network of ẋ = φ(K_l x + b_l) that learns its step sizes h_l too (Benning et al. 2019, sec. 3.3).

ODENet: every h_l is free, perhaps negative. ODENet + simplex: h_l ≥ 0 with a fixed sum, here by a
softmax, which keeps both exactly and leaves no step at 0; the paper projects instead.

Shapes: N members, L blocks.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tasks.networks.base import Network
from tasks.networks.flow import FlowConfig, View
from tasks.networks.integrated import Integrated
from tasks.networks.tableau import Method


class ODENet(Integrated, Network):
    """A population of networks that learn their time steps."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FlowConfig):
        """Settings besides those of `flow.FlowConfig`, whose `step` is where all steps start.

        steps: "free", or "simplex": positive, with depth · step as their sum.
        method: how the field is integrated.
        """

        steps: Literal["free", "simplex"] = "free"
        method: Method = "euler"

    def _shape(self, config: FlowConfig) -> None:
        super()._shape(config)
        assert isinstance(config, ODENet.Config)
        self._is_simplex = config.steps == "simplex"

    def _method(self, config: Any) -> Method:
        method: Method = config.method
        return method

    def _draw(self, config: Any, scale: float, generator: torch.Generator) -> dict[str, Tensor]:
        # After the weights, which then start as a ResNet's of the same seed.
        drawn = super()._draw(config, scale, generator)
        step = 1 / config.depth if config.step is None else config.step
        start = 0.0 if self._is_simplex else step
        return {**drawn, "steps": torch.full((config.depth,), start, dtype=torch.float64)}

    def step_sizes(self, view: View = lambda tensor: tensor) -> Tensor:
        """h of every block, (N, L)."""
        steps_NL = view(self.get_parameter("steps"))
        if not self._is_simplex:
            return steps_NL
        return self.depth * view(self.step_N).unsqueeze(1) * steps_NL.softmax(1)
