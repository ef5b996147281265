"""FTLE suppression: no input may be stretched much by the first layers (Kuehn & Wöhrer 2026).

The penalty is the mean over inputs of (λ^(l)(x) − threshold)₊², λ^(l)(x) = (1/l) log σ_max of the
first l layers' derivative, with l in the early part of the network: less dear than all of it, and
what is stretched early is stretched by all that follows.

With the direction v that is stretched most held fixed, d log‖J v‖ = d log σ_max. So v is found
exactly and outside the graph, and only J v is differentiated.

Shapes: N members, B inputs, I input size.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from pipeline.dynamics.ftle import ftle_field
from pipeline.regularisers.base import Regulariser, RegulariserConfig
from tasks.base import Bounds, Task, UnsuitableError, generator_for
from tasks.networks.base import Network, Orbit


class FtleSuppression(Regulariser):
    """Hinge on the largest finite-time exponent of the early layers."""

    @dataclass(frozen=True, kw_only=True)
    class Config(RegulariserConfig):
        """Which exponents are looked at.

        threshold: in nats per layer, up to which an exponent costs nothing.
        layers: l, from the input on; None: half of them, rounded up.
        inputs: of every batch, its first so many.
        """

        threshold: float = 0.05
        layers: Annotated[int | None, Bounds(ge=1)] = None
        inputs: Annotated[int, Bounds(ge=1)] = 16

    config: Config

    def check(self, network: Network, task: Task) -> None:
        """Raises UnsuitableError for recurrent networks and for more layers than there are."""
        if network.is_recurrent:
            raise UnsuitableError(
                f"ftle_suppression needs a feed-forward network, got {type(network).__name__}; "
                "recurrent networks have flossing"
            )
        probe = task.probe_inputs(1, None, generator_for(0, "ftle_suppression"))
        found = _orbit(network, probe.inputs).num_steps
        if self.config.layers is not None and self.config.layers > found:
            raise UnsuitableError(
                f"ftle_suppression.layers must be at most {found}, the network's hidden layers, "
                f"got {self.config.layers}"
            )

    def penalty(self, network: Network, inputs: Tensor) -> Tensor:
        """See `Regulariser.penalty`. Inputs of which nothing is left (J = 0) cost nothing."""
        x_BI = inputs[: self.config.inputs]
        orbit = _orbit(network, x_BI)
        count = self.config.layers or -(-orbit.num_steps // 2)
        with torch.no_grad():
            exponents_NB, v_NBI = ftle_field(network, x_BI, layer=count)
        assert v_NBI is not None
        is_above_NB = exponents_NB > self.config.threshold
        u = v_NBI.where(is_above_NB.unsqueeze(-1), 0).to(orbit.dtype).unsqueeze(-1)
        log_growth_NB: Tensor | float = 0.0
        for _, J in zip(range(count), orbit.maps(), strict=False):
            u = J(u)
            size_NB = torch.linalg.vector_norm(u.squeeze(-1), dim=-1)
            # Where nothing is to be differentiated there may be nothing left to divide by.
            size_NB = size_NB.where(is_above_NB, 1.0)
            log_growth_NB = log_growth_NB + size_NB.log()
            u = u / size_NB[..., None, None]
        excess_NB = (log_growth_NB / count - self.config.threshold) * is_above_NB
        return excess_NB.clamp(min=0).square().mean(1)


def _orbit(network: Network, inputs: Tensor) -> Orbit:
    found = network.differentiable_orbit(inputs)
    if found is None:
        raise UnsuitableError(
            f"ftle_suppression needs a network whose layers' derivatives can be differentiated "
            f"once more; {type(network).__name__} has no `differentiable_orbit`"
        )
    return found
