"""Vanilla tanh networks that white noise drives, one input to a unit: h' = tanh(V h + σ_x ξ).

The setting of mean-field theory and of Fig. 1 of Vogt et al. (2022), who write x + V h with
standard normal x. White input enters the theory as a random bias of variance σ_x² does.

Shapes: N members, B sequences, T steps, H units.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.networks.layers import Initialiser
from tasks.networks.rnn import RNN


def driven_networks(
    units: int, gains: Sequence[float], init: Initialiser, generators: Sequence[torch.Generator]
) -> RNN:
    """A population with V = gain × the matrix that each member's generator draws, and no bias.

    `gaussian` draws N(0, 1/H), `orthogonal` from all rotations.
    """
    configs = [RNN.Config(units=units, bias=False, init=init, init_scale=gain) for gain in gains]
    network = RNN(
        configs, input_size=units, output_size=1, generators=generators, dtype=torch.float64
    )
    weight_in: Tensor = network.get_parameter("weight_in_0")
    with torch.no_grad():
        weight_in.copy_(torch.eye(units, dtype=torch.float64).expand_as(weight_in))
    return network.eval().requires_grad_(False)


def white_noise(
    sequences: int, steps: int, units: int, strength: float, generator: torch.Generator
) -> Tensor:
    """(B, T, H), of standard deviation `strength`."""
    shape = (sequences, steps, units)
    return strength * torch.randn(shape, generator=generator, dtype=torch.float64)
