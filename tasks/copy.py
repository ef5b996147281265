"""Repeat ten symbols after a delay of blanks (Arjovsky, Shah, Bengio 2016).

"Unitary evolution recurrent neural networks", ICML 2016, which takes the problem from Hochreiter
and Schmidhuber, Neural Computation 1997. The input reads K symbols, D - 1 blanks, a delimiter
and K blanks; the symbols are to be told at the last K steps, in their order. Codes: symbols
0 to A - 1, blank A, delimiter A + 1.

Shapes: B sequences, T = D + 2 K steps.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from tasks import base
from tasks.base import Bounds
from tasks.sequences import DrawnConfig, DrawnSequences


class Copy(DrawnSequences, base.Task):
    """Repeat a sequence. Loss: cross-entropy in nats per step that counts."""

    @dataclass(frozen=True, kw_only=True)
    class Config(DrawnConfig):
        """What is to be copied; by default the shortest published delay, in the authors' batches.

        symbols: A, how many there are to choose from.
        length: K, how many are to be repeated.
        delay: D, steps between the last symbol and the first step that tells one.
        loss_at: recall: the last K steps, whose loss at chance is log A whatever the delay.
            everywhere: all steps, telling a blank at the others, as published; the loss of who
            remembers nothing is then K log A / (D + 2 K).
        """

        symbols: Annotated[int, Bounds(ge=2)] = 8
        length: Annotated[int, Bounds(ge=1)] = 10
        delay: Annotated[int, Bounds(ge=1)] = 100
        loss_at: Literal["recall", "everywhere"] = "recall"

    input_kind = "tokens"

    def __init__(
        self,
        config: Config,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        """Draws the splits from `seed`."""
        A, K = config.symbols, config.length
        self.input_size = A + 2
        self.output_size, self.chance_loss = A, math.log(A)
        if config.loss_at == "everywhere":
            self.output_size, self.chance_loss = A + 1, K * math.log(A) / (config.delay + 2 * K)
        super().__init__(config, seed=seed, dtype=dtype, device=device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs (B, T) and the symbols (B, K), or what is to be told at every step (B, T)."""
        A, K, D = self.config.symbols, self.config.length, self.config.delay
        symbols = torch.randint(A, (count, K), generator=generator)
        inputs = torch.full((count, D + 2 * K), A)
        inputs[:, :K] = symbols
        inputs[:, K + D - 1] = A + 1
        if self.config.loss_at == "recall":
            return inputs, symbols
        told = torch.full_like(inputs, A)
        told[:, K + D :] = symbols
        return inputs, told
