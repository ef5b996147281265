"""Leading singular values of a long product of maps, by QR sweeps forward and backward.

One sweep carries k orthonormal columns through J_1, …, J_L with a QR after every map, and back
through the transposes: subspace iteration on JᵀJ that forms neither J nor JᵀJ, so that nothing
overflows, and small singular values keep their digits (Stewart 1997, ETNA 5, 29). A single
forward sweep from a random frame does not give singular values of a finite product. log σ_1 is
the Ritz value of all columns carried, which settles first.

Shapes: N members, B inputs, D rows of the start space, E rows of the end space, K tangents.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.dynamics.frames import Map
from pipeline.dynamics.propagate import floor_depth

OVERSAMPLE = 3
"""Columns carried beyond those asked for: log σ_k settles like (σ_{k+4}/σ_k)² a sweep, not
(σ_{k+1}/σ_k)², for k = 1, and the others gain a better start."""


class Leading(NamedTuple):
    """The k leading singular triples of J_L … J_1.

    log_values: (N, B, K) log σ_i; −inf where σ_i cannot be told from 0. right: (N, B, D, K).
    left: (N, B, E, K). has_settled: (N, B) False where more sweeps would have been needed.
    """

    log_values: Tensor
    right: Tensor
    left: Tensor
    has_settled: Tensor


def transposed(J: Map | Any, P_NBEK: Tensor, num_columns: int) -> Tensor:
    """Jᵀ P (N, B, D, K), J having `num_columns` = D columns.

    By the map's own `transposed` where it has one, else by way of its dense matrix.
    """
    if hasattr(J, "transposed"):
        moved: Tensor = J.transposed(P_NBEK)
        return moved
    if hasattr(J, "dense"):
        dense: Tensor = J.dense()
    else:
        identity = torch.eye(num_columns, dtype=P_NBEK.dtype, device=P_NBEK.device)
        dense = J(identity.expand(*P_NBEK.shape[:2], -1, -1))
    return dense.mT @ P_NBEK


def positive_qr(V: Tensor) -> tuple[Tensor, Tensor]:
    """V = Q R with R_ii ≥ 0; sign(0) counts as 1, so that Q is orthonormal for singular V too."""
    Q, R = torch.linalg.qr(V)
    sign = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(V.dtype)
    return Q * sign.unsqueeze(-2), R * sign.unsqueeze(-1)


def log_diagonal(R: Tensor) -> Tensor:
    """log R_ii, −inf for 0."""
    return R.diagonal(dim1=-2, dim2=-1).log()


def largest_eigenpair(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue (…,) of positive semidefinite matrices, and its unit vector (…, r).

    Exact to rounding for the largest. NaN where a matrix holds NaN, on which LAPACK would raise.
    """
    if gram.shape[-1] == 1:
        value = gram[..., 0, 0]
        return value, torch.where(value.isnan(), math.nan, 1.0).unsqueeze(-1).to(gram.dtype)
    is_finite = torch.isfinite(gram).all(-1).all(-1)
    values, vectors = torch.linalg.eigh(torch.where(is_finite[..., None, None], gram, 0.0))
    largest = torch.where(is_finite, values[..., -1].clamp(min=0), math.nan)
    return largest, torch.where(is_finite[..., None], vectors[..., -1], math.nan)


def leading_singular_values(
    maps: Sequence[Map],
    k: int,
    *,
    num_rows: int,
    lead: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    tolerance: float = 1e-11,
    most_sweeps: int = 200,
) -> Leading:
    """The k leading singular values of the product of `maps`, first map applied first.

    Args:
        maps: all of them at once, for they are run through both ways.
        num_rows: D. lead: (N, B).
        tolerance: a number has settled when a sweep moves its logarithm by less.
        most_sweeps: after that, `has_settled` says what is left.

    Every input stops on its own, so that its numbers do not depend on its company. The start
    frame is random but fixed. NaN stays with its member and input. −inf is a σ_i that is 0 as far
    as rounding lets one see: some map sent its direction below 100 ε of the column's length.

    Raises ValueError for k out of range.
    """
    N, B = lead
    sizes = _sizes(maps, num_rows, lead, dtype, device)
    columns = _columns(sizes, k)
    start = torch.randn(
        (num_rows, columns), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    V = torch.linalg.qr(start).Q.to(dtype=dtype, device=device).expand(N, B, -1, -1)
    best: Leading | None = None
    for _ in range(most_sweeps):
        found, U = _forward(maps, V, k)
        if best is None:
            best = found
        else:
            moved = (found.log_values - best.log_values).abs()
            is_same = (found.log_values == best.log_values) | (moved <= tolerance)
            has_settled = best.has_settled | (is_same | found.log_values.isnan()).all(-1)
            was_open = ~best.has_settled[..., None]
            best = Leading(
                torch.where(was_open, found.log_values, best.log_values),
                torch.where(was_open[..., None], found.right, best.right),
                torch.where(was_open[..., None], found.left, best.left),
                has_settled,
            )
            if bool(has_settled.all()):
                return best
        V = U
        for J, size in zip(reversed(maps), reversed(sizes[:-1]), strict=True):
            V = torch.linalg.qr(transposed(J, V, size)).Q
    assert best is not None  # most_sweeps is at least 1
    return best


def _forward(maps: Sequence[Map], V: Tensor, k: int) -> tuple[Leading, Tensor]:
    N, B, _, p = V.shape
    logs = torch.zeros((N, B, p), dtype=torch.float64, device=V.device)
    C = torch.eye(p, dtype=torch.float64, device=V.device).expand(N, B, p, p)
    log_scale = torch.zeros((N, B), dtype=torch.float64, device=V.device)
    deepest = torch.zeros_like(logs)
    Q = V
    for J in maps:
        Q, R = positive_qr(J(Q))
        R = R.double()
        found = log_diagonal(R)
        logs = logs + found
        deepest = torch.minimum(deepest, found - torch.linalg.vector_norm(R, dim=-2).log())
        C = R @ C
        size = C.abs().amax((-2, -1))
        size = torch.where(size == 0, 1.0, size)
        C, log_scale = C / size[..., None, None], log_scale + size.log()
    value, w = largest_eigenpair(C.mT @ C)
    # What is left of a column that vanished is rounding, and looks like a number of its own.
    logs = torch.where(deepest < floor_depth(V.dtype), -math.inf, logs)
    log_values = logs[..., :k].clone()
    log_values[..., 0] = 0.5 * value.log() + log_scale
    moved = (C @ w.unsqueeze(-1)) / value.sqrt()[..., None, None]
    right, left = V[..., :k].clone(), Q[..., :k].clone()
    right[..., 0] = (V @ w.unsqueeze(-1).to(V.dtype)).squeeze(-1)
    left[..., 0] = (Q @ moved.to(V.dtype)).squeeze(-1)
    is_open = torch.zeros((N, B), dtype=torch.bool, device=V.device)
    return Leading(log_values, right, left, is_open), Q


def _sizes(
    maps: Sequence[Map],
    num_rows: int,
    lead: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device | str,
) -> list[int]:
    """Dimension of the start space and of the space after every map."""
    probe = torch.zeros((*lead, num_rows, 1), dtype=dtype, device=device)
    sizes = [num_rows]
    for J in maps:
        probe = J(probe)
        sizes.append(probe.shape[-2])
    return sizes


def _columns(sizes: list[int], k: int) -> int:
    """k and some more, as many as the narrowest space lets through."""
    if not 1 <= k <= min(sizes):
        raise ValueError(
            f"k must be between 1 and the fewest rows of any map, {min(sizes)}; got {k}"
        )
    return min(*sizes, k + OVERSAMPLE)
