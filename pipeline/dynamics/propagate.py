"""Carries an orthonormal frame along an orbit and logs how fast it grows (Benettin et al. 1980).

J_t Q_{t−1} = Q_t R_t with R_ii ≥ 0; the i-th Lyapunov exponent is the mean of log R_ii per step.
The frame may be re-orthonormalised every T_ON steps only. What limits T_ON is rounding: column i
of R decays relative to its own norm like exp(−T_ON (λ_1 − λ_i)), and where that meets the
precision ε, R_ii is noise that looks like an exponent of λ_1 − ln(1/ε)/T_ON. The decay is
therefore read from every R, and "auto" keeps it above ε^⅓, so that log R_ii is right to ε^⅔.

Shapes: N members, B sequences, T steps, D state, K tangents, M time blocks.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

import torch
from torch import Tensor

LONGEST_AUTO = 8
"""Largest T_ON that "auto" picks: beyond it the QR is a small share of the tangent step."""

MOST_BLOCKS = 1024
"""Blocks kept for error estimates; longer runs merge neighbours, so that memory stays bounded."""


class Map(Protocol):
    """The derivative of one application of the map."""

    def __call__(self, Q_NBDK: Tensor) -> Tensor:
        """J Q, (N, B, D', K)."""
        ...


class Orbit(Protocol):
    """A start state and the maps applied along the way; `maps()` streams."""

    num_members: int
    num_sequences: int
    num_steps: int
    tangent_size: int
    dtype: torch.dtype
    device: torch.device

    def maps(self) -> Iterator[Map]:
        """The derivative of every step, in order."""
        ...


class Observer(Protocol):
    """Sees every map before the frame passes through it."""

    def __call__(self, step: int, J: Map) -> None:
        """`step` counts from 0, warm-up included."""
        ...


@dataclass(frozen=True)
class Growth:
    """How a frame grew, float64 whatever the precision of the frame.

    Attributes:
        logs_NBKM: Σ log R_ii over each block; −inf where an R_ii was exactly 0.
        block_steps_M: steps in each block.
        deepest_NK: min over sequences and re-orthonormalisations of log(R_ii/‖R_:,i‖).
        num_zeros_NK: how often R_ii was exactly 0, over sequences and re-orthonormalisations.
        t_on_N: T_ON at the end of the run.
        frame_NBDK: the last orthonormal frame.
    """

    logs_NBKM: Tensor
    block_steps_M: Tensor
    deepest_NK: Tensor
    num_zeros_NK: Tensor
    t_on_N: tuple[int, ...]
    frame_NBDK: Tensor


def floor_depth(dtype: torch.dtype) -> float:
    """ln(100 ε): an R_ii this small against its column is rounding noise."""
    return math.log(100 * torch.finfo(dtype).eps)


def orthonormalise(V_NBDK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V = Q R with R_ii ≥ 0: Q, log R_ii (N, B, K) and log(R_ii/‖R_:,i‖), the logs in float64.

    sign(0) counts as 1, so that a singular map leaves a full orthonormal frame behind and shows
    as log R_ii = −inf. NaN in one matrix stays in that matrix.
    """
    Q, R = torch.linalg.qr(V_NBDK)
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    sign = torch.where(diagonal < 0, -1.0, 1.0).to(Q.dtype)
    logs = diagonal.double().abs().log()
    depth = logs - torch.linalg.vector_norm(R, dim=-2).double().log()
    # A column that vanished altogether (0/0) is at the floor as well; NaN input stays NaN.
    depth = torch.where(torch.isneginf(logs), -math.inf, depth)
    return Q * sign.unsqueeze(-2), logs, depth


def random_frame(
    orbit: Orbit, k: int, generators: Sequence[torch.Generator] | torch.Generator
) -> Tensor:
    """Orthonormal frames (N or 1, B, D, k), Haar-random, one a sequence.

    One generator gives all members the same frames; a sequence of them gives each its own.
    """
    each = [generators] if isinstance(generators, torch.Generator) else list(generators)
    shape = (orbit.num_sequences, orbit.tangent_size, k)
    normal = torch.stack(
        [torch.randn(shape, dtype=torch.float64, generator=g, device=g.device) for g in each]
    )
    return orthonormalise(normal)[0].to(dtype=orbit.dtype, device=orbit.device)


def carry(
    orbit: Orbit,
    frame: Tensor,
    *,
    warmup: int,
    steps: int,
    t_on: int | Literal["auto"],
    observe: Observer | None = None,
    rectangular: bool = False,
) -> Growth:
    """Carries `frame` through `warmup` uncounted and `steps` counted maps.

    The frame is re-orthonormalised at the end of the warm-up and of the run whatever T_ON, so
    that no growth is dropped and none is counted twice. With `t_on="auto"` every member has a
    T_ON of its own, taken from its own R alone: it starts at 1, doubles while the decay would
    stay above ε^⅓, and halves as soon as it does not.

    Raises ValueError where a map is not square, unless `rectangular`, or has fewer rows than the
    frame has columns.
    """
    N, B, K = orbit.num_members, orbit.num_sequences, frame.shape[-1]
    Q = frame.expand(N, B, -1, -1)
    deepest_NK = torch.full((N, K), math.inf, dtype=torch.float64, device=orbit.device)
    num_zeros_NK = torch.zeros((N, K), dtype=torch.int64, device=orbit.device)
    current_NBK = torch.zeros((N, B, K), dtype=torch.float64, device=orbit.device)
    blocks = _Blocks()
    schedule = _Schedule(N, t_on, orbit.dtype)
    since = 0
    for step, J in enumerate(islice(orbit.maps(), warmup + steps)):
        if observe is not None:
            observe(step, J)
        V = J(Q)
        _check_shape(V, Q, step, rectangular)
        since += 1
        is_last = step in (warmup - 1, warmup + steps - 1)
        ends_block = since == schedule.block or is_last
        due = schedule.due(since, ends_block)
        if not due:
            Q = V
            continue
        members = torch.tensor(due, device=orbit.device)
        if len(due) == N:
            Q, logs, depth = orthonormalise(V)
        else:
            part, logs, depth = orthonormalise(V[members])
            Q = V.mT.index_copy(0, members, part.mT).mT
        schedule.learn(due, depth, ends_block)
        if step >= warmup:
            current_NBK[members] += logs
            deepest_NK[members] = torch.minimum(deepest_NK[members], depth.amin(1))
            num_zeros_NK[members] += torch.isneginf(logs).sum(1)
            if ends_block:
                blocks.add(current_NBK, since)
                current_NBK = torch.zeros_like(current_NBK)
        if ends_block:
            since = 0
    logs_NBKM, block_steps_M = blocks.stacked()
    return Growth(logs_NBKM, block_steps_M, deepest_NK, num_zeros_NK, tuple(schedule.t_on), Q)


class _Schedule:
    """When each member's frame is re-orthonormalised."""

    def __init__(self, num_members: int, t_on: int | Literal["auto"], dtype: torch.dtype) -> None:
        self._is_auto = t_on == "auto"
        self.block = LONGEST_AUTO if t_on == "auto" else t_on
        self.t_on = [1 if t_on == "auto" else t_on] * num_members
        # A third of the digits may be lost between two re-orthonormalisations.
        self._allowed = math.log(torch.finfo(dtype).eps) / 3
        self._deepest = [0.0] * num_members

    def due(self, since: int, ends_block: bool) -> list[int]:
        return [n for n, t in enumerate(self.t_on) if ends_block or since % t == 0]

    def learn(self, members: list[int], depth_NBK: Tensor, ends_block: bool) -> None:
        if not self._is_auto:
            return
        for n, deepest in zip(members, depth_NBK.amin((1, 2)).tolist(), strict=True):
            self._deepest[n] = min(self._deepest[n], deepest) if deepest == deepest else -math.inf
            if self._deepest[n] < self._allowed:
                self.t_on[n] = max(1, self.t_on[n] // 2)
                self._deepest[n] = -math.inf
            elif ends_block and 2.5 * self._deepest[n] > self._allowed:
                self.t_on[n] = min(LONGEST_AUTO, 2 * self.t_on[n])
            if ends_block:
                self._deepest[n] = 0.0


class _Blocks:
    """Sums over time blocks, merged in pairs whenever there are too many."""

    def __init__(self) -> None:
        self._done: list[tuple[Tensor, int]] = []
        self._open: tuple[Tensor, int, int] | None = None
        self._merged = 1

    def add(self, logs: Tensor, steps: int) -> None:
        if self._open is None:
            self._open = (logs, steps, 1)
        else:
            before, steps_before, count = self._open
            self._open = (before + logs, steps_before + steps, count + 1)
        if self._open[2] == self._merged:
            self._close()
        if len(self._done) == MOST_BLOCKS:
            pairs = zip(self._done[::2], self._done[1::2], strict=True)
            self._done = [(a + b, m + n) for (a, m), (b, n) in pairs]
            self._merged *= 2

    def _close(self) -> None:
        if self._open is not None:
            self._done.append(self._open[:2])
            self._open = None

    def stacked(self) -> tuple[Tensor, Tensor]:
        self._close()
        logs, steps = zip(*self._done, strict=True)
        return torch.stack(logs, dim=-1), torch.tensor(steps)


def _check_shape(V: Tensor, Q: Tensor, step: int, rectangular: bool) -> None:
    after, before, k = V.shape[-2], Q.shape[-2], Q.shape[-1]
    if after != before and not rectangular:
        raise ValueError(
            f"exponents per step need square maps; map {step} is {after} × {before}. Pass `steps` "
            "to count the growth over that many maps, or take ftle.max_ftle for the largest "
            "singular value of their product"
        )
    if after < k:
        raise ValueError(f"k must be at most the rows of every map; map {step} has {after}, k={k}")
