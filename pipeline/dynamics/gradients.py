"""The gradient of a recurrent network in terms of Q and R, and where in their frames it points.

With J_t Q_{t−1} = Q_t R_t and a full frame (Q_t square), back-propagation through time is

    δ_t = Q_t c_t,   c_t = Q_tᵀ ∇_{h_t} L_t + R_{t+1}ᵀ c_{t+1},

so that for h_t = φ(V h_{t−1} + U x_t + b), with D_t = diag φ′(a_t) and J_t = D_t V,

    ∇_V L = Σ_t D_t Q_t [ Σ_{s≥t} R_{t+1:s}ᵀ Q_sᵀ ∇_{h_s} L_s ] h_{t−1}ᵀ, R_{t+1:s} = R_s … R_{t+1}.

The R enter step by step and are never inverted: a product over many steps leaves the range of
numbers, and a singular one has no inverse. Source: "Linking finite-time Lyapunov exponents to RNN
gradient subspaces and input sensitivity" (submission to ICLR 2024).

Shapes: N members, B sequences, T steps, D state, K tangents, m and k numbers of vectors.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.dynamics.frames import Map
from pipeline.dynamics.sweeps import positive_qr, transposed


def back_propagated(maps: Sequence[Map | Any], pushes_NBTD: Tensor) -> Tensor:
    """δ_t = dL/dh_t for t = 1 … T by the transposes, (N, B, T, D).

    Args:
        maps: J_1 … J_T; J_1 is not used.
        pushes_NBTD: ∇_{h_t} L_t, what the loss of step t alone asks of h_t.

    Raises ValueError where there are not as many maps as steps.

    Example:
        >>> J, push = torch.diag(torch.tensor([2.0, 0.5])), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> back_propagated([lambda Q: J @ Q] * 2, push[None, None])[0, 0].tolist()
        [[2.0, 0.5], [1.0, 1.0]]
    """
    _check_steps(maps, pushes_NBTD)
    delta = torch.zeros_like(pushes_NBTD[:, :, 0])
    found: list[Tensor] = []
    for t in range(len(maps), 0, -1):
        delta = pushes_NBTD[:, :, t - 1] + delta
        found.append(delta)
        if t > 1:
            moved = transposed(maps[t - 1], delta.unsqueeze(-1), delta.shape[-1])
            delta = moved.squeeze(-1)
    return torch.stack(found[::-1], dim=2)


def back_propagated_in_frame(
    maps: Sequence[Map | Any],
    pushes_NBTD: Tensor,
    frame_NBDK: Tensor,
    *,
    num_vectors: int | None = None,
) -> Tensor:
    """The same δ_t from Q_t and R_t alone, without a transposed map: (N, B, T, D).

    Args:
        maps: J_1 … J_T.
        pushes_NBTD: ∇_{h_t} L_t.
        frame_NBDK: orthonormal Q_0, which decides nothing as long as it is square.
        num_vectors: what enters of c_t; with fewer than D vectors δ_t is only its part in their
            span. None: all.

    Columns of a narrower frame are those of the full one, so that the first m coefficients obey
    the same recursion without the others: R is upper triangular, its transpose looks back only.

    Raises ValueError where there are not as many maps as steps, and for num_vectors out of range.
    """
    _check_steps(maps, pushes_NBTD)
    Q = frame_NBDK
    K = Q.shape[-1] if num_vectors is None else num_vectors
    if not 1 <= K <= Q.shape[-1]:
        raise ValueError(f"num_vectors must be between 1 and {Q.shape[-1]}, got {num_vectors}")
    Q = Q[..., :K]
    frames: list[Tensor] = []
    factors: list[Tensor] = []
    for J in maps:
        Q, R = positive_qr(J(Q))
        frames.append(Q)
        factors.append(R)
    c = torch.zeros_like(frames[0][..., 0, :])
    found: list[Tensor] = []
    for t in range(len(frames), 0, -1):
        Q_t = frames[t - 1]
        c = (Q_t.mT @ pushes_NBTD[:, :, t - 1].unsqueeze(-1)).squeeze(-1) + c
        found.append((Q_t @ c.unsqueeze(-1)).squeeze(-1))
        c = (factors[t - 1].mT @ c.unsqueeze(-1)).squeeze(-1)
    return torch.stack(found[::-1], dim=2)


def recurrent_gradient(slopes_NBTD: Tensor, deltas_NBTD: Tensor, before_NBTD: Tensor) -> Tensor:
    """∇_V L = Σ_t D_t δ_t h_{t−1}ᵀ of every sequence, (N, B, D, D); rows are units that receive.

    Args:
        slopes_NBTD: φ′(a_t).
        deltas_NBTD: δ_t.
        before_NBTD: h_{t−1}.
    """
    return (slopes_NBTD * deltas_NBTD).mT @ before_NBTD


def left_vectors(gradient_NDD: Tensor, k: int) -> Tensor:
    """The k leading left singular vectors of a gradient, (N, D, k).

    NaN for a member whose gradient is not finite, on which LAPACK would raise, and beyond the rank
    of a gradient (σ_i ≤ D ε σ_1), where rounding would choose. Raises ValueError for k out of
    range.

    Example:
        >>> left_vectors(torch.diag(torch.tensor([2.0, 3.0, 0.0]))[None], 2)[0].abs().tolist()
        [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
        >>> bool(left_vectors(torch.zeros(1, 3, 3), 2).isnan().all())  # a gradient that vanished
        True
    """
    D = min(gradient_NDD.shape[-2:])
    if not 1 <= k <= D:
        raise ValueError(f"k must be between 1 and {D}, got {k}")
    is_finite = torch.isfinite(gradient_NDD).all(-1).all(-1)[:, None, None]
    U, sizes, _ = torch.linalg.svd(torch.where(is_finite, gradient_NDD, 0.0))
    floor = D * torch.finfo(sizes.dtype).eps * sizes[:, 0]
    is_vector = (sizes[:, :k] > floor[:, None])[:, None]
    return torch.where(is_finite & is_vector, U[..., :k], torch.nan)


def alignment(basis: Tensor, vectors: Tensor) -> Tensor:
    """A = (1/k) ‖Bᵀ U‖_F²: the share of k orthonormal vectors that lies in the span of m others.

    Args:
        basis: (…, D, m), independent columns; they are orthonormalised.
        vectors: (…, D, k) orthonormal.

    (…,) between 0 and 1; m/D on average for a random span. NaN in, NaN out, and NaN for columns
    that depend on each other to rounding, whose span is none of m directions.

    Example:
        >>> eye = torch.eye(4)
        >>> alignment(eye[:, :2], eye[:, 1:3]).item()
        0.5
    """
    is_finite = torch.isfinite(basis).all(-1).all(-1)[..., None, None]
    Q, R = torch.linalg.qr(torch.where(is_finite, basis, 0.0))
    share = (Q.mT @ vectors).square().sum((-2, -1)) / vectors.shape[-1]
    floor = basis.shape[-2] * torch.finfo(basis.dtype).eps * torch.linalg.vector_norm(R, dim=-2)
    spans = (R.diagonal(dim1=-2, dim2=-1).abs() > floor).all(-1)
    return torch.where(is_finite[..., 0, 0] & spans, share, torch.nan)


def _check_steps(maps: Sequence[Map | Any], pushes_NBTD: Tensor) -> None:
    if pushes_NBTD.ndim != 4 or pushes_NBTD.shape[2] != len(maps):
        raise ValueError(
            f"pushes must be (N, B, T, D) with one step for each of the {len(maps)} maps; got "
            f"{tuple(pushes_NBTD.shape)}"
        )
