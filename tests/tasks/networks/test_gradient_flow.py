"""Contractive networks: the bounds hold within their step limits, and break without (S3.3)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dynamics.structure import contraction, euler_step_limit
from tasks.base import generator_for
from tasks.networks.gradient_flow import GradientFlow, squared_norm_bound

F64 = torch.float64
torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def network(limit, *, count=1, scale=1.0, **extra):
    config = GradientFlow.Config(
        lift="pad", readout="none", limit=limit, init_scale=scale, bias_scale=1.0, **extra
    )
    generators = [generator_for(n, "init") for n in range(count)]
    size = config.width
    return GradientFlow(
        [config] * count, input_size=size, output_size=size, generators=generators, dtype=F64
    )


def measured(net, x):
    steps = [(block.tangent(x), block.field(x)) for block, x in net.orbit(x).steps()]
    maps = torch.stack([J.dense() for J, _ in steps], 2)
    fields = torch.stack([field for _, field in steps], 2)
    return contraction(maps, fields, net.step_N[:, None, None])


def random_draws(limit):
    """1,000 draws of A and b, 200 in each of five shapes, each with its own step, at 4 points."""
    found = []
    for size, rows, depth in ((2, 2, 1), (2, 2, 6), (4, 4, 3), (5, 3, 2), (3, 8, 4)):
        net = network(limit, count=200, scale=3.0, width=size, rows=rows, depth=depth, step=1.0)
        with torch.no_grad():
            net.step_N.copy_(torch.logspace(-2, 1, 200, dtype=F64))
        found.append(measured(net, 2 * normal(4, size, seed=depth)))
    return (torch.cat([getattr(f, name).flatten() for f in found]) for name in found[0]._fields)


def test_the_rate_is_kept_on_1000_random_draws_within_its_limit():
    ftle, bound, is_kept = random_draws("rate")
    assert len(ftle) == 4 * 1000
    assert is_kept.all()
    assert (bound <= 1e-12).all()


def test_nothing_expands_on_1000_random_draws_within_the_limit_of_two():
    ftle, _, is_kept = random_draws("non_expansive")
    assert (ftle <= 1e-9).all()
    # Between 1 and 2 steps may overshoot, which is not expansion but slower than the flow's rate.
    assert not is_kept.all()


def test_both_break_without_a_limit():
    ftle, bound, is_kept = random_draws("none")
    assert (ftle > 0.5).any()
    assert (~is_kept).double().mean() > 0.2
    assert (bound <= 1e-12).all()  # the flow itself contracts all the same


@pytest.mark.parametrize(("limit", "share"), [("non_expansive", 1.0), ("rate", 0.5)])
def test_steps_stay_within_the_limit_and_close_to_it(limit, share):
    net = network(limit, count=4, scale=5.0, width=6, depth=3, step=0.7)
    allowed = share * euler_step_limit(net.matrices())
    assert (net.step_N[:, None] <= allowed * (1 + 1e-9)).all()
    # The bound of the norm is a power mean, at most 6^(1/64) = 1.03 above the square it bounds.
    assert (net.step_N[:, None] >= allowed / 1.03).all()


def test_matrices_within_the_limit_are_left_as_they_are():
    net = network("rate", scale=0.1, width=6, depth=3, step=0.1)
    assert torch.equal(net.matrices(), net.weight)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 10**6),
)
def test_the_norm_is_bounded_from_above_and_closely(rows, columns, scale, seed):
    A = scale * normal(3, rows, columns, seed=seed)
    exact = torch.linalg.matrix_norm(A, ord=2).square()
    ratio = squared_norm_bound(A) / exact
    assert (ratio >= 1 - 1e-12).all()
    assert (ratio <= min(rows, columns) ** (1 / 64) + 1e-12).all()


def test_the_norm_bound_in_single_precision_of_wide_and_tiny_matrices():
    wide = normal(2, 64, 64).float()
    exact = torch.linalg.matrix_norm(wide.double(), ord=2).square()
    ratio = squared_norm_bound(wide).double() / exact
    assert (ratio >= 1 - 1e-5).all()  # float32
    assert (ratio <= 64 ** (1 / 64)).all()
    zero = torch.zeros(1, 3, 3, requires_grad=True)
    squared_norm_bound(zero).sum().backward()
    assert (zero.grad == 0).all()
    assert squared_norm_bound(zero).item() < 1e-18


def test_the_gradient_goes_through_the_limit():
    net, x = network("rate", scale=4.0, width=3, depth=2, step=1.0), normal(5, 3)
    (by_weight,) = torch.autograd.grad(net(x)[0].square().sum(), net.weight)
    change = 1e-6
    with torch.no_grad():
        net.weight[0, 1, 2, 0] += change
        up = net(x)[0].square().sum()
        net.weight[0, 1, 2, 0] -= 2 * change
        down = net(x)[0].square().sum()
    # Central differences lose half the digits.
    assert by_weight[0, 1, 2, 0].item() == pytest.approx(
        float(up - down) / (2 * change), rel=1e-5, abs=1e-8
    )


def test_nan_stays_with_its_member():
    net, x = network("rate", count=3, scale=4.0, width=3, depth=2), normal(5, 3)
    expected = net(x)[0].detach()
    with torch.no_grad():
        net.weight[1, 0, 0, 0] = math.nan
    found = net(x)[0]
    assert found[1].isnan().any()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
