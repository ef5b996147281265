"""Cross-entropy of classes for all members at once, in nats.

PyTorch normalises along the last axis example by example, sixty times slower for a dozen classes
than along an axis with examples behind it; so classes go before examples here, which costs nothing
where networks have computed them in that order.

Shapes: N members, O classes.
"""

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(outputs_N: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(outputs)[target], (N, …), of outputs (N, …, O) with classes (…)."""
    classes_first = outputs_N.movedim(-1, 1)
    # Examples in the order in which they lie in memory, so that nothing is copied to sort them.
    order = sorted(range(targets.dim()), key=lambda axis: -classes_first.stride(axis + 2))
    loss_N = functional.cross_entropy(
        classes_first.permute(0, 1, *(axis + 2 for axis in order)),
        targets.permute(order).expand(len(outputs_N), *(targets.shape[axis] for axis in order)),
        reduction="none",
    )
    return loss_N.permute(0, *(order.index(axis) + 1 for axis in range(targets.dim())))


def accuracy(outputs_N: Tensor, targets: Tensor, loss_N: Tensor) -> Tensor:
    """1 where the largest output is the target's and 0 elsewhere; NaN where the loss is NaN."""
    right_N = (outputs_N.argmax(-1) == targets).to(loss_N.dtype)
    return right_N.where(~loss_N.isnan(), torch.nan)
