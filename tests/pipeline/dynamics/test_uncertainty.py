"""Standard errors against processes whose true error is known."""

import math

import pytest
import torch

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


@pytest.mark.parametrize("num_sequences", [1, 3, 10])
@pytest.mark.parametrize("phi", [-0.6, 0.0, 0.8])
def test_intervals_cover_the_truth(phi, num_sequences):
    """Naive errors would be three times too small at φ = 0.8 and twice too big at −0.6."""
    x, exact = first_order(phi, num_sequences)
    error = standard_error(x, torch.ones(STEPS, dtype=torch.int64))[:, 0]
    # The larger of two estimates is up to 18 % too large on average, on the safe side.
    assert 0.95 <= error.mean().item() / exact <= 1.25
    covered = (x.mean((1, 2, 3)).abs() < 1.96 * error).double().mean().item()
    assert 0.90 <= covered <= 0.98


def test_sequences_that_differ_make_the_error_larger():
    """Two attractors: time blocks alone would claim an error near 0."""
    x, _ = first_order(0.0, 10, runs=500)
    level = torch.randn(500, 10, 1, 1, generator=generator_for("level"), dtype=F64)
    error = standard_error(x + 3 * level, torch.ones(STEPS, dtype=torch.int64))
    assert error.square().mean().sqrt().item() == pytest.approx(3 / math.sqrt(10), rel=0.1)


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
