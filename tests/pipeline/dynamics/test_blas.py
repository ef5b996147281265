"""Triangular products, quotients and eliminations in place, against torch's own."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dynamics import blas
from tasks.base import generator_for

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator_for("blas", seed), dtype=torch.float64).to(dtype)


def triangle(K, dtype):
    """Well-conditioned, unit lower, given transposed; what must not be read is not a number."""
    L_KK = (random(K, K, seed=1, dtype=dtype) / K).tril(-1)
    garbage = torch.full((K, K), float("nan"), dtype=dtype).triu()
    return (L_KK + garbage).mT.contiguous(), L_KK + torch.eye(K, dtype=dtype)


sizes = st.integers(1, 40)
# Up to where quotients are taken by halves of halves.
shapes = given(K=sizes | st.integers(120, 300), E=sizes, padding=st.integers(0, 3))
dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE))


@dtypes
@shapes
@settings(max_examples=30, deadline=None)
def test_product_and_quotient_with_a_unit_triangle(dtype, K, E, padding):
    L_KK, L = triangle(K, dtype)
    around = random(K, E + padding, dtype=dtype)
    X_KE = around[:, :E]
    before, beside = X_KE.clone(), around[:, E:].clone()
    blas.multiply(X_KE, L_KK)
    torch.testing.assert_close(X_KE.mT, before.mT @ L, atol=TOLERANCE[dtype], rtol=0)
    blas.divide_unit(X_KE, L_KK)
    torch.testing.assert_close(X_KE, before, atol=TOLERANCE[dtype], rtol=0)
    assert torch.equal(around[:, E:], beside)


@dtypes
@shapes
@settings(max_examples=30, deadline=None)
def test_quotient_with_an_upper_triangle(dtype, K, E, padding):
    R = (random(K, K, seed=2, dtype=dtype) / K).triu(1) + 2 * torch.eye(K, dtype=dtype)
    R_KK = (R + torch.full((K, K), float("nan"), dtype=dtype).tril(-1)).mT.contiguous()
    X_KE = random(K, E + padding, dtype=dtype)[:, :E]
    before = X_KE.clone()
    blas.divide(X_KE, R_KK)
    torch.testing.assert_close(X_KE.mT @ R, before.mT, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("K", [50, 200])
def test_a_quotient_by_a_graded_triangle_keeps_its_digits(K):
    # As elimination leaves them: rows that shrink by e^12, and products as exact as solving.
    grade = torch.linspace(0, -12, K, dtype=torch.float64).exp()
    V_KE = (random(K, K, seed=3) * grade[:, None]).mT.contiguous()
    blas.eliminate(V_KE)
    R = V_KE.mT.triu()
    X_KE = random(K, 30)
    expected = torch.linalg.solve_triangular(R, X_KE.mT, upper=True, left=False)
    before = X_KE.clone()
    blas.divide(X_KE, V_KE)
    size = torch.linalg.vector_norm
    errors = [size(found @ R - before.mT) for found in (X_KE.mT, expected)]
    assert errors[0] < 30 * errors[1] + 1e-12


@pytest.mark.parametrize("K", [3, 200])
def test_a_quotient_by_a_singular_triangle_is_no_number(K):
    R = torch.eye(K, dtype=torch.float64)
    R[K // 2, K // 2] = 0
    X_KE = torch.ones(K, 2, dtype=torch.float64)
    blas.divide(X_KE, R)
    assert not X_KE[K // 2].isfinite().any()
    assert torch.equal(X_KE[: K // 2], torch.ones(K // 2, 2, dtype=torch.float64))


@dtypes
@given(K=sizes | st.integers(120, 300), E=sizes | st.integers(120, 400), padding=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_elimination_is_that_of_torch(dtype, K, E, padding):
    V_KE = random(K, E + padding, dtype=dtype)[:, :E]
    expected = torch.linalg.lu_factor_ex(V_KE.mT.contiguous())
    exchanged = blas.eliminate(V_KE)
    assert torch.equal(exchanged, expected.pivots.long() - 1)
    torch.testing.assert_close(V_KE.mT, expected.LU, atol=TOLERANCE[dtype], rtol=1e-3)


@pytest.mark.parametrize("K", [3, 300])
def test_not_a_number_stays_in_range_and_in_its_matrix(K):
    for V_KE in (torch.full((K, 2 * K), float("nan")), random(K, 2 * K)):
        V_KE[K // 2] = float("nan")
        exchanged = blas.eliminate(V_KE)
        assert ((exchanged >= torch.arange(K)) & (exchanged < 2 * K)).all()
        assert V_KE.isnan().any()


@dtypes
def test_cholesky(dtype):
    A = random(30, 50, dtype=dtype)
    gram = A @ A.mT
    packed = gram + torch.full((30, 30), float("nan"), dtype=dtype).triu(1)
    assert blas.cholesky(packed)
    torch.testing.assert_close(
        packed.tril(), torch.linalg.cholesky(gram), atol=TOLERANCE[dtype], rtol=1e-4
    )
    assert not blas.cholesky(-gram)
    assert not blas.cholesky(torch.full((3, 3), float("nan"), dtype=dtype))


def test_columns_must_lie_along_memory():
    with pytest.raises(ValueError, match="along memory, got strides"):
        blas.eliminate(random(4, 4).mT)


CHILD = """
import ctypes, torch
from pipeline.dynamics import blas, routines
library = routines._openblas()
assert library is not None
seen = library.scipy_openblas_get_num_threads
before = seen()
with routines.threads(2):
    assert seen() == 2
    V = torch.randn(600, 600, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    packed = V.clone()
    exchanged = blas.eliminate(packed)
    order = list(range(600))
    for i, j in enumerate(exchanged.tolist()):
        order[i], order[j] = order[j], order[i]
    L, R = packed.mT.tril(-1) + torch.eye(600), packed.mT.triu()
    assert (V.mT[order] - L @ R).abs().max() < 1e-10
    with routines.threads(1):
        assert seen() == 1
    assert seen() == 2
assert seen() == before
"""


def test_threads_are_as_many_as_asked_for_and_do_not_change_the_result():
    """In a process of its own: how many threads there are is the whole process's."""
    subprocess.run([sys.executable, "-c", CHILD], check=True, timeout=120)
