"""Handwritten digits read as sequences, pixel by pixel or row by row (Le, Jaitly, Hinton 2015).

"A simple way to initialize recurrent networks of rectified linear units", arXiv:1504.00941: the
image passes from its top left corner to its bottom right one, and the class is asked at the end.
Images, splits and scaling are those of the task `digits`.

Shapes: B images, T steps, I inputs: height × width and 1 by pixel, height and width by row.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tasks import base
from tasks.base import Batch, Split
from tasks.digits import Digits
from tasks.sequences import ClassesAtTheEnd, Sequences


class SequentialDigits(ClassesAtTheEnd, base.Task):
    """Tell ten digits apart at the last step. Loss: cross-entropy in nats."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Digits.Config):
        """Settings of `digits`, and how an image is read.

        order: pixel: one pixel a step, rows one after the other (64 steps, MNIST 784). row: a row
            of pixels a step (8 steps, MNIST 28).
        """

        order: Literal["pixel", "row"] = "pixel"

    input_kind = "sequence"
    score_name = "accuracy"
    higher_is_better = True
    chance_loss = math.log(10)
    output_size = 10

    def __init__(
        self,
        config: Config,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """Loads the images; `seed` decides the order of training batches, not the splits."""
        self._digits = Digits(config, seed=seed, dtype=dtype, device=device)
        # Both sets have square images.
        self.input_size = 1 if config.order == "pixel" else math.isqrt(self._digits.input_size)
        self.num_updates = self._digits.num_updates
        content = f"{self._digits.fingerprint} by {config.order}"
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """All training images, shuffled anew each epoch; the last batch may be smaller."""
        for batch in self._digits.training_batches(epoch):
            read = self._read(batch.inputs, batch.targets)
            yield Batch(read.inputs, read.targets)

    def batches(self, split: Split) -> Iterator[Batch]:
        """A whole split in the order of its files."""
        return self._split(split).in_order()

    def probe_inputs(self, count: int, steps: int | None, generator: torch.Generator) -> Batch:
        """`count` runs of `steps` steps through validation images; see `Sequences.probe`."""
        return self._split("validation").probe(count, steps, generator)

    def _split(self, split: Split) -> Sequences:
        examples = self._digits.examples
        return self._read(examples.inputs[split], examples.targets[split])

    def _read(self, pixels: Tensor, labels: Tensor) -> Sequences:
        return Sequences(pixels.view(len(pixels), -1, self.input_size), labels.unsqueeze(1))
