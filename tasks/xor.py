"""Delayed XOR: tell whether the bits of d and of 2 d steps ago differ (Engelken 2023).

The task of "Gradient flossing: improving gradient descent through dynamic control of Jacobians",
NeurIPS 2023, a memory whose contents must also be combined. Random bits enter as -1 and +1; the
published code feeds 0 and 1 and takes a squared error, we ask for a class.

Shapes: B sequences, T steps, 1 input, 2 outputs.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tasks import base
from tasks.base import Bounds, UnsuitableError
from tasks.sequences import DrawnConfig, DrawnSequences


class Xor(DrawnSequences, base.Task):
    """Tell at every step from 2 d on whether two past bits differ. Loss: cross-entropy in nats."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DrawnConfig):
        """Defaults are those of the published code.

        delay: d, from each bit to the next and from the later one to the answer.
        steps: T, more than 2 d; the last T - 2 d steps count.
        """

        delay: Annotated[int, Bounds(ge=1)] = 10
        steps: Annotated[int, Bounds(ge=3)] = 300
        batch_size: Annotated[int, Bounds(ge=1)] = 16

    input_size = 1
    output_size = 2
    chance_loss = math.log(2)

    def __init__(
        self,
        config: Config,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """Draws the splits from `seed`. Raises UnsuitableError where no step has an answer."""
        if config.steps <= 2 * config.delay:
            raise UnsuitableError(
                f"steps must be more than twice the delay, at least {2 * config.delay + 1} for "
                f"delay {config.delay}, got {config.steps}"
            )
        super().__init__(config, seed=seed, dtype=dtype, device=device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (B, T, 1) and answers (B, T - 2 d): 1 where the bits differ."""
        delay, steps = self.config.delay, self.config.steps
        bits = torch.randint(2, (count, steps), generator=generator)
        answers = bits[:, delay : steps - delay] ^ bits[:, : steps - 2 * delay]
        return (2.0 * bits.double() - 1.0).unsqueeze(-1), answers
