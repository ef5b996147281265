"""What `lyapunov_spectrum` accepts, made ready for the other measurements along an orbit.

Shapes: N members, B sequences, D state, K tangents.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.dynamics.propagate import Orbit, random_frame
from pipeline.dynamics.spectrum import (
    _as_run,
    _check_count,
    _given_frame,
    _in_eval_mode,
    exact_arithmetic,
)


@dataclass(frozen=True)
class Prepared:
    """An orbit, how far to go along it, and the frame to start with.

    frame: (N, B, D, K) orthonormal. is_population: whether results lead with N. generator: the
    one to draw further frames with.
    """

    orbit: Orbit
    is_population: bool
    warmup: int
    counted: int
    frame: Tensor
    generator: torch.Generator | Sequence[torch.Generator]


@contextmanager
def prepared(
    source: Any,
    inputs: Tensor | None,
    *,
    k: int | None,
    state: Literal["full", "hidden"],
    steps: int | None,
    warmup: int | Literal["auto"],
    dtype: torch.dtype,
    tangents: Tensor | None,
    loop: Literal["open", "closed"],
    start: Tensor | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Iterator[Prepared]:
    """Exact arithmetic, modules in eval mode, and settings checked; see `lyapunov_spectrum`."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    with exact_arithmetic(), _in_eval_mode(source):
        run = _as_run(source, inputs, state, dtype, steps, warmup, tangents, loop=loop, start=start)
        draws = torch.Generator().manual_seed(0) if generator is None else generator
        if tangents is None:
            frame = random_frame(run.orbit, _check_count(k, run.orbit.tangent_size), draws)
        else:
            frame = _given_frame(tangents, run.orbit, k)
        lead = (run.orbit.num_members, run.orbit.num_sequences, -1, -1)
        yield Prepared(
            run.orbit, run.is_population, run.warmup, run.counted, frame.expand(lead), draws
        )
