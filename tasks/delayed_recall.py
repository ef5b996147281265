"""Name, after a noisy delay, the one of 8 symbols shown at the start (after Bengio et al. 1994).

The latching problem of Bengio, Simard, Frasconi, "Learning long-term dependencies with gradient
descent is difficult", IEEE Trans. Neural Netw. 1994, with more than two things to latch: one-hot
at the first step, Gaussian noise on all inputs at every later one, an answer asked at the last.
Networks sit on a plateau at the chance loss until they carry a gradient across the delay.

Shapes: B sequences, T steps, I = O symbols.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tasks import base
from tasks.base import Bounds
from tasks.sequences import DrawnConfig, DrawnSequences


class DelayedRecall(DrawnSequences, base.Task):
    """Recall a symbol. Loss: cross-entropy at the last step, in nats."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DrawnConfig):
        """What is shown, and for how long it must be kept.

        symbols: how many there are to choose from; also the number of inputs.
        steps: T, the step of the symbol included; gradients cross T - 1 applications of the map.
        noise: standard deviation on every input from the second step on.
        """

        symbols: Annotated[int, Bounds(ge=2)] = 8
        steps: Annotated[int, Bounds(ge=1)] = 30
        noise: Annotated[float, Bounds(ge=0)] = 0.3
        batch_size: Annotated[int, Bounds(ge=1)] = 32
        updates: Annotated[int, Bounds(ge=1)] = 60

    def __init__(
        self,
        config: Config,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """Draws the splits from `seed`."""
        self.input_size = self.output_size = config.symbols
        self.chance_loss = math.log(config.symbols)
        super().__init__(config, seed=seed, dtype=dtype, device=device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (B, T, I) and the symbols shown, (B, 1)."""
        config = self.config
        shape = (count, config.steps, config.symbols)
        inputs = config.noise * torch.randn(shape, generator=generator, dtype=torch.float64)
        shown = torch.randint(config.symbols, (count, 1), generator=generator)
        # The symbol comes without noise, so that a perfect memory reaches a loss of 0.
        inputs[:, 0] = torch.nn.functional.one_hot(shown[:, 0], config.symbols)
        return inputs, shown
