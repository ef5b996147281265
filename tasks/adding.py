"""Add the two marked numbers of a long sequence (Hochreiter & Schmidhuber 1997, experiment 4).

In the form of Arjovsky, Shah, Bengio, "Unitary evolution recurrent neural networks", ICML 2016:
numbers from U(0, 1), one mark in each half, their sum to be told at the last step. Hochreiter and
Schmidhuber drew from U(-1, 1), scaled the sum, and let the length vary by a tenth.

Shapes: N members, B sequences, T steps, 2 inputs: number and mark.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tasks import base
from tasks.base import Bounds
from tasks.sequences import DrawnConfig, DrawnSequences, last_outputs

# Hochreiter and Schmidhuber count an error below 0.04 as right where sums fill [0, 1]; ours
# fill [0, 2].
_RIGHT_WITHIN = 0.08


class Adding(DrawnSequences, base.Task):
    """Tell a sum. Loss: squared error at the last step, at chance (always 1) the sum's variance.

    Accuracy is the share of sequences whose error is below 0.08.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(DrawnConfig):
        """How long sequences are; by default the shortest published, in the authors' batches.

        steps: T. The first mark is in the first T // 2 steps, the second in the others.
        """

        steps: Annotated[int, Bounds(ge=2)] = 100

    input_size = 2
    output_size = 1
    chance_loss = 1 / 6

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (B, T, 2) and sums (B, 1, 1)."""
        steps = self.config.steps
        half = steps // 2
        numbers = torch.rand(count, steps, generator=generator, dtype=torch.float64)
        first = torch.randint(half, (count, 1), generator=generator)
        second = torch.randint(half, steps, (count, 1), generator=generator)
        marks = torch.zeros_like(numbers).scatter_(1, torch.cat([first, second], 1), 1.0)
        sums = (numbers * marks).sum(1)
        return torch.stack([numbers, marks], 2), sums[:, None, None]

    def per_example(self, outputs_N: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Squared error, and accuracy (0 or 1), of the last output: (N, B). NaN gives NaN."""
        error = (last_outputs(outputs_N, targets) - targets).flatten(1)
        right = (error.abs() < _RIGHT_WITHIN).to(error.dtype)
        return {"loss": error.square(), "accuracy": right.where(~error.isnan(), torch.nan)}

    def losses(self, outputs_N: Tensor, targets: Tensor) -> Tensor:
        """Squared error of the last output: (N, B)."""
        return (last_outputs(outputs_N, targets) - targets).flatten(1).square()
