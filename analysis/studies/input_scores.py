"""How much each input of a sequence is held to matter, by local exponents, adjoints and gradients.

Shapes: B sequences, T steps.
"""

import torch
from torch import Tensor

from pipeline.dynamics.ftle import input_ftle
from pipeline.dynamics.local import local_exponents
from tasks.base import Batch, Task
from tasks.networks.base import Network

RANDOM, LOCAL, NEXT, NEXT_FIVE, ADJOINT, GRADIENT = (
    "random",
    "local R",
    "R of the next step",
    "mean R of the next five",
    "input exponent (adjoint)",
    "loss gradient",
)


def scores(
    network: Network, task: Task, batch: Batch, generator: torch.Generator
) -> dict[str, Tensor]:
    """Of a population of one: (B, T) by choice; the larger, the more the step is held to matter.

    Local R are those of the leading direction; the input exponent is log ‖∂h_T/∂x_t‖, the gradient
    that of the loss at the last step, which alone needs the targets.
    """
    local_BT = local_exponents(network, batch.inputs, k=1, generator=generator).exponents[0, ..., 0]
    inputs = batch.inputs.clone().requires_grad_()
    losses = task.losses(network(inputs)[0], batch.targets)[0].view(len(inputs), -1)[:, -1]
    (slope,) = torch.autograd.grad(losses.sum(), inputs)
    return {
        LOCAL: local_BT,
        NEXT: _ahead(local_BT, 1, 2),
        NEXT_FIVE: _ahead(local_BT, 1, 6),
        ADJOINT: input_ftle(network, batch.inputs)[0],
        GRADIENT: torch.linalg.vector_norm(slope, dim=-1),
    }


def _ahead(local_BT: Tensor, first: int, last: int) -> Tensor:
    """Mean over steps t + first … t + last − 1 as far as there are any; −inf at the end."""
    T = local_BT.shape[1]
    columns = [
        local_BT[:, t + first : t + last].mean(1)
        if t + first < T
        else torch.full_like(local_BT[:, 0], -torch.inf)
        for t in range(T)
    ]
    return torch.stack(columns, dim=1)
