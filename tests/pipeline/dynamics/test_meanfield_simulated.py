"""Mean-field theory against simulated networks of 1000 units, ours and published ones."""

import math

import numpy as np
import pytest

from pipeline.dynamics.meanfield import (
    TANH,
    changed_weights_correlation,
    circle_geometry,
    fixed_correlation,
    fixed_point,
    largest_exponent,
)

WIDTH = 1000


@pytest.mark.parametrize("sigma_w", [1.3, 2.5, 4.0])
def test_simulated_changes_of_weights(sigma_w):
    """W(Δ) beside W on the same signals, and on signals that differ: within 2 % at N = 1000."""
    rng = np.random.default_rng(4)
    q = fixed_point(sigma_w, 0.3)
    u = np.linalg.qr(rng.normal(size=(WIDTH, 32)))[0] * math.sqrt(WIDTH * q)
    W, dW = rng.normal(size=(2, WIDTH, WIDTH)) * sigma_w / math.sqrt(WIDTH)
    b = 0.3 * rng.normal(size=(WIDTH, 1))
    for delta in (0.2, 0.7):
        changed = math.sqrt(1 - delta**2) * W + delta * dW
        for c in (1.0, 0.6):
            other = c * u[:, :16] + math.sqrt(1 - c * c) * u[:, 16:]
            h, k = W @ np.tanh(u[:, :16]) + b, changed @ np.tanh(other) + b
            found = (h * k).sum(0) / np.sqrt((h * h).sum(0) * (k * k).sum(0))
            expected = changed_weights_correlation(delta, sigma_w, 0.3, c=c)
            assert found.mean() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("sigma_w", "simulated"),
    [(1.3, (6.28, 16.0, 19.6)), (2.5, (6.28, 97.7, 395)), (4.0, (6.28, 393, 5110))],
)
def test_grassmann_length_against_a_published_network(sigma_w, simulated):
    length = circle_geometry(13, sigma_w, 0.3).grassmann_length
    # One network of 1000 units: its own spread is a few per cent.
    assert length[[0, 6, 12]] == pytest.approx(simulated, rel=0.05)


@pytest.mark.parametrize("sigma_w", [1.3, 2.5, 4.0])
def test_simulated_networks_follow_lengths_growth_and_curvature(sigma_w):
    """12 layers of 1000 units, derivatives by hand: v ← W φ′v, a ← W(φ″v² + φ′a)."""
    theory = circle_geometry(13, sigma_w, 0.3)
    q = fixed_point(sigma_w, 0.3)
    theta = np.arange(16) * 2 * np.pi / 16
    cos, sin = np.cos(theta), np.sin(theta)
    records, growths = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        u = np.linalg.qr(rng.normal(size=(WIDTH, 2)))[0] * math.sqrt(WIDTH * q)
        h, v = u @ np.stack([cos, sin]), u @ np.stack([-sin, cos])
        a = -h
        tangent = rng.normal(size=(WIDTH, 16))
        size = np.linalg.norm(tangent, axis=0)
        record = []
        for layer in range(13):
            if layer:
                W = rng.normal(size=(WIDTH, WIDTH)) * sigma_w / math.sqrt(WIDTH)
                slope = TANH.slope(h)
                a = W @ (TANH.curvature(h) * v**2 + slope * a)
                v, tangent = W @ (slope * v), W @ (slope * tangent)
                h = W @ np.tanh(h) + 0.3 * rng.normal(size=(WIDTH, 1))
            metric = (v * v).sum(0)
            across = a - v * ((v * a).sum(0) / metric)
            curvature2 = WIDTH * (across**2).sum(0) / metric**2
            record.append([(h * h).mean(), metric.mean() / WIDTH, curvature2.mean()])
        records.append(record)
        growths.append(np.log(np.linalg.norm(tangent, axis=0) / size).mean() / 12)
    length, metric, curvature2 = np.mean(records, axis=0).T
    np.testing.assert_allclose(length, q, rtol=0.05)
    # The points of a curve share W, whose fluctuations add up to some 8 % a network over layers.
    np.testing.assert_allclose(metric, theory.metric, rtol=0.1)
    np.testing.assert_allclose(np.sqrt(curvature2), theory.curvature, rtol=0.05)
    assert np.exp(np.mean(growths)) == pytest.approx(
        math.exp(largest_exponent(sigma_w, 0.3)), rel=0.01
    )


def test_simulated_recurrent_network_with_white_input():
    """One W for all times: λ_1 of h' = W tanh(h) + x, from a tangent carried for 150 steps."""
    rng = np.random.default_rng(2)
    W = rng.normal(size=(WIDTH, WIDTH)) * 2 / math.sqrt(WIDTH)
    h, tangent, logs = np.zeros((WIDTH, 4)), rng.normal(size=(WIDTH, 4)), []
    for _ in range(150):
        tangent = W @ (TANH.slope(h) * tangent)
        h = W @ np.tanh(h) + 0.5 * rng.normal(size=(WIDTH, 4))
        size = np.linalg.norm(tangent, axis=0)
        tangent /= size
        logs.append(np.log(size).mean())
    q = fixed_point(2.0, 0.5)
    assert (h * h).mean() == pytest.approx(q, rel=0.05)
    # N → ∞ is off by about 1 % of a nat at N = 1000.
    assert np.mean(logs[30:]) == pytest.approx(largest_exponent(2.0, 0.5), abs=0.01)


def test_simulated_correlations_reach_their_fixed_point():
    rng = np.random.default_rng(3)
    q = fixed_point(2.5, 0.3)
    h = rng.normal(size=(WIDTH, 8)) * math.sqrt(q)
    for _ in range(20):
        W = rng.normal(size=(WIDTH, WIDTH)) * 2.5 / math.sqrt(WIDTH)
        h = W @ np.tanh(h) + 0.3 * rng.normal(size=(WIDTH, 1))
    c = np.corrcoef(h.T)[np.triu_indices(8, 1)]
    # Correlations of 1000 units fluctuate by 1/√1000; the mean of 28 dependent pairs, by less.
    assert c.mean() == pytest.approx(fixed_correlation(2.5, 0.3), abs=0.03)
