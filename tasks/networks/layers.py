"""Pieces that the networks share, each with a leading member axis: start weights, linear.

No operation reduces over members, and member n draws from its own generator alone, so that a
member's numbers do not depend on its company.

Shapes: N members, B examples, I inputs, O outputs, D state, K tangents.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tasks.base import per_member_fields

_LEAST_PADDED = 2**18

Initialiser = Literal["uniform", "gaussian", "orthogonal", "glorot"]


def common_settings(configs: Sequence[Any]) -> Any:
    """The first of `configs`, once all are seen to agree in what shapes the arithmetic.

    Raises ValueError where two members of one population differ in a field not marked PerMember.
    """
    if not configs:
        raise ValueError("a population needs at least one config, got none")
    first = configs[0]
    free = per_member_fields(type(first))
    for member, config in enumerate(configs):
        for field in fields(first):
            ours, theirs = getattr(first, field.name), getattr(config, field.name)
            if field.name not in free and ours != theirs:
                raise ValueError(
                    f"{type(first).__qualname__}.{field.name}: members of one population must "
                    f"agree, member 0 has {ours!r} and member {member} has {theirs!r}"
                )
    return first


def initial_scales(configs: Sequence[Any], units: int) -> list[float]:
    """`init_scale` of every member; where it is None, 1/√units for uniform and 1 for the others."""
    usual = 1 / math.sqrt(units) if configs[0].init == "uniform" else 1.0
    return [usual if c.init_scale is None else float(c.init_scale) for c in configs]


def register_members(
    network: nn.Module,
    drawn: Iterable[Mapping[str, Tensor]],
    dtype: torch.dtype,
    device: str | torch.device,
) -> None:
    """Makes every member's start weights, given by name, parameters (N, …) of `network`."""
    members = list(drawn)
    for name in members[0]:
        stacked = torch.stack([member[name] for member in members])
        network.register_parameter(name, nn.Parameter(stacked.to(dtype=dtype, device=device)))


def draw_weight(
    kind: Initialiser,
    num_outputs: int,
    num_inputs: int,
    scale: float,
    generator: torch.Generator,
) -> Tensor:
    """One weight matrix (O, I), float64, drawn with `generator`.

    The meaning of `scale` by kind: uniform, the bound p of U(−p, p); gaussian, σ_w of
    N(0, σ_w²/I); orthogonal, the factor on a Haar-random matrix with orthonormal rows or columns
    (whichever are fewer); glorot, the factor on U(±√(6/(I + O))) (Glorot & Bengio 2010, eq. 16).
    """
    shape = (num_outputs, num_inputs)
    if kind == "uniform":
        return _uniform(shape, scale, generator)
    if kind == "glorot":
        return _uniform(shape, scale * math.sqrt(6 / (num_inputs + num_outputs)), generator)
    normal = torch.randn(shape, dtype=torch.float64, generator=generator)
    if kind == "gaussian":
        return normal * (scale / math.sqrt(num_inputs))
    tall = normal if num_outputs >= num_inputs else normal.mT
    Q, R = torch.linalg.qr(tall)
    # Without the sign of R's diagonal, Q would not be Haar-distributed (Mezzadri 2007).
    haar: Tensor = Q * torch.ones_like(R.diagonal()).copysign(R.diagonal()) * scale
    return haar if num_outputs >= num_inputs else haar.mT


def draw_bias(
    kind: Initialiser, num_outputs: int, scale: float, generator: torch.Generator
) -> Tensor:
    """One bias (O,), float64: U(−scale, scale) for uniform, else N(0, scale²)."""
    if kind == "uniform":
        return _uniform((num_outputs,), scale, generator)
    return scale * torch.randn(num_outputs, dtype=torch.float64, generator=generator)


def _uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> Tensor:
    return bound * (2 * torch.rand(shape, dtype=torch.float64, generator=generator) - 1)


def linear(x_NBI: Tensor, weight_NOI: Tensor, bias_NO: Tensor | None) -> Tensor:
    """W x + b for every member, (N, B, O). B may stand for several axes."""
    flat_NMI = x_NBI.flatten(1, -2)
    if bias_NO is None:
        y_NMO = torch.bmm(flat_NMI, weight_NOI.mT)
    else:
        y_NMO = torch.baddbmm(bias_NO.unsqueeze(1), flat_NMI, weight_NOI.mT)
    return y_NMO.view(*x_NBI.shape[:-1], weight_NOI.shape[1])


def matmul_states(h_NBH: Tensor, U_NGH: Tensor) -> Tensor:
    """h Uᵀ (N, B, G) of every member.

    Where U is too large for the cache, MKL takes longer for 10 rows in float64 than for 12: there
    one or two that are short of a multiple of 4 are filled up with zeros.
    """
    B = h_NBH.shape[1]
    missing = -B % 4
    is_slow = h_NBH.device.type == "cpu" and h_NBH.dtype == torch.float64 and B > 4
    if is_slow and missing in (1, 2) and U_NGH[0].numel() >= _LEAST_PADDED:
        h_NBH = pad(h_NBH, (0, 0, 0, missing))
    return torch.bmm(h_NBH, U_NGH.mT)[:, :B]


def matmul_tangents(W_NED: Tensor, Q_NBDK: Tensor) -> Tensor:
    """W Q as (N, B, E, K), by one matrix product a member that all sequences share.

    Frames are kept as `torch.linalg.qr` returns them, columns contiguous, so that the flattening
    to (N, B·K, D) is a view and the elementwise work that follows runs along memory.
    """
    Q_NBKD = Q_NBDK.mT
    N, B, K, D = Q_NBKD.shape
    P_NME = torch.bmm(Q_NBKD.reshape(N, B * K, D), W_NED.mT)
    return P_NME.view(N, B, K, W_NED.shape[1]).mT


def log_abs_det(U_NHH: Tensor) -> Tensor:
    """ln|det U| (N,) of every member, float64.

    One after the other: batches of LU on several CPU threads come out wrong (torch 2.13 with MKL,
    from about 200 × 200 on).
    """
    return torch.stack([torch.linalg.slogdet(U).logabsdet for U in U_NHH.double()])


def sech2(x: Tensor) -> Tensor:
    """1 − tanh² x without its cancellation, which returns exactly 0 from |x| = 19 on."""
    return torch.cosh(x).reciprocal().square()


def relu_slope(x: Tensor) -> Tensor:
    """1 where x > 0, 0 elsewhere, and NaN for NaN, which a comparison would call a dead unit."""
    return torch.where(x.isnan(), x, (x > 0).to(x.dtype))
