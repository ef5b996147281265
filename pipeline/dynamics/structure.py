"""What a network's maps preserve: contraction, through logarithmic norms, and symplecticity.

For a field ż = f(z) the logarithmic norm ν of Df bounds how fast two solutions part,
‖z_2(t) − z_1(t)‖ ≤ e^{νt} ‖z_2(0) − z_1(0)‖ (Dahlquist 1958; Owren 2020), and thereby every
finite-time exponent. A numerical step keeps such a law only if it is short or built for it.

All take matrices (…, D, D), float32 or float64, and work in float64. NaN in a matrix makes its
result NaN and leaves the others alone.

Shapes: … any leading axes, D state, K steps or layers.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def log_norm(matrices: Tensor) -> Tensor:
    """μ_2(M) = λ_max((M + Mᵀ)/2), (…) (Dahlquist 1958), one over time for a field's Df.

    The supremum over z of μ_2(Df(z)) is the one-sided Lipschitz constant ν of f,
    ⟨f(z_2) − f(z_1), z_2 − z_1⟩ ≤ ν ‖z_2 − z_1‖². Never below `spectral_abscissa`. Raises
    ValueError for matrices that are not square or not float32 or float64.

    >>> log_norm(torch.tensor([[-1.0, 4.0], [0.0, -1.0]])).item()
    1.0
    """
    M = _square(matrices)
    safe, is_finite = _finite(M)
    largest = torch.linalg.eigvalsh((safe + safe.mT) / 2)[..., -1]
    return torch.where(is_finite, largest, math.nan)


def spectral_abscissa(matrices: Tensor) -> Tensor:
    """α(M) = max Re λ_i(M), (…): growth of ż = M z for t → ∞, one over time.

    The gap `log_norm` − α is growth that eigenvalues do not show; 0 for normal matrices. Raises
    as `log_norm` does.

    >>> spectral_abscissa(torch.tensor([[-1.0, 4.0], [0.0, -1.0]])).item()
    -1.0
    """
    M = _square(matrices)
    safe, is_finite = _finite(M)
    largest: Tensor = torch.linalg.eigvals(safe).real.amax(-1)
    return torch.where(is_finite, largest, math.nan)


def symplectic_form(size: int) -> Tensor:
    """Ω = [[0, I], [−I, 0]], (size, size) float64, for states (q, p) with all q before all p.

    Raises ValueError unless `size` is even and positive.

    >>> symplectic_form(2).tolist()
    [[0.0, 1.0], [-1.0, 0.0]]
    """
    if size < 2 or size % 2:
        raise ValueError(f"a symplectic form needs an even, positive size, got {size}")
    identity = torch.eye(size // 2, dtype=torch.float64)
    zero = torch.zeros_like(identity)
    return torch.cat([torch.cat([zero, identity], 1), torch.cat([-identity, zero], 1)])


def symplectic_defect(jacobians: Tensor, form: Tensor | None = None) -> Tensor:
    """‖JᵀΩJ − Ω‖_F, (…), 0 for a symplectic map, whose exponents pair as ±λ.

    Args:
        jacobians: (…, D, D) of one step, or of a whole trajectory.
        form: (D, D), antisymmetric and invertible; None for `symplectic_form`.

    Raises ValueError as `log_norm` does, for odd D, and for a form that is not antisymmetric and
    invertible.

    >>> shear = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    >>> symplectic_defect(torch.stack([shear, 2 * shear])).round(decimals=9).tolist()
    [0.0, 4.242640687]
    """
    J = _square(jacobians)
    D = J.shape[-1]
    if form is None:
        Omega = symplectic_form(D).to(J.device)
    else:
        Omega = form.to(device=J.device, dtype=torch.float64)
        if Omega.shape != (D, D) or not torch.equal(Omega, -Omega.mT):
            raise ValueError(f"form must be ({D}, {D}) and antisymmetric")
        if torch.linalg.matrix_rank(Omega) < D:
            raise ValueError("form must be invertible, which takes an even D")
    defect: Tensor = torch.linalg.matrix_norm(J.mT @ Omega @ J - Omega)
    return defect


def euler_step_limit(weights: Tensor) -> Tensor:
    """2/‖A‖_2², (…): longest explicit Euler step that keeps a gradient flow non-expansive.

    For ż = −Aᵀσ(A z + b) with 0 ≤ σ′ ≤ 1, whose flow never expands, the step z + h f(z) has the
    Jacobian I − h AᵀΣ′A with spectrum in [1 − h‖A‖², 1] (cf. Owren 2020). Half of it also keeps
    the sharper law ‖I + hM‖ ≤ e^{hν} with ν = μ_2(M), as then no eigenvalue is negative.

    Args:
        weights: A, (…, m, D), any m.

    inf for A = 0. Raises ValueError for other than real floating matrices.

    >>> euler_step_limit(torch.tensor([[2.0, 0.0], [0.0, 1.0]])).item()
    0.5
    """
    A = _real(weights)
    if A.ndim < 2 or 0 in A.shape[-2:]:
        raise ValueError(f"weights must be (…, m, D) and not empty, got {tuple(A.shape)}")
    safe, is_finite = _finite(A)
    return torch.where(is_finite, 2 / torch.linalg.matrix_norm(safe, ord=2).square(), math.nan)


class Contraction(NamedTuple):
    """Growth along trajectories beside the bound from logarithmic norms; each (…), over time.

    ftle: log σ_max(S_K … S_1)/t with t = Σ h_k. bound: Σ h_k μ_2(M_k)/t. is_kept: ftle ≤ bound.
    """

    ftle: Tensor
    bound: Tensor
    is_kept: Tensor


def contraction(steps: Tensor, fields: Tensor, sizes: Tensor | float) -> Contraction:
    """Does a discretised flow keep its contraction bound, max FTLE ≤ mean log-norm (Owren 2020)?

    The bound is a theorem about the flow; steps that are too long break it, and training makes
    use of that. Holds along these trajectories: the theorem for all takes the supremum of μ_2.

    Args:
        steps: (…, K, D, D) Jacobians S_k of the steps taken; explicit Euler's are I + h M_k.
        fields: (…, K, D, D) Jacobians M_k = Df of the field at the states the steps start from.
        sizes: h_k > 0, a number or (…, K).

    is_kept allows 1e-9 times the sizes of ftle and bound for rounding, and is False for NaN.
    Raises ValueError as `log_norm` does, for steps and fields of different shapes, and for sizes
    that are not positive.

    >>> M = -torch.eye(2).expand(3, 2, 2)
    >>> contraction(torch.eye(2) + 0.5 * M, M, 0.5).is_kept.item()
    True
    >>> contraction(torch.eye(2) + 3.0 * M, M, 3.0).is_kept.item()
    False
    """
    S, M = _square(steps), _square(fields)
    if S.shape != M.shape or S.ndim < 3 or S.shape[-3] == 0:
        raise ValueError(
            "steps and fields must both be (…, K, D, D) with K ≥ 1, got "
            f"{tuple(steps.shape)} and {tuple(fields.shape)}"
        )
    h = torch.as_tensor(sizes, dtype=torch.float64, device=S.device).expand(S.shape[:-2])
    if not (h > 0).all():
        raise ValueError("sizes are lengths of time and must be positive")
    time = h.sum(-1)
    product = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)
    log_scale = torch.zeros(S.shape[:-3], dtype=S.dtype, device=S.device)
    for S_k in S.unbind(-3):
        # Products of many steps leave the range of float64, so each is brought back to 1.
        product = S_k @ product
        size = product.abs().amax((-2, -1))
        size = torch.where(size == 0, 1.0, size)
        product = product / size[..., None, None]
        log_scale = log_scale + size.log()
    safe, is_finite = _finite(product)
    sigma = torch.linalg.matrix_norm(safe, ord=2)
    ftle = torch.where(is_finite, (sigma.log() + log_scale) / time, math.nan)
    bound = (h * log_norm(M)).sum(-1) / time
    # −inf, a product that vanished, is below every bound.
    rounding = 1e-9 * (ftle.abs().nan_to_num(posinf=0.0) + bound.abs()) + 1e-12
    return Contraction(ftle, bound, ftle <= bound + rounding)


def _real(matrices: Tensor) -> Tensor:
    if matrices.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"matrices must be float32 or float64, got {matrices.dtype}")
    return matrices.detach().double()


def _square(matrices: Tensor) -> Tensor:
    M = _real(matrices)
    if M.ndim < 2 or M.shape[-1] != M.shape[-2] or M.shape[-1] == 0:
        raise ValueError(f"matrices must be (…, D, D) with D ≥ 1, got {tuple(M.shape)}")
    return M


def _finite(M: Tensor) -> tuple[Tensor, Tensor]:
    """M with 0 for matrices that hold NaN or inf, on which LAPACK raises, and which are sound."""
    is_finite = torch.isfinite(M).all(-1).all(-1)
    return torch.where(is_finite[..., None, None], M, 0.0), is_finite
