"""Residual network x ← x + h φ(W_l x + b_l) (He et al. 2016; Benning et al. 2019, section 3).

An explicit Euler step of ẋ = φ(W x + b) in every block. For h → 0 with depth · h fixed the blocks
follow a differential equation; with h = 1 they are the usual residual blocks.
"""

from dataclasses import dataclass
from typing import Any

from tasks.networks.base import Network
from tasks.networks.flow import FlowConfig
from tasks.networks.integrated import Integrated
from tasks.networks.tableau import Method


class ResNet(Integrated, Network):
    """A population of residual networks."""

    @dataclass(frozen=True, kw_only=True)
    class Config(FlowConfig):
        """Settings of a ResNet: see `flow.FlowConfig`."""

    def _method(self, config: Any) -> Method:
        return "euler"
