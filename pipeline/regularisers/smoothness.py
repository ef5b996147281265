"""Smoothness over the layers: h Σ_k ‖(θ_{k+1} − θ_k)/h‖² (Benning et al. 2019; Owren 2020).

Layers are taken as the steps of a discretised flow whose parameters change with time; the penalty
bounds how fast. Networks say which of their parameters form such a sequence
(`Network.layer_sequence`).

Shapes: N members, S = layers − 1 differences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.regularisers.base import Regulariser, RegulariserConfig
from tasks.base import Task, UnsuitableError
from tasks.networks.base import LayerSequence, Network


class Smoothness(Regulariser):
    """Penalty on the change of weights and biases from layer to layer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RegulariserConfig):
        """`weight` is the λ of the papers."""

    is_recordable = True

    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError where layers are no sequence of equals."""
        _sequence(network)

    def penalty(self, network: Network, inputs: Tensor) -> Tensor:
        """See `Regulariser.penalty`; inputs make no difference."""
        roles, step = _sequence(network)
        changes = [
            torch.stack(list(layers[1:]), 1) - torch.stack(list(layers[:-1]), 1) for layers in roles
        ]
        squares_NS = torch.stack([change.square().flatten(2).sum(-1) for change in changes]).sum(0)
        return (squares_NS / step).sum(1)


def _sequence(network: Network) -> LayerSequence:
    found = network.layer_sequence()
    if found is None:
        raise UnsuitableError(
            "smoothness needs learned layers of one shape that follow on one another, at least "
            f"two; {type(network).__name__} as set up here has none"
        )
    return found
