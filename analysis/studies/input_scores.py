"""How much each input of a sequence is held to matter, by local exponents, adjoints and gradients.

Shapes: B sequences, T steps.
"""

import torch
from torch import Tensor

from pipeline.dynamics.ftle import input_ftle
from pipeline.dynamics.local import local_exponents
from tasks.base import Batch, Split, Task
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
    return {
        LOCAL: local_BT,
        NEXT: _ahead(local_BT, 1, 2),
        NEXT_FIVE: _ahead(local_BT, 1, 6),
        ADJOINT: adjoint_exponents(network, batch),
        GRADIENT: loss_gradients(network, task, batch),
    }


def adjoint_exponents(network: Network, batch: Batch) -> Tensor:
    """log ‖∂h_T/∂x_t‖ (B, T), in nats."""
    return input_ftle(network, batch.inputs)[0]


def loss_gradients(network: Network, task: Task, batch: Batch) -> Tensor:
    """‖∂L/∂x_t‖ (B, T) of the loss at the last step."""
    inputs = batch.inputs.clone().requires_grad_()
    losses = task.losses(network(inputs)[0], batch.targets)[0].view(len(inputs), -1)[:, -1]
    (slope,) = torch.autograd.grad(losses.sum(), inputs)
    size: Tensor = torch.linalg.vector_norm(slope, dim=-1)
    return size


def first_sequences(task: Task, split: Split, count: int | None) -> Batch:
    """The first of a split; None: its whole first batch."""
    batch = next(iter(task.batches(split)))
    return Batch(batch.inputs[:count], batch.targets[:count])


def at_the_end(network: Network, task: Task, batch: Batch) -> tuple[Tensor, Tensor]:
    """Outputs that count (B, S, O) and the loss of each sequence (B,)."""
    with torch.no_grad():
        outputs = network(batch.inputs)[0]
    losses = task.losses(outputs, batch.targets)[0].view(len(batch.inputs), -1)
    return outputs[0, :, -1:], losses[:, -1]


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
