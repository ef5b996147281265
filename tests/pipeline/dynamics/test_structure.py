"""Contraction and symplecticity: theorems on random matrices, schemes that keep or break them."""

import doctest
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dynamics import structure
from pipeline.dynamics.structure import (
    contraction,
    euler_step_limit,
    log_norm,
    spectral_abscissa,
    symplectic_defect,
    symplectic_form,
)

torch.set_num_threads(1)
F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def sech2(x):
    return 1 / torch.cosh(x) ** 2


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 12), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 10**6))
def test_log_norm_is_at_least_the_spectral_abscissa(size, scale, seed):
    M = scale * normal(5, size, size, seed=seed)
    gap = log_norm(M) - spectral_abscissa(M)
    assert (gap >= -1e-12 * scale * size).all()
    # Both ends of −μ(−M) ≤ Re λ ≤ μ(M), and equality for symmetric matrices.
    lowest = torch.linalg.eigvals(M).real.amin(-1)
    assert (-log_norm(-M) <= lowest + 1e-12 * scale * size).all()
    symmetric = M + M.mT
    torch.testing.assert_close(
        log_norm(symmetric), spectral_abscissa(symmetric), rtol=1e-10, atol=1e-12 * scale
    )


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_log_norm_is_the_derivative_of_the_norm_and_subadditive(size, seed):
    """μ(M) = lim (‖I + hM‖ − 1)/h (Dahlquist 1958), ‖e^{Mt}‖ ≤ e^{μt}, μ(A+B) ≤ μ(A) + μ(B)."""
    A, B = normal(2, size, size, seed=seed)
    h = 1e-6
    limit = (torch.linalg.matrix_norm(torch.eye(size, dtype=F64) + h * A, ord=2) - 1) / h
    assert float(log_norm(A)) == pytest.approx(float(limit), abs=1e-4)  # the limit's own O(h)
    for t in (0.1, 1.0, 3.0):
        growth = torch.linalg.matrix_norm(torch.linalg.matrix_exp(A * t), ord=2)
        assert growth.log() <= log_norm(A) * t + 1e-9
    assert log_norm(A + B) <= log_norm(A) + log_norm(B) + 1e-12
    shift = 1.7 * torch.eye(size, dtype=F64)
    torch.testing.assert_close(log_norm(A + shift), log_norm(A) + 1.7)


def test_log_norm_is_the_one_sided_lipschitz_constant():
    """sup over pairs of ⟨f(y) − f(x), y − x⟩/‖y − x‖² for a linear f is attained on μ's vector."""
    M = normal(5, 5, seed=1)
    pairs = normal(20000, 5, seed=2)
    quotient = ((pairs @ M.T) * pairs).sum(-1) / pairs.square().sum(-1)
    assert quotient.max() <= log_norm(M) + 1e-12
    vector = torch.linalg.eigh((M + M.T) / 2).eigenvectors[:, -1]
    torch.testing.assert_close(vector @ M @ vector, log_norm(M))


def test_matrices_of_a_batch_do_not_mix_and_nan_stays_where_it_is():
    M = normal(3, 4, 6, 6)
    torch.testing.assert_close(log_norm(M)[1, 2], log_norm(M[1, 2]))
    torch.testing.assert_close(spectral_abscissa(M)[1, 2], spectral_abscissa(M[1, 2]))
    torch.testing.assert_close(symplectic_defect(M)[1, 2], symplectic_defect(M[1, 2]))
    poisoned = M.clone()
    poisoned[0, 1, 2, 3] = math.nan
    for function in (log_norm, spectral_abscissa, symplectic_defect, euler_step_limit):
        before, after = function(M), function(poisoned)
        assert torch.isnan(after).sum() == 1
        keep = ~torch.isnan(after)
        assert torch.equal(before[keep], after[keep])


def hamiltonian_net(size=3, seed=3):
    """q̇ = A1ᵀ tanh(A1 p + b1), ṗ = −A2ᵀ tanh(A2 q + b2), whose energy is a sum of log cosh."""
    A, b = normal(2, size, size, seed=seed), normal(2, size, seed=seed + 1)
    return (
        lambda p: A[0].T @ torch.tanh(A[0] @ p + b[0]),
        lambda q: -A[1].T @ torch.tanh(A[1] @ q + b[1]),
    )


def explicit_euler(velocity, force, q, p, h):
    return q + h * velocity(p), p + h * force(q)


def symplectic_euler(velocity, force, q, p, h):
    q = q + h * velocity(p)
    return q, p + h * force(q)


def leapfrog(velocity, force, q, p, h):
    p = p + h / 2 * force(q)
    q = q + h * velocity(p)
    return q, p + h / 2 * force(q)


def step_jacobian(scheme, h, steps, seed=5):
    size = 3
    velocity, force = hamiltonian_net(size)

    def trajectory(z):
        q, p = z[:size], z[size:]
        for _ in range(steps):
            q, p = scheme(velocity, force, q, p, h)
        return torch.cat([q, p])

    return torch.autograd.functional.jacobian(trajectory, normal(2 * size, seed=seed))


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("scheme", [symplectic_euler, leapfrog])
def test_symplectic_schemes_have_no_defect_and_paired_exponents(scheme, steps):
    J = step_jacobian(scheme, 0.1, steps)
    size = float(torch.linalg.matrix_norm(J)) ** 2
    assert float(symplectic_defect(J)) < 1e-12 * max(1.0, size / 6)
    logs = torch.linalg.svdvals(J).log()
    torch.testing.assert_close(logs, -logs.flip(0), atol=1e-10, rtol=0)


def test_explicit_euler_is_not_symplectic_and_its_defect_is_of_second_order():
    defects = [float(symplectic_defect(step_jacobian(explicit_euler, h, 1))) for h in (0.1, 0.05)]
    assert defects[1] > 1e-3
    assert defects[0] / defects[1] == pytest.approx(4, rel=1e-6)


def test_symplectic_form_and_another_order_of_the_state():
    Omega = symplectic_form(6)
    torch.testing.assert_close(Omega @ Omega, -torch.eye(6, dtype=F64))
    J = step_jacobian(leapfrog, 0.3, 1)
    pairs = torch.tensor([0, 3, 1, 4, 2, 5])  # q1 p1 q2 p2 q3 p3
    permuted = J[pairs][:, pairs]
    assert float(symplectic_defect(permuted)) > 1e-2
    assert float(symplectic_defect(permuted, Omega[pairs][:, pairs])) < 1e-12


def gradient_flow(A, b, z):
    """Df of f = −Aᵀ tanh(A z + b)."""
    return -A.mT @ (sech2((A @ z[..., None])[..., 0] + b)[..., None] * A)


def test_gradient_flow_steps_within_the_limit_never_expand():
    """1,000 random (A, b, z): ‖I + hM‖ ≤ 1 up to 2/‖A‖², and ≤ e^{hμ(M)} up to half of it."""
    A, b, z = normal(1000, 4, 4, seed=6), normal(1000, 4, seed=7), normal(1000, 4, seed=8)
    M = gradient_flow(A, b, z)
    limit = euler_step_limit(A)
    sigma_min = torch.linalg.svdvals(A)[:, -1]
    assert (log_norm(M) <= 1e-12).all()
    assert (log_norm(M) >= -(torch.linalg.svdvals(A)[:, 0] ** 2)).all()
    # ν is the supremum over z, which saturated units bring up from −σ_min².
    assert (log_norm(gradient_flow(A, 0 * b, 0 * z)) <= -(sigma_min**2) + 1e-9).all()
    for share in (0.1, 0.5, 1.0):
        h = (share * limit)[:, None, None]
        S = torch.eye(4, dtype=F64) + h * M
        assert (torch.linalg.matrix_norm(S, ord=2) <= 1 + 1e-12).all()
        kept = contraction(S[:, None], M[:, None], h[:, :, 0]).is_kept
        if share <= 0.5:
            assert kept.all()
    # The limit is tight: at z with saturation 0, a step of 1.01 limits expands.
    still = gradient_flow(A, 0 * b, 0 * z)
    S = torch.eye(4, dtype=F64) + (1.01 * limit)[:, None, None] * still
    assert (torch.linalg.matrix_norm(S, ord=2) > 1).all()
    # Between half the limit and the limit the sharper law may fail: the half is no idle caution.
    S = torch.eye(4, dtype=F64) + limit[:, None, None] * still
    assert not contraction(S[:, None], still[:, None], limit[:, None]).is_kept.any()


def test_trained_nets_that_outrun_the_limit_are_caught():
    """20 layers: steps within the limit keep the bound, ten times longer ones expand."""
    A, b = 2 * normal(20, 3, 3, seed=9), normal(20, 3, seed=10)
    z0 = normal(50, 3, seed=11)
    found = {}
    for share in (0.5, 10.0):
        z, steps, fields, sizes = z0, [], [], []
        for A_k, b_k in zip(A, b, strict=True):
            h = share * float(euler_step_limit(A_k))
            M = gradient_flow(A_k, b_k, z)
            fields.append(M)
            steps.append(torch.eye(3, dtype=F64) + h * M)
            sizes.append(h)
            z = z - h * torch.tanh(z @ A_k.T + b_k) @ A_k
        h_k = torch.tensor(sizes, dtype=F64)
        found[share] = contraction(torch.stack(steps, 1), torch.stack(fields, 1), h_k)
    assert found[0.5].is_kept.all()
    assert (found[0.5].ftle <= 1e-12).all()
    assert not found[10.0].is_kept.all()
    assert (found[10.0].bound <= 1e-12).all()
    assert found[10.0].ftle.max() > 0


def test_growth_is_that_of_the_product_and_long_products_stay_in_range():
    S, M = normal(7, 5, 4, 4, seed=12), normal(7, 5, 4, 4, seed=13)
    h = torch.rand(7, 5, dtype=F64, generator=torch.Generator().manual_seed(14)) + 0.1
    found = contraction(S, M, h)
    product = S[:, 4] @ S[:, 3] @ S[:, 2] @ S[:, 1] @ S[:, 0]
    expected = torch.linalg.svdvals(product)[:, 0].log() / h.sum(1)
    torch.testing.assert_close(found.ftle, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.bound, (h * log_norm(M)).sum(1) / h.sum(1))
    large = (1e3 * torch.eye(2, dtype=F64)).expand(500, 2, 2)
    torch.testing.assert_close(
        contraction(large, large, 1.0).ftle, torch.tensor(math.log(1e3), dtype=F64)
    )


def test_exact_flows_keep_the_bound():
    """Steps e^{hM} solve ż = M z exactly, so that the theorem applies to them."""
    M = normal(200, 10, 4, 4, seed=15)
    assert contraction(torch.linalg.matrix_exp(0.7 * M), M, 0.7).is_kept.all()


def test_vanished_and_poisoned_products():
    zero = torch.zeros(1, 2, 2, dtype=F64)
    found = contraction(zero, -torch.eye(2, dtype=F64)[None], 1.0)
    assert float(found.ftle) == -math.inf
    assert bool(found.is_kept)
    steps = torch.stack([torch.eye(2, dtype=F64)[None], math.nan * zero])
    found = contraction(steps, torch.zeros(2, 1, 2, 2, dtype=F64), 1.0)
    assert found.is_kept.tolist() == [True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_norm(torch.ones(2, 3)), "matrices must be"),
        (lambda: log_norm(torch.ones(2, 2).half()), "float32 or float64"),
        (lambda: spectral_abscissa(torch.ones(3)), "matrices must be"),
        (lambda: symplectic_form(3), "even"),
        (lambda: symplectic_defect(torch.eye(3)), "even"),
        (lambda: symplectic_defect(torch.eye(2), torch.eye(2)), "antisymmetric"),
        (lambda: symplectic_defect(torch.eye(2), torch.zeros(2, 2)), "invertible"),
        (lambda: euler_step_limit(torch.ones(3)), "weights must be"),
        (lambda: contraction(torch.eye(2), torch.eye(2), 1.0), "must both be"),
        (lambda: contraction(torch.eye(2)[None], torch.eye(2)[None], 0.0), "positive"),
    ],
)
def test_errors_name_the_law(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_weights_no_limit():
    assert float(euler_step_limit(torch.zeros(2, 3))) == math.inf


def test_examples_run():
    result = doctest.testmod(structure)
    assert result.attempted > 0
    assert result.failed == 0
