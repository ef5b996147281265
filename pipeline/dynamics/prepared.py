"""A source made ready to be measured: its orbit, how far to go, and the frame to start with.

Shapes: N members, B sequences, D state, K tangents.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.dynamics.arithmetic import exact_arithmetic
from pipeline.dynamics.propagate import Orbit, random_frame
from pipeline.dynamics.sources import as_run, in_eval_mode, whole_number


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
    with exact_arithmetic(), in_eval_mode(source):
        run = as_run(source, inputs, state, dtype, steps, warmup, tangents, loop=loop, start=start)
        draws = torch.Generator().manual_seed(0) if generator is None else generator
        if tangents is None:
            frame = random_frame(run.orbit, _check_count(k, run.orbit.tangent_size), draws)
        else:
            frame = _given_frame(tangents, run.orbit, k)
        lead = (run.orbit.num_members, run.orbit.num_sequences, -1, -1)
        yield Prepared(
            run.orbit, run.is_population, run.warmup, run.counted, frame.expand(lead), draws
        )


def _check_count(k: int | None, tangent_size: int) -> int:
    if k is None:
        return tangent_size
    k = whole_number("k", k)
    if not 1 <= k <= tangent_size:
        raise ValueError(f"k must be between 1 and the state's size {tangent_size}, got {k}")
    return k


def _given_frame(tangents: Tensor, orbit: Orbit, k: int | None) -> Tensor:
    lead = {2: (1, 1), 3: (orbit.num_members, 1), 4: (orbit.num_members, orbit.num_sequences)}
    rows, columns = tangents.shape[-2:] if tangents.ndim >= 2 else (0, 0)
    fits = (
        tangents.ndim in lead
        and tangents.shape[:-2] == lead[tangents.ndim][: tangents.ndim - 2]
        and rows == orbit.tangent_size
        and columns == (columns if k is None else k)
        and 1 <= columns <= rows
    )
    if not fits:
        raise ValueError(
            f"tangents must be (D, k), (N, D, k) or (N, B, D, k) with D = {orbit.tangent_size}, "
            f"k = {'at most D' if k is None else k}, N = {orbit.num_members}, "
            f"B = {orbit.num_sequences}; got {tuple(tangents.shape)}"
        )
    given = tangents.reshape(*lead[tangents.ndim], rows, columns)
    Q, R = torch.linalg.qr(given.to(dtype=torch.float64))
    size = torch.linalg.vector_norm(R, dim=-2)
    floor = rows * torch.finfo(tangents.dtype).eps if tangents.is_floating_point() else 0.0
    if not bool((R.diagonal(dim1=-2, dim2=-1).abs() > floor * size).all()):
        raise ValueError(
            "tangents must have finite, linearly independent columns; a zero, repeated or NaN "
            "column leaves a direction open that nobody chose"
        )
    frame: Tensor = Q.to(dtype=orbit.dtype, device=orbit.device)
    return frame
