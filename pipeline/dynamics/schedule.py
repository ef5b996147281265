"""When a frame is factorised: T_ON, from how deep the columns of R have sunk (`propagate`).

Shapes: N members, B sequences, K tangents.
"""

import math
from typing import Literal

import torch
from torch import Tensor

LONGEST_AUTO = 8
"""Largest T_ON that "auto" picks with orthonormal frames: a QR is then a small share of a step."""

LONGEST_GAUGED = 16
"""The same with triangular frames, whose gauge at the end of each block costs half a QR.

Half as much again where that cuts a run evenly: a last block cut short costs a gauge and is of no
use to error estimates."""


FORGOTTEN = 1.0
"""Nats by which an offset worse than the latest is forgotten at each factorisation."""


class Schedule:
    """When each member's frame is factorised.

    `learn` reads from every R how deep its columns have sunk in how many steps, and keeps T_ON
    where the depth stays above ε^¼, or ε^0.32 with triangular frames. The depth is an offset, what
    the worst column loses at once, plus a rate times the steps: λ_1 − λ_k as this R has it, or the
    depth over the steps where that is less. Growth of T_ON is by doubling at most.

    Example:
        >>> schedule = Schedule(2, 3, torch.float64, is_gauged=False)
        >>> [schedule.due(ends_block=False) for _ in range(3)]
        [[], [], [0, 1]]
    """

    def __init__(
        self,
        num_members: int,
        t_on: int | Literal["auto"],
        dtype: torch.dtype,
        *,
        is_gauged: bool,
        steps: int = 0,
    ) -> None:
        self._is_auto = t_on == "auto"
        self.block = _gauged_block(steps) if is_gauged else LONGEST_AUTO
        if t_on != "auto":
            # Gauges cost, so that blocks hold several factorisations where they are needed.
            self.block = t_on * math.ceil(LONGEST_GAUGED / t_on) if is_gauged else t_on
        self.t_on = [1 if t_on == "auto" else t_on] * num_members
        self._since = [0] * num_members
        self._offsets = [0.0] * num_members
        # With triangular frames the factorisation costs about half a step; T_ON may be longer.
        self._lowest_depth = math.log(torch.finfo(dtype).eps) * (0.32 if is_gauged else 0.25)
        # A quarter of the range: frames are not rescaled between factorisations.
        self._largest_log = math.log(torch.finfo(dtype).max) / 4

    def due(self, ends_block: bool) -> list[int]:
        """Members to factorise after one more step."""
        self._since = [steps + 1 for steps in self._since]
        return [
            n
            for n, (steps, t) in enumerate(zip(self._since, self.t_on, strict=True))
            if ends_block or steps >= t
        ]

    def learn(self, members: list[int], logs_NBK: Tensor, depth_NBK: Tensor) -> None:
        """Sets T_ON from the R of `members`."""
        if self._is_auto:
            # Errors grow like exp(−depth), and it is their mean over sequences that counts.
            num_sequences = depth_NBK.shape[1]
            deepest = math.log(num_sequences) - (-depth_NBK.amin(2)).logsumexp(1)
            largest = torch.where(torch.isneginf(logs_NBK), 0.0, logs_NBK.abs()).amax((1, 2))
            least, most = logs_NBK.mean(1).aminmax(dim=-1)
            seen = torch.stack([deepest, most - least, largest]).tolist()
            for n, depth, spread, size in zip(members, *seen, strict=True):
                self.t_on[n] = self._longest(n, depth, spread, size)
        for n in members:
            self._since[n] = 0

    def _longest(self, n: int, depth: float, spread: float, size: float) -> int:
        steps = self._since[n]
        if not (math.isfinite(depth) and math.isfinite(size)):
            return 1
        # Both are what so many steps use up; the rest of the depth is the offset.
        rate = min(spread, -depth) / steps
        self._offsets[n] = min(depth + rate * steps, self._offsets[n] + FORGOTTEN)
        room, size_rate = self._offsets[n] - self._lowest_depth, size / steps
        fitting = room / rate if rate > 0 else math.inf
        if size_rate > 0:
            fitting = min(fitting, self._largest_log / size_rate)
        # Blocks end with a factorisation, so they are cut evenly.
        fitting = math.floor(min(max(1, fitting), self.block))
        even = math.ceil(self.block / math.ceil(self.block / fitting))
        return min(even, 2 * self.t_on[n])


def _gauged_block(steps: int) -> int:
    """Steps of a block in a run of so many (0: unknown), where its end is dear."""
    lengths = range(LONGEST_GAUGED, LONGEST_GAUGED * 3 // 2 + 1)
    return max((b for b in lengths if steps and steps % b == 0), default=LONGEST_GAUGED)
