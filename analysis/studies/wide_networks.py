"""Wide random networks as mean-field theory sees them, and what many of them say together.

Networks are populations of one MLP with `init: gaussian`. Signals are followed as pre-activations
h^l = W^l φ(h^{l−1}) + b^l, the letters of Poole et al. (2016).

Shapes: L layers, B signals, W width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import pandas as pd
import torch
from torch import Tensor

from analysis.studies.lab import Lab
from analysis.studies.over_seeds import mean
from tasks.base import Bounds
from tasks.networks.layers import linear
from tasks.networks.mlp import MLP

Scale = Annotated[float, Bounds(gt=0)]
"""A σ_w of a conf."""

Bias = Annotated[float, Bounds(ge=0)]
"""A σ_b of a conf."""

Count = Annotated[int, Bounds(ge=1)]
"""A number of things of which there must be one."""


def random_network(
    generator: torch.Generator,
    *,
    width: int,
    depth: int,
    sigma_w: float,
    sigma_b: float,
    num_inputs: int | None = None,
    num_outputs: int = 1,
    dtype: torch.dtype = torch.float64,
) -> MLP:
    """One tanh network at the start of training; as many inputs as units if not told."""
    config = MLP.Config(
        width=width, depth=depth, init="gaussian", init_scale=sigma_w, bias_scale=sigma_b
    )
    network = MLP(
        [config],
        input_size=num_inputs or width,
        output_size=num_outputs,
        generators=[generator],
        dtype=dtype,
    )
    return network.requires_grad_(False)


def weights_of(network: MLP, layer: int) -> tuple[Tensor, Tensor]:
    """Weight (1, W, I) and bias (1, W) of a hidden layer, 0 … depth − 1."""
    return network.get_parameter(f"weight_{layer}"), network.get_parameter(f"bias_{layer}")


def preactivations(network: MLP, inputs_BI: Tensor, first: int = 0) -> Tensor:
    """h of the hidden layers from the `first`, (L, B, W), of the inputs to that layer."""
    x, found = inputs_BI.unsqueeze(0), []
    for layer in range(first, network.depth):
        found.append(linear(x, *weights_of(network, layer)))
        x = network.activation(found[-1])
    return torch.cat(found)


def onwards(network: MLP, h_BW: Tensor, first: int = 0) -> Tensor:
    """The pre-activations `h_BW` and all that follow, (1 + L, B, W)."""
    after = preactivations(network, network.activation(h_BW), first)
    return torch.cat([h_BW.unsqueeze(0), after])


def plane_of(generator: torch.Generator, width: int) -> Tensor:
    """Two orthonormal rows, (2, W), of a random direction."""
    normal = torch.randn(width, 2, dtype=torch.float64, generator=generator)
    basis: Tensor = torch.linalg.qr(normal).Q
    return basis.T.contiguous()


def angles(num: int) -> Tensor:
    """θ evenly around the circle, (num,), the last one before 2π."""
    return torch.arange(num, dtype=torch.float64) * (2 * math.pi / num)


def each_network(
    lab: Lab,
    scales: Sequence[float],
    layers: Callable[[float, int, torch.Generator], pd.DataFrame],
    purpose: str = "network",
) -> pd.DataFrame:
    """The tables of `layers(sigma_w, number, generator)`, for every σ_w and network, as one."""
    return pd.concat(
        [
            layers(sigma_w, number, lab.generator(purpose, sigma_w, number))
            for sigma_w in scales
            for number in range(lab.seeds)
        ]
    )


def over_networks(
    table: pd.DataFrame, by: Sequence[str], value: str, keep: Sequence[str] = ()
) -> pd.DataFrame:
    """`mean`, `low`, `high` and `networks` of a column, for each combination of `by`.

    `keep` names columns that are the same for all networks of a combination.
    """
    rows: list[dict[str, Any]] = []
    for key, part in table.groupby(list(by), sort=False):
        found = mean(part.groupby("network", sort=False)[value].mean())
        first = {name: part[name].iloc[0] for name in keep}
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                **first,
                "mean": found.value,
                "low": found.low,
                "high": found.high,
                "networks": part["network"].nunique(),
            }
        )
    return pd.DataFrame(rows)
