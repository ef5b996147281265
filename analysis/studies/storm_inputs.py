"""What a network says of each of many inputs: class, certainty, gradient, and its exponents.

Shapes: N members, B inputs, I pixels, O classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.base import Split, Task


class Certainty(NamedTuple):
    """Of outputs (N, B, O), each (N, B): how sure the network is of the class it gives.

    margin: largest minus second largest probability. largest: that probability. gradient: norm
    of the derivative of its logarithm by the input.
    """

    margin: Tensor
    largest: Tensor
    gradient: Tensor


def examples(task: Task, splits: tuple[Split, ...], most: int | None = None) -> tuple[Tensor, ...]:
    """Inputs (B, I) and classes (B,) of these splits in their order, the first `most` of them."""
    batches = [batch for split in splits for batch in task.batches(split)]
    x = torch.cat([batch.inputs for batch in batches])
    y = torch.cat([batch.targets for batch in batches])
    return x[:most], y[:most]


def certainty(outputs: Callable[[Tensor], Tensor], x: Tensor) -> Certainty:
    """`outputs` gives logits (N, B, O); members are taken together, since they do not mix."""
    num_members = len(outputs(x[:1]))
    gradients = []
    for member in range(num_members):
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            log_largest = outputs(leaf)[member].log_softmax(-1).amax(-1)
            (gradient,) = torch.autograd.grad(log_largest.sum(), leaf)
        gradients.append(gradient.norm(dim=-1))
    with torch.no_grad():
        top = outputs(x).softmax(-1).topk(2, dim=-1).values
    return Certainty(top[..., 0] - top[..., 1], top[..., 0], torch.stack(gradients))
