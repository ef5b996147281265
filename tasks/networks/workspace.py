"""Memory that one update leaves for the next, so that nothing is asked of the system in between.

Activations of a cohort are tens of megabytes. Given back and asked for again at every update, they
cost a page fault every 4 KB, which for narrow networks is as dear as the arithmetic; and a CUDA
graph needs them where they were.
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class Workspace:
    """Named blocks of memory. What a block holds is undefined when it is taken anew."""

    def __init__(self) -> None:
        self._blocks: dict[str, Tensor] = {}

    def take(
        self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None
    ) -> Tensor:
        """A contiguous tensor of this shape, of the device of `like` and of its dtype or `dtype`.

        The block of a name grows to the largest shape ever asked of it and never shrinks.
        """
        size = 1
        for length in shape:
            size *= length
        dtype = like.dtype if dtype is None else dtype
        block = self._blocks.get(name)
        if block is None or block.numel() < size or block.dtype != dtype:
            # The old block goes first: the two need not fit side by side.
            self._blocks.pop(name, None)
            block = self._blocks[name] = torch.empty(size, dtype=dtype, device=like.device)
        return block[:size].view(*shape)

    def clear(self) -> None:
        """Gives all memory back."""
        self._blocks.clear()


class ThreadsWorkspace(threading.local, Workspace):
    """One for each thread that asks."""
