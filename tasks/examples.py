"""Independent labelled examples in three splits: what tasks without a time axis share.

Shapes: B examples, I inputs, O outputs.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.base import Batch, Split, UnsuitableError

# Evaluation needs no gradients, so it takes larger bites than training; 1024 examples keep the
# activations of 64 members of width 250 below 70 MB a layer.
_EVALUATION_SIZE = 1024


@dataclass(frozen=True)
class Examples:
    """Inputs (B, I) and targets (B,) or (B, O) of each split, all on one device."""

    inputs: dict[Split, Tensor]
    targets: dict[Split, Tensor]

    def num_updates(self, batch_size: int) -> int:
        """Batches in one epoch; the last may be smaller."""
        return math.ceil(len(self.inputs["train"]) / batch_size)

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """The training split once, in an order drawn from `generator` (on the CPU)."""
        inputs, targets = self.inputs["train"], self.targets["train"]
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for rows in torch.split(order, batch_size):
            yield Batch(inputs[rows], targets[rows])

    def in_order(self, split: Split) -> Iterator[Batch]:
        """A whole split, in the order it is stored in."""
        inputs, targets = self.inputs[split], self.targets[split]
        for start in range(0, len(inputs), _EVALUATION_SIZE):
            rows = slice(start, start + _EVALUATION_SIZE)
            yield Batch(inputs[rows], targets[rows])

    def drawn(self, count: int, generator: torch.Generator) -> Batch:
        """`count` different validation examples. Raises UnsuitableError if there are fewer."""
        inputs, targets = self.inputs["validation"], self.targets["validation"]
        if count > len(inputs):
            raise UnsuitableError(
                f"a probe may take at most {len(inputs)} examples, the size of the validation "
                f"split, got {count}"
            )
        order = torch.randperm(len(inputs), generator=generator, device=generator.device)
        rows = order[:count].to(inputs.device)
        return Batch(inputs[rows], targets[rows])

    def fingerprint(self) -> str:
        """sha256 of every split's inputs and targets, in the precision they are stored in."""
        digest = hashlib.sha256()
        for split in self.inputs:
            for tensor in (self.inputs[split], self.targets[split]):
                digest.update(f"{split} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()
