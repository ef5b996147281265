"""Carries an orthonormal frame along an orbit and logs how fast it grows (Benettin et al. 1980).

J_t Q_{t−1} = Q_t R_t with R_ii ≥ 0; the i-th Lyapunov exponent is the mean of log R_ii per step.
The frame may be re-orthonormalised every T_ON steps only. What limits T_ON is rounding: column i
of R decays relative to its own norm like exp(−T_ON (λ_1 − λ_i)), and where that meets the
precision ε, R_ii is noise that looks like an exponent of λ_1 − ln(1/ε)/T_ON. The decay is
therefore read from every R, and "auto" keeps it above ε^¼, T_ON (λ_1 − λ_k) ≤ 9 in float64 and
4 in float32, which leaves log R_ii right to about ε^¾; above ε^0.32 with triangular frames.
(Numbers appear down to 36 and 16, wrong ones beyond, and from 100 ε on they are flagged; but
neither QRs of few tangents nor eliminations of many cost enough to pay for them with digits.
Measured on recurrent networks, against T_ON = 1: a limit of 27 nats puts the last exponent of 26
steps off by up to 2e-2, one of 16 nats by 2e-7, ε^0.32 by 4e-9.)

With many tangents, frames in between are triangular rather than orthonormal (`orthonormal`), and
maps that know how leave out the zeros (`frames`). Time blocks are still logged as if the frames
were orthonormal, by the gauge of the frame at their ends.

Shapes: N members, B sequences, T steps, D state, K tangents, M time blocks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol

import torch
from torch import Tensor

from pipeline.dynamics import routines
from pipeline.dynamics.frames import Frames, Map
from pipeline.dynamics.hands import Hands
from pipeline.dynamics.orthonormal import LU_FROM, Method, orthonormalise, pick
from pipeline.dynamics.schedule import Schedule

MOST_BLOCKS = 1024
"""Blocks kept for error estimates; longer runs merge neighbours, so that memory stays bounded."""

FIRST_LOOK = 16
"""Blocks before `enough` is asked for the first time; then after every fifth more."""


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
        last_NBDK: the last frame; orthonormal unless the method is "lu".
        method: how frames were factorised.
    """

    logs_NBKM: Tensor
    block_steps_M: Tensor
    deepest_NK: Tensor
    num_zeros_NK: Tensor
    t_on_N: tuple[int, ...]
    last_NBDK: Tensor
    method: Method = "householder"

    @property
    def frame_NBDK(self) -> Tensor:
        """The last frame, orthonormal."""
        is_so = self.method != "lu"
        return self.last_NBDK if is_so else orthonormalise(self.last_NBDK).frame


def floor_depth(dtype: torch.dtype) -> float:
    """ln(100 ε): an R_ii this small against its column is rounding noise.

    Example:
        >>> round(floor_depth(torch.float64), 2)
        -31.44
    """
    return math.log(100 * torch.finfo(dtype).eps)


def random_frame(
    orbit: Orbit, k: int, generators: Sequence[torch.Generator] | torch.Generator
) -> Tensor:
    """Orthonormal frames (N or 1, B, D, k), Haar-random, one a sequence.

    From LU_FROM tangents on, the sequences of a member share one, (N or 1, 1, D, k): drawing one
    costs as much as several steps. One generator gives all members the same frames; a
    sequence of them gives each its own. Raises ValueError for another number of them.

    Example:
        >>> from pipeline.dynamics.steps import GivenMaps
        >>> orbit = GivenMaps([torch.eye(3)], 1, 1, 3, torch.float64, torch.device("cpu"))
        >>> Q = random_frame(orbit, 2, torch.Generator().manual_seed(0))[0, 0]
        >>> Q.shape, torch.allclose(Q.T @ Q, torch.eye(2, dtype=torch.float64))
        (torch.Size([3, 2]), True)
    """
    each = [generators] if isinstance(generators, torch.Generator) else list(generators)
    if len(each) not in (1, orbit.num_members):
        raise ValueError(
            f"there must be one generator, or one for each of the {orbit.num_members} members; "
            f"got {len(each)}"
        )
    num_frames = 1 if k >= LU_FROM else orbit.num_sequences
    shape = (num_frames, orbit.tangent_size, k)
    normal = torch.stack(
        [torch.randn(shape, dtype=torch.float64, generator=g, device=g.device) for g in each]
    )
    return orthonormalise(normal).frame.to(dtype=orbit.dtype, device=orbit.device)


def carry(
    orbit: Orbit,
    frame: Tensor,
    *,
    warmup: int,
    steps: int,
    t_on: int | Literal["auto"],
    observe: Observer | None = None,
    rectangular: bool = False,
    method: Method | Literal["auto"] = "auto",
    enough: Callable[[Growth], bool] | None = None,
) -> Growth:
    """Carries `frame` through `warmup` uncounted and `steps` counted maps.

    The frame is factorised at the end of the warm-up and of the run whatever T_ON, so that no
    growth is dropped and none is counted twice. With `t_on="auto"` every member has a T_ON of
    its own, taken from its own R alone. `method` names the factorisation; "auto" picks it by
    the size of the frame. `enough` is shown the growth now and then, and ends the run when it
    says so.

    Raises ValueError where a map is not square, unless `rectangular`, or has fewer rows than the
    frame has columns, and where the maps end too soon.

    Example:
        >>> from pipeline.dynamics.steps import GivenMaps
        >>> J = torch.diag(torch.tensor([2.0, 0.5]))
        >>> orbit = GivenMaps([J] * 60, 60, 1, 2, torch.float64, torch.device("cpu"))
        >>> frame = random_frame(orbit, 2, torch.Generator().manual_seed(0))
        >>> growth = carry(orbit, frame, warmup=20, steps=40, t_on="auto")
        >>> [round(x / math.log(2), 6) for x in (growth.logs_NBKM.sum(-1) / 40)[0, 0].tolist()]
        [1.0, -1.0]
    """
    # Threads share out the sequences: two that work on one matrix would wait for one another, and
    # torch's for those of the BLAS.
    with routines.threads(1), closing(Hands(torch.get_num_threads())) as hands:
        return _carry(
            orbit, frame, warmup, steps, t_on, observe, rectangular, method, enough, hands
        )


def _carry(
    orbit: Orbit,
    frame: Tensor,
    warmup: int,
    steps: int,
    t_on: int | Literal["auto"],
    observe: Observer | None,
    rectangular: bool,
    method: Method | Literal["auto"],
    enough: Callable[[Growth], bool] | None,
    hands: Hands,
) -> Growth:
    N, B, K = orbit.num_members, orbit.num_sequences, frame.shape[-1]
    if method == "auto":
        method = pick(K, frame.shape[-2], orbit.dtype, orbit.device)
    frames = Frames(frame.expand(N, B, -1, -1), method, rectangular, hands)
    deepest_NK = torch.full((N, K), math.inf, dtype=torch.float64, device=orbit.device)
    num_zeros_NK = torch.zeros((N, K), dtype=torch.int64, device=orbit.device)
    zeros_NBK = torch.zeros((N, B, K), dtype=torch.float64, device=orbit.device)
    current_NBK, gauge_NBK = zeros_NBK.clone(), zeros_NBK
    blocks = _Blocks()
    schedule = Schedule(N, t_on, orbit.dtype, is_gauged=method == "lu", steps=steps)
    since, next_look, step = 0, FIRST_LOOK, -1

    def growth() -> Growth:
        logs_NBKM, block_steps_M = blocks.stacked()
        t_on_N = tuple(schedule.t_on)
        last_NBDK = frames.whole()
        return Growth(logs_NBKM, block_steps_M, deepest_NK, num_zeros_NK, t_on_N, last_NBDK, method)

    for step, J in enumerate(islice(orbit.maps(), warmup + steps)):
        if observe is not None:
            observe(step, J)
        since += 1
        is_last = step in (warmup - 1, warmup + steps - 1)
        ends_block = since == schedule.block or is_last
        due = schedule.due(ends_block)
        found = frames.carry(step, J, due)
        if found is None:
            continue
        logs, depth = found
        members = torch.tensor(due, device=orbit.device)
        schedule.learn(due, logs, depth)
        if step >= warmup:
            current_NBK[members] += logs
            deepest_NK[members] = torch.minimum(deepest_NK[members], depth.amin(1))
            num_zeros_NK[members] += torch.isneginf(logs).sum(1)
        if not ends_block:
            continue
        before_NBK = gauge_NBK
        if method == "lu" and step >= warmup - 1:
            gauge_NBK = frames.log_gauge()
        if step >= warmup:
            blocks.add(current_NBK + gauge_NBK - before_NBK, since)
            current_NBK = torch.zeros_like(current_NBK)
            if enough is not None and blocks.added >= next_look:
                next_look += max(1, next_look // 5)
                if enough(growth()):
                    break
        since = 0
    else:
        if step + 1 < warmup + steps:
            raise ValueError(f"warmup + steps is {warmup + steps}, but there are {step + 1} maps")
    return growth()


class _Blocks:
    """Sums over time blocks, merged in pairs whenever there are too many."""

    def __init__(self) -> None:
        self.added = 0
        self._done: list[tuple[Tensor, int]] = []
        self._open: tuple[Tensor, int, int] | None = None
        self._merged = 1

    def add(self, logs: Tensor, steps: int) -> None:
        self.added += 1
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
        done = self._done if self._open is None else [*self._done, self._open[:2]]
        logs, steps = zip(*done, strict=True)
        return torch.stack(logs, dim=-1), torch.tensor(steps)
