"""Factorisations of frames: V = F R by each method, and what bad matrices do to them."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dynamics import orthonormal
from pipeline.dynamics.orthonormal import (
    cholesky_qr,
    eliminate,
    factorise,
    inverse,
    log_gauge,
    order_of,
    orthonormalise,
    pick,
    squares_above,
    triangularise,
    write_out,
)
from pipeline.dynamics.propagate import carry
from pipeline.dynamics.steps import GivenMaps
from tasks.base import generator_for

F64 = torch.float64


def frames(num_rows, k, spread=0.0, dtype=F64, seed=0):
    """(2, 3, D, K) whose columns lean on each other by exp(spread)."""
    g = generator_for("frames", num_rows, k, seed)
    V = torch.randn((2, 3, num_rows, k), generator=g, dtype=F64)
    R = torch.randn((2, 3, k, k), generator=g, dtype=F64).triu(1)
    R = R + torch.diag(torch.linspace(0, -spread, k, dtype=F64).exp())
    return (torch.linalg.qr(V).Q @ R).to(dtype)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    method=st.sampled_from(["householder", "cholesky", "lu"]),
    seed=st.integers(0, 50),
)
def test_every_method_spans_the_same_flag(rows, columns, method, seed):
    k = min(rows, columns)
    V = frames(rows, k, seed=seed)
    Q, logs, depth = factorise(V, method)
    assert Q.shape == V.shape
    reference = orthonormalise(V)
    # Leading columns span leading columns: Qᵀ F is upper triangular.
    triangle = reference.frame.mT @ Q
    torch.testing.assert_close(triangle, triangle.triu(), atol=1e-8, rtol=0)
    torch.testing.assert_close(logs + log_gauge(Q), reference.logs, atol=1e-8, rtol=0)
    assert (depth <= 1e-12).all()
    if method != "lu":
        eye = torch.eye(k, dtype=F64).expand(2, 3, k, k)
        torch.testing.assert_close(Q.mT @ Q, eye, atol=1e-12, rtol=0)
        torch.testing.assert_close(logs, reference.logs, atol=1e-8, rtol=0)


def test_ill_conditioned_matrices_fall_back_one_by_one(monkeypatch):
    V = frames(12, 5)
    V[1, 2] = frames(12, 5, spread=30.0)[0, 0]
    seen = []
    householder = orthonormal.orthonormalise
    monkeypatch.setattr(
        orthonormal, "orthonormalise", lambda M: (seen.append(M.shape[0]), householder(M))[1]
    )
    Q, logs, _ = cholesky_qr(V)
    assert seen == [1]
    reference = householder(V)
    # Householder on the one; the others agree to rounding times their condition.
    torch.testing.assert_close(logs, reference.logs, atol=1e-10, rtol=0)
    eye = torch.eye(5, dtype=F64).expand(2, 3, 5, 5)
    torch.testing.assert_close(Q.mT @ Q, eye, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", ["householder", "cholesky", "lu"])
def test_singular_and_nan_matrices_stay_their_own_affair(method):
    V = frames(6, 3)
    healthy = factorise(V, method)
    V[0, 1] = float("nan")
    V[1, 0] = 0.0
    Q, logs, depth = factorise(V, method)
    assert logs[0, 1].isnan().all()
    assert torch.isneginf(logs[1, 0]).all()
    assert torch.isneginf(depth[1, 0]).all()
    # A full-rank frame goes on where a map annihilated.
    assert torch.linalg.matrix_rank(Q[1, 0]) == 3
    for n, b in ((0, 0), (0, 2), (1, 1), (1, 2)):
        torch.testing.assert_close(Q[n, b], healthy.frame[n, b], atol=1e-13, rtol=0)


def test_triangular_frames_are_well_conditioned():
    Q = triangularise(frames(128, 128)).frame
    assert Q.abs().max() == 1
    assert torch.linalg.cond(Q).max() < 1e4


@pytest.mark.parametrize(("rows", "k"), [(5, 5), (150, 130), (64, 64), (200, 65)])
def test_elimination_in_place_leaves_the_frame_and_its_order(rows, k):
    V = frames(rows, k)[0, 0]
    packed_KD = V.mT.contiguous()
    found = eliminate(packed_KD)
    L_KD = write_out(packed_KD.clone())
    assert torch.equal(L_KD, L_KD.triu())
    assert (L_KD.diagonal() == 1).all()
    assert torch.equal(L_KD.triu(1), packed_KD.triu(1))
    assert found.order.sort().values.tolist() == list(range(rows))
    F = L_KD.mT[inverse(found.order)]
    R = torch.linalg.lstsq(F, V).solution
    torch.testing.assert_close(F @ R, V, atol=1e-11, rtol=0)
    torch.testing.assert_close(R, packed_KD[:, :k].mT.triu(), atol=1e-10, rtol=0)
    size = torch.linalg.vector_norm(R, dim=0)
    torch.testing.assert_close(found.logs, R.diagonal().abs().log(), atol=1e-9, rtol=0)
    torch.testing.assert_close(found.depth, (R.diagonal().abs() / size).log(), atol=1e-9, rtol=0)
    ends = (inverse(found.order) + 1).clamp(max=k)
    known = log_gauge(F[None, None])
    stairs = log_gauge(F[None, None], ends[None, None])
    torch.testing.assert_close(stairs, known, atol=1e-11, rtol=0)


def test_gauges_of_badly_conditioned_stairs_go_through_qr():
    """All multipliers −1: the columns of L lean on each other as 2^−K."""
    K = 50
    L = (torch.eye(K, dtype=F64) - torch.ones(K, K, dtype=F64).tril(-1))[None, None]
    ends = torch.arange(1, K + 1)[None, None]
    known = torch.linalg.qr(L).R.diagonal(dim1=-2, dim2=-1).abs().log()
    assert known.min() < -25
    torch.testing.assert_close(log_gauge(L, ends), known, atol=1e-10, rtol=0)


@pytest.mark.parametrize("k", [3, 8])
@pytest.mark.parametrize("t_on", [1, 3, "auto"])
def test_methods_agree_on_a_whole_run(k, t_on):
    g = generator_for("run")
    J = [torch.randn((2, 8, 8), generator=g, dtype=F64) for _ in range(83)]
    frame = torch.linalg.qr(torch.randn((1, 1, 8, k), generator=g, dtype=F64)).Q
    found = {}
    for method in ("householder", "cholesky", "lu"):
        orbit = GivenMaps(J, 83, 2, 8, F64, frame.device)
        growth = carry(orbit, frame, warmup=11, steps=72, t_on=t_on, method=method)
        assert growth.block_steps_M.sum() == 72
        found[method] = growth.logs_NBKM.sum(-1) / 72
        eye = torch.eye(k, dtype=F64).expand(1, 2, k, k)
        Q = growth.frame_NBDK
        torch.testing.assert_close(Q.mT @ Q, eye, atol=1e-12, rtol=0)
    for method in ("cholesky", "lu"):
        torch.testing.assert_close(found[method], found["householder"], atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("steps", "blocks"),
    [(100, [20] * 5), (48, [24] * 2), (72, [24] * 3), (37, [16, 16, 5]), (10, [10])],
)
def test_blocks_of_triangular_frames_cut_a_run_evenly(steps, blocks):
    """Where 16 to 24 steps do: what is left over would be of no use to error estimates."""
    orbit = GivenMaps([torch.eye(3)] * (steps + 5), steps + 5, 1, 3, F64, torch.device("cpu"))
    frame = torch.eye(3, dtype=F64).expand(1, 1, 3, 3)
    growth = carry(orbit, frame, warmup=5, steps=steps, t_on="auto", method="lu")
    assert growth.block_steps_M.tolist() == blocks


def test_blocks_of_triangular_frames_are_those_of_orthonormal_ones():
    """The gauge: every time block is logged as if the frame at its ends were orthonormal."""
    g = generator_for("blocks")
    # Near the identity, so that sixteen steps without a QR lose few digits.
    J = [
        torch.eye(6).double() + 0.1 * torch.randn((1, 6, 6), generator=g, dtype=F64)
        for _ in range(64)
    ]
    frame = torch.linalg.qr(torch.randn((1, 1, 6, 6), generator=g, dtype=F64)).Q
    logs = {}
    for method, t_on in (("lu", 4), ("householder", 16)):
        orbit = GivenMaps(J, 64, 1, 6, F64, frame.device)
        logs[method] = carry(orbit, frame, warmup=0, steps=64, t_on=t_on, method=method)
    assert logs["lu"].block_steps_M.tolist() == [16] * 4
    assert logs["householder"].block_steps_M.tolist() == [16] * 4
    torch.testing.assert_close(
        logs["lu"].logs_NBKM, logs["householder"].logs_NBKM, atol=1e-9, rtol=0
    )


def test_the_choice_depends_on_device_and_size():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick(16, 1024, F64, cpu) == "householder"
    assert pick(1024, 1024, F64, cpu) == "lu"
    assert pick(16, 1024, F64, cuda) == "cholesky"
    assert pick(1024, 1024, F64, cuda) == "householder"


def test_growth_that_leaves_the_range_shortens_t_on():
    """exp(300) a step overflows float64 within three."""
    J = math.exp(300) * torch.eye(2, dtype=F64).expand(60, 1, 2, 2)
    orbit = GivenMaps(list(J), 60, 1, 2, F64, J.device)
    frame = torch.eye(2, dtype=F64).expand(1, 1, 2, 2)
    growth = carry(orbit, frame, warmup=0, steps=60, t_on="auto")
    torch.testing.assert_close(
        growth.logs_NBKM.sum(-1) / 60, torch.full((1, 1, 2), 300.0, dtype=F64)
    )


@pytest.mark.parametrize(("K", "D"), [(1, 1), (7, 9), (300, 300), (600, 700)])
def test_weighted_squares_of_a_triangle(K, D):
    packed_KD = torch.randn(K, D, generator=generator_for("squares"), dtype=torch.float64)
    weights_D = torch.rand(D, generator=generator_for("weights"), dtype=torch.float64)
    L_KD = packed_KD.triu(1)
    L_KD.diagonal().fill_(1.0)
    packed_KD += torch.full((K, D), 1e300, dtype=torch.float64).tril()  # is not read
    expected = (L_KD.square() * weights_D).sum(1)
    torch.testing.assert_close(squares_above(packed_KD, weights_D), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("num_pivots", "num_rows"), [(1, 1), (4, 4), (5, 9)])
def test_order_after_exchanges_one_by_one(num_pivots, num_rows):
    rng = random.Random(num_rows)
    pivots = [rng.randrange(row, num_rows) for row in range(num_pivots)]
    expected = list(range(num_rows))
    for row, other in enumerate(pivots):
        expected[row], expected[other] = expected[other], expected[row]
    assert order_of(torch.tensor(pivots), num_rows).tolist() == expected
