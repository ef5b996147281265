"""How fast a recurrent network forgets, measured without derivatives: by two copies of it.

Both see the same inputs and differ by a little in their whole state. Once the difference lies along
the direction that fades last, its growth a step is the largest exponent of the true dynamics, whose
state is everything that the next step depends on (Benettin et al. 1976).

Shapes: N members, B sequences, T steps.
"""

import torch
from torch import Tensor

from tasks.networks.base import Network

State = tuple[tuple[Tensor, ...], ...]
"""Of each layer its parts, (N, B, H) each, as recurrent networks carry it on."""

_OFFSET = 1e-6
"""Small beside a state of order 1; large beside rounding in float64."""


def forgetting_rate(
    network: Network, inputs: Tensor, warmup: int, generator: torch.Generator
) -> list[float]:
    """Growth a step of the distance of two copies, in nats, by member; negative: they approach.

    inputs: (B, T, …); growth is counted after `warmup` steps and averaged over sequences. The
    distance is brought back to what it was after every step, lest it meet rounding.
    """
    logs_N = torch.zeros(network.num_members, dtype=torch.float64)
    with torch.no_grad():
        _, state = network(inputs[:, :1])
        other = tuple(tuple(_moved(part, generator) for part in parts) for parts in state)
        other = _rescaled(state, other)
        for step in range(1, inputs.shape[1]):
            _, state = network(inputs[:, step : step + 1], state)
            _, other = network(inputs[:, step : step + 1], other)
            if step >= warmup:
                logs_N += (_distance(state, other) / _OFFSET).log().mean(1)
            other = _rescaled(state, other)
    rates: list[float] = (logs_N / (inputs.shape[1] - max(1, warmup))).tolist()
    return rates


def _moved(part: Tensor, generator: torch.Generator) -> Tensor:
    return part + _OFFSET * torch.randn(part.shape, generator=generator, dtype=part.dtype)


def _distance(state: State, other: State) -> Tensor:
    """(N, B), over all parts of the state."""
    pairs = [
        (a - b).square().sum(-1)
        for parts, others in zip(state, other, strict=True)
        for a, b in zip(parts, others, strict=True)
    ]
    return torch.stack(pairs).sum(0).sqrt()


def _rescaled(state: State, other: State) -> State:
    """`other`, at the distance that the copies start with."""
    factor = (_OFFSET / _distance(state, other)).unsqueeze(-1)
    return tuple(
        tuple(a + factor * (b - a) for a, b in zip(parts, others, strict=True))
        for parts, others in zip(state, other, strict=True)
    )
