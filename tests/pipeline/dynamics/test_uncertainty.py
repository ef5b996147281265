"""Standard errors against processes whose true error is known."""

import math

import pytest
import torch
from scipy.stats import t as student

from pipeline.dynamics.uncertainty import standard_error
from tasks.base import generator_for

F64 = torch.float64
RUNS, STEPS = 2000, 600


def first_order(phi, num_sequences, runs=RUNS, steps=STEPS):
    """Stationary x_t = φ x_{t−1} + noise (runs, B, 1, T), and the true error of its mean."""
    g = generator_for("ar", phi, num_sequences)
    x = torch.randn(runs, num_sequences, 1, steps, generator=g, dtype=F64)
    x[..., 0] /= math.sqrt(1 - phi**2)
    for t in range(1, steps):
        x[..., t] += phi * x[..., t - 1]
    lags = torch.arange(1, steps, dtype=F64)
    inflation = 1 + 2 * ((1 - lags / steps) * phi**lags).sum().item()
    return x, math.sqrt(inflation / (1 - phi**2) / steps / num_sequences)


def share_covered(x, truth=0.0):
    """Share of the runs whose ±1.96 errors hold the truth; x (runs, B, 1, T)."""
    error = standard_error(x, torch.ones(x.shape[-1], dtype=torch.int64))[:, 0]
    return ((x.mean((1, 2, 3)) - truth).abs() < 1.96 * error).double().mean().item(), error


@pytest.mark.parametrize("num_sequences", [1, 3, 10])
@pytest.mark.parametrize("phi", [-0.6, 0.0, 0.8])
def test_intervals_cover_the_truth(phi, num_sequences):
    """Naive errors would be three times too small at φ = 0.8 and twice too big at −0.6."""
    x, exact = first_order(phi, num_sequences)
    covered, error = share_covered(x)
    assert 0.90 <= covered <= 0.98
    # Student's quantile makes it larger on average, all the more the fewer the sequences.
    assert 0.95 <= error.mean().item() / exact <= 1.25


@pytest.mark.parametrize("num_sequences", [3, 4, 10])
@pytest.mark.parametrize("diffusion", [0.0, 0.05])
def test_sums_that_hardly_diffuse(diffusion, num_sequences):
    """Growth along a flow is g_t − g_{t−1}: its mean errs like 1/T, as a long-run density of 0
    does not say. With a little noise besides, both parts of the variance are of one size."""
    g, _ = first_order(0.5, num_sequences, steps=601)
    noise = torch.randn(
        g[..., 1:].shape, generator=generator_for("diffusion", num_sequences), dtype=F64
    )
    covered, error = share_covered(g.diff(dim=-1) + diffusion * noise)
    assert 0.90 <= covered <= 0.98
    exact = math.sqrt((2 / (1 - 0.25) / 600**2 + diffusion**2 / 600) / num_sequences)
    # In square, as few frequencies tell of it.
    assert 0.8 <= error.square().mean().sqrt().item() / exact <= 1.6


@pytest.mark.parametrize("num_sequences", [1, 2])
def test_one_or_two_sequences_that_do_not_diffuse_err_on_the_safe_side(num_sequences):
    """Of a single one, its end is in the estimate and in the error alike."""
    g, _ = first_order(0.5, num_sequences, steps=601)
    covered, error = share_covered(g.diff(dim=-1))
    assert covered >= 0.94
    assert error.median().item() < 3 * math.sqrt(2 / (1 - 0.25)) / 600


@pytest.mark.parametrize("num_sequences", [1, 4])
def test_oscillations_are_not_mistaken_for_noise(num_sequences):
    """A second-order process of period 5, half of whose blocks alone would alias."""
    g = generator_for("oscillation", num_sequences)
    noise = torch.randn(RUNS, num_sequences, 1, 700, generator=g, dtype=F64)
    radius, x = 0.95, noise.clone()
    for t in range(2, 700):
        x[..., t] += 2 * radius * math.cos(2 * math.pi / 5) * x[..., t - 1]
        x[..., t] -= radius**2 * x[..., t - 2]
    covered, _ = share_covered(x[..., 100:])
    assert 0.90 <= covered <= 0.98


@pytest.mark.parametrize(("num_sequences", "steps"), [(1, 8), (2, 1), (3, 2), (10, 4), (2, 16)])
def test_intervals_of_few_blocks_are_those_of_student(num_sequences, steps):
    x = torch.randn(RUNS, num_sequences, 1, steps, generator=generator_for("few", steps), dtype=F64)
    covered, _ = share_covered(x)
    assert 0.92 <= covered <= 0.98


def test_sequences_that_differ_make_the_error_larger():
    """Two attractors: time blocks alone would claim an error near 0."""
    x, _ = first_order(0.0, 10, runs=500)
    level = torch.randn(500, 10, 1, 1, generator=generator_for("level"), dtype=F64)
    covered, error = share_covered(x + 3 * level)
    quantile = student.ppf(0.975, 9) / 1.96
    expected = quantile * 3 / math.sqrt(10)
    assert error.square().mean().sqrt().item() == pytest.approx(expected, rel=0.1)
    assert 0.90 <= covered <= 0.98


def test_sequences_driven_alike_count_as_one():
    """All follow the same orbit: their spread says nothing, and they are no more than one."""
    x, exact = first_order(0.5, 1)
    alike = x.expand(-1, 5, -1, -1) + 1e-6 * torch.randn(
        RUNS, 5, 1, STEPS, generator=generator_for("alike"), dtype=F64
    )
    for given in (x.expand(-1, 5, -1, -1), alike):
        covered, error = share_covered(given)
        assert 0.90 <= covered <= 0.98
        assert error.mean().item() / exact == pytest.approx(1, abs=0.25)


def test_still_and_periodic_growth_have_no_error():
    steps = torch.ones(64, dtype=torch.int64)
    still = torch.full((1, 3, 1, 64), 0.3, dtype=F64)
    assert standard_error(still, steps).item() == 0.0
    periodic = torch.tensor([1.0, -0.5, 0.25, 0.0], dtype=F64).repeat(16).expand(1, 1, 1, 64)
    assert standard_error(periodic, steps).item() < 1e-9


def test_members_do_not_mix_and_order_of_sequences_does_not_matter():
    x, _ = first_order(0.8, 3, runs=6)
    steps = torch.ones(STEPS, dtype=torch.int64)
    whole = standard_error(x, steps)
    torch.testing.assert_close(standard_error(x[2:3], steps), whole[2:3], atol=0, rtol=1e-12)
    torch.testing.assert_close(standard_error(x.flip(1), steps), whole, atol=0, rtol=1e-10)
    torch.testing.assert_close(standard_error(1e-8 * x, steps), 1e-8 * whole, atol=0, rtol=1e-9)


def test_few_blocks_and_infinities():
    one = torch.zeros(1, 1, 2, 1, dtype=F64)
    assert standard_error(one, torch.tensor([5])).isnan().all()
    x, _ = first_order(0.0, 3, runs=2)
    x[0, 1, 0, 7] = -math.inf
    error = standard_error(x, torch.ones(STEPS, dtype=torch.int64))
    assert error[0].isnan().all()
    assert torch.isfinite(error[1]).all()


def test_a_short_last_block_counts_by_its_steps():
    logs = torch.tensor([8.0, 8.0, 8.0, 1.0], dtype=F64).reshape(1, 1, 1, 4)
    error = standard_error(logs, torch.tensor([8, 8, 8, 1]))
    assert error.item() == 0.0
