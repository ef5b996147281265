"""V = F R with R upper triangular and F a well-conditioned frame: by Householder, Cholesky or LU.

Lyapunov exponents are read off the diagonals of the R alone, and the R of a whole product is the
product of the R of its parts whatever the F in between were: only the last F must be orthonormal
for the numbers to be those of the QR method. In between, therefore, the cheapest factorisation
will do whose F spans the same flag of subspaces and is well conditioned. Gaussian elimination
with row exchanges (F = Pᵀ L, entries ≤ 1) is one, at a quarter of the operations of a Householder
QR; replacing orthonormal by triangular frames is F. L. Bauer's Treppeniteration (1957).
`log_gauge` says how the F it leaves differs from an orthonormal frame.

Measured on one CPU thread, float64, 1024 × 1024: product 42 ms, Householder Q and R 109 ms, R
alone 51 ms, LU 22 ms. Blocked or recursive eliminations of our own around smaller LAPACK panels
took 28 ms and more.

Shapes: N members, B sequences, D state, K tangents.
"""

import math
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.linalg.lapack import dlaswp
from torch import Tensor

from pipeline.dynamics import blas
from pipeline.dynamics.routines import is_at_hand

Method = Literal["householder", "cholesky", "lu"]

LU_FROM = 64
"""Tangents from which on LU pays on the CPU: below, a QR is a small share of the tangent step."""

PANEL = 64
"""Columns of a triangular frame that are handled together, as if their rows ended alike."""


class Factors(NamedTuple):
    """V = F R with R_ii ≥ 0.

    frame: (N, B, D, K). logs: (N, B, K) log R_ii, float64. depth: (N, B, K)
    log(R_ii/‖R_:,i‖), float64: how far a column has sunk towards rounding.
    """

    frame: Tensor
    logs: Tensor
    depth: Tensor


def pick(k: int, size: int, dtype: torch.dtype, device: torch.device) -> Method:
    """The cheapest method that loses nothing, for frames (size, k).

    CPU: Householder for few tangents, LU for many. CUDA: two passes of Cholesky QR for k ≤ size/2,
    where its products beat the batched Householder kernels; Householder otherwise.
    """
    if device.type == "cpu":
        return "lu" if k >= LU_FROM else "householder"
    return "cholesky" if 2 * k <= size else "householder"


def factorise(V_NBDK: Tensor, method: Method) -> Factors:
    """V = F R by the method named; F is orthonormal except with "lu"."""
    if method == "lu":
        return triangularise(V_NBDK)
    return cholesky_qr(V_NBDK) if method == "cholesky" else orthonormalise(V_NBDK)


def orthonormalise(V_NBDK: Tensor) -> Factors:
    """Householder QR, right for any V.

    sign(0) counts as 1, so that a singular map leaves a full orthonormal frame behind and shows
    as log R_ii = −inf. NaN in one matrix stays in that matrix.

    Example:
        >>> found = orthonormalise(torch.tensor([[3.0, 1.0], [0.0, 0.0]]).reshape(1, 1, 2, 2))
        >>> found.logs.exp().round(decimals=6).flatten().tolist()
        [3.0, 0.0]
    """
    Q, R = torch.linalg.qr(V_NBDK)
    diagonal = R.diagonal(dim1=-2, dim2=-1)
    sign = torch.where(diagonal < 0, -1.0, 1.0).to(Q.dtype)
    return Factors(Q * sign.unsqueeze(-2), *logs_and_depth(diagonal, _norms(R)))


def cholesky_qr(V_NBDK: Tensor) -> Factors:
    """Two passes of Cholesky QR (Yamamoto et al. 2015), Householder where V is too ill-conditioned.

    VᵀV squares the condition number, so a matrix takes part only while its depth stays above √ε;
    the second pass restores orthogonality to rounding. The choice is made matrix by matrix.
    """
    Q, R, is_fine = _cholesky_pass(V_NBDK)
    Q, R_second, is_fine_too = _cholesky_pass(Q)
    R = R_second @ R
    logs, depth = logs_and_depth(R.diagonal(dim1=-2, dim2=-1), _norms(R))
    # Half the digits are gone in VᵀV; two nats more for the entries off the diagonal.
    safe = 0.5 * math.log(torch.finfo(V_NBDK.dtype).eps) + 2
    is_fine = is_fine & is_fine_too & (depth.amin(-1) > safe)
    if bool(is_fine.all()):
        return Factors(Q, logs, depth)
    bad = ~is_fine
    again = orthonormalise(V_NBDK[bad])
    Q, logs, depth = Q.clone(), logs.clone(), depth.clone()
    Q[bad], logs[bad], depth[bad] = again
    return Factors(Q.mT.contiguous().mT, logs, depth)


def triangularise(V_NBDK: Tensor) -> Factors:
    """Gaussian elimination with row exchanges: V = (Pᵀ L) U, L unit lower trapezoidal.

    A pivot of exactly 0 leaves a full-rank frame and log R_ii = −inf. R is U up to signs of rows.

    Example:
        >>> found = triangularise(torch.tensor([[1.0, 1.0], [2.0, 0.0]]).reshape(1, 1, 2, 2))
        >>> found.frame[0, 0].tolist()
        [[0.5, 1.0], [1.0, 0.0]]
    """
    N, B, D, K = V_NBDK.shape
    frame_NBKD = torch.empty((N, B, K, D), dtype=V_NBDK.dtype, device=V_NBDK.device)
    logs, depths = [], []
    # One matrix after another: its passes through memory then stay in the cache.
    for V, frame in zip(V_NBDK.flatten(0, 1), frame_NBKD.flatten(0, 1), strict=True):
        L_KD = V.mT.clone(memory_format=torch.contiguous_format)
        found = eliminate(L_KD)
        torch.gather(write_out(L_KD), 1, inverse(found.order).expand(K, D), out=frame)
        logs.append(found.logs)
        depths.append(found.depth)
    return Factors(
        frame_NBKD.mT, torch.stack(logs).view(N, B, K), torch.stack(depths).view(N, B, K)
    )


class Eliminated(NamedTuple):
    """logs and depth (K,) as in `Factors`; row i of L is row order[i] of the frame, (D,)."""

    logs: Tensor
    depth: Tensor
    order: Tensor


def eliminate(V_KD: Tensor) -> Eliminated:
    """Gaussian elimination of one matrix, given transposed, in place.

    Lᵀ is left above the diagonal of `V_KD`, Rᵀ on and below it. In place because a fresh matrix
    costs more, in page faults, than a pass through it; the matrix must be contiguous.
    """
    K, D = V_KD.shape
    if is_at_hand(V_KD):
        pivots = blas.eliminate(V_KD)
    else:
        found = torch.empty(K, dtype=torch.int32, device=V_KD.device)
        info = torch.empty((), dtype=torch.int32, device=V_KD.device)
        torch.linalg.lu_factor_ex(V_KD.mT, out=(V_KD.mT, found, info))
        pivots = found - 1
    diagonal = V_KD.diagonal().clone()
    norms = norms_below(V_KD)
    return Eliminated(*logs_and_depth(diagonal, norms), order_of(pivots, D))


def write_out(L_KD: Tensor) -> Tensor:
    """The ones and zeros of a unit lower triangular L, given transposed, in place; returns it.

    Example:
        >>> write_out(torch.tensor([[7.0, 3.0], [7.0, 7.0]])).mT.tolist()
        [[1.0, 0.0], [3.0, 1.0]]
    """
    L_KD.triu_(1).diagonal().fill_(1.0)
    return L_KD


def inverse(order: Tensor) -> Tensor:
    """The permutation that undoes `order`.

    Example:
        >>> inverse(torch.tensor([2, 0, 1])).tolist()
        [1, 2, 0]
    """
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places


def log_gauge(frame_NBDK: Tensor, ends_NBD: Tensor | None = None) -> Tensor:
    """log R_ii (N, B, K) of a frame itself: 0 where it is orthonormal.

    Where `ends_NBD` says how far the rows of a triangular frame reach, its FᵀF takes a sixth of
    the products, and a Cholesky factorisation of that is half the price of a QR. It squares the
    condition number, so that badly conditioned frames go through QR all the same.

    Example:
        >>> log_gauge(2 * torch.eye(2, dtype=torch.float64).reshape(1, 1, 2, 2)).exp().tolist()
        [[[2.0, 2.0]]]
    """
    if ends_NBD is None:
        R: Tensor = torch.linalg.qr(frame_NBDK, mode="r").R
        return R.diagonal(dim1=-2, dim2=-1).double().abs().log()
    N, B, _, K = frame_NBDK.shape
    pairs = zip(frame_NBDK.flatten(0, 1), ends_NBD.flatten(0, 1), strict=True)
    gauges = torch.stack([_log_gauge_of_stairs(F, ends) for F, ends in pairs])
    return gauges.view(N, B, K)


def _log_gauge_of_stairs(F_DK: Tensor, ends_D: Tensor) -> Tensor:
    D, K = F_DK.shape
    # Float64 whatever the frame: FᵀF of a float32 frame would keep no digit of some.
    F_KD = torch.gather(F_DK.mT, 1, ends_D.argsort(stable=True).expand(K, D)).double()
    sorted_ends = ends_D.sort().values
    gram = F_KD.new_empty(K, K)
    for start in range(0, K, PANEL):
        stop = min(start + PANEL, K)
        first = int(torch.searchsorted(sorted_ends, start, right=True))
        torch.mm(F_KD[start:stop, first:], F_KD[:stop, first:].mT, out=gram[start:stop, :stop])
    squares = gram.diagonal().clone()
    if is_at_hand(gram):
        is_definite = blas.cholesky(gram)
    else:
        gram, info = torch.linalg.cholesky_ex(gram)
        is_definite = int(info) == 0
    diagonal = gram.diagonal()
    # Its error is about ε times the square of this ratio: 1e-10 at the worst that passes.
    if is_definite and bool((diagonal.square() * 1e6 > squares).all()):
        logs: Tensor = diagonal.log()
        return logs
    return log_gauge(F_DK.double()[None, None]).flatten()


def norms_below(packed_KD: Tensor) -> Tensor:
    """Norms of the columns of R, which stand in the rows of `packed_KD` up to the diagonal."""
    K, step = packed_KD.shape[0], 4 * PANEL
    norms = packed_KD.new_empty(K)
    mask, _ = _triangles(step, packed_KD.dtype, packed_KD.device)
    for start in range(0, K, step):
        rows = packed_KD[start : min(start + step, K)]
        size = len(rows)
        last = _norms((rows[:, start : start + size] * mask[:size, :size]).mT)
        norms[start : start + size] = (
            torch.hypot(_norms(rows[:, :start].mT), last) if start else last
        )
    return norms


def squares_above(L_KD: Tensor, weights_D: Tensor) -> Tensor:
    """Σ_i w_i L_ij² (K,) of a unit lower triangular L, given transposed: (K, D), D ≥ K.

    What stands on and before the diagonal of `L_KD` is not read.
    """
    K, step = len(L_KD), 4 * PANEL
    sums = weights_D[:K].clone()
    _, mask = _triangles(step, L_KD.dtype, L_KD.device)
    for start in range(0, K, step):
        rows = L_KD[start : min(start + step, K)]
        size = len(rows)
        stop = start + size
        # The triangle itself, and what stands beyond it.
        last = rows[:, start:stop] * mask[:size, :size]
        part = sums[start:stop]
        part += torch.mv(last.square_(), weights_D[start:stop])
        part += torch.mv(rows[:, stop:].square(), weights_D[stop:])
    return sums


@cache
def _triangles(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """1 on and below the diagonal, and 1 above it."""
    lower = torch.ones(size, size, dtype=dtype, device=device).tril_()
    return lower, 1 - lower


def order_of(pivots: Tensor, num_rows: int) -> Tensor:
    """Row of the matrix that ended up in every row of L; row i was exchanged with pivots[i]."""
    rows = np.arange(num_rows, dtype=np.float64)[:, None]
    exchanged = dlaswp(rows, pivots.cpu().numpy().astype(np.int32), overwrite_a=True)
    return torch.from_numpy(exchanged[:, 0].astype(np.int64)).to(pivots.device)


def _cholesky_pass(V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q, R with V = Q R, and where it succeeded."""
    L, info = torch.linalg.cholesky_ex(V.mT @ V)
    # Qᵀ = L⁻¹ Vᵀ; solved for Qᵀ so that the frame keeps its columns contiguous.
    Q = torch.linalg.solve_triangular(L, V.mT, upper=False).contiguous().mT
    return Q, L.mT, (info == 0) & torch.isfinite(Q).all(-1).all(-1)


def _norms(R: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(R, dim=-2)
    return norms


def logs_and_depth(diagonal: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """log R_ii and log(R_ii/‖R_:,i‖) as in `Factors`, given R_ii and ‖R_:,i‖."""
    logs = diagonal.double().abs().log()
    depth = logs - norms.double().log()
    # A column that vanished altogether (0/0) is at the floor as well; NaN input stays NaN.
    return logs, torch.where(torch.isneginf(logs), -math.inf, depth)
