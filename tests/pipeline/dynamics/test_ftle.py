"""Largest finite-time exponents against the singular values of explicit products."""

import math

import pytest
import torch

from pipeline.dynamics import ftle
from pipeline.dynamics.ftle import max_ftle, max_stretching
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.mlp import MLP

F64 = torch.float64


def mlp(count=2, *, inputs=3, width=12, depth=4, dtype=F64, scale=1.5, **settings):
    config = MLP.Config(width=width, depth=depth, init_scale=scale, bias_scale=0.2, **settings)
    generators = [generator_for("ftle", n) for n in range(count)]
    return MLP(
        [config] * count, input_size=inputs, output_size=2, generators=generators, dtype=dtype
    )


def vectors(inputs, count=9):
    return torch.randn((count, inputs), generator=generator_for("v"), dtype=F64)


def explicit(network, x):
    """J_l of every layer by dense products, and their SVDs."""
    product, found = None, []
    for step in network.orbit(x).maps():
        product = step.dense() if product is None else step.dense() @ product
        found.append(torch.linalg.svd(product))
    return found


@pytest.mark.parametrize(("inputs", "width"), [(1, 6), (2, 6), (3, 6), (6, 6), (40, 6), (40, 1)])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_equals_the_largest_singular_value(inputs, width, activation):
    network = mlp(inputs=inputs, width=width, activation=activation)
    x = vectors(inputs)
    every = max_ftle(network, x)
    assert every.shape == (2, 4, 9)
    for layer, svd in enumerate(explicit(network, x), start=1):
        expected = svd.S[..., 0].log() / layer
        torch.testing.assert_close(every[:, layer - 1], expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(max_ftle(network, x, layer), expected, atol=1e-10, rtol=0)
        stretching = max_stretching(network, x, layer)
        torch.testing.assert_close(stretching.exponents, expected, atol=1e-10, rtol=0)
        overlap = (stretching.directions * svd.Vh[..., 0, :]).sum(-1).abs()
        torch.testing.assert_close(overlap, torch.ones_like(overlap), atol=1e-9, rtol=0)


def test_one_qr_sweep_does_not():
    """ENGINE §1, item 9."""
    network, x = mlp(1, inputs=32, width=32, depth=10), vectors(32, 20)
    exact = max_ftle(network, x, 10)
    sweep = lyapunov_spectrum(network, x, k=1, warmup=0, t_on=1)
    lost = exact - sweep.per_sequence[..., 0]
    assert (lost > 0).all()
    assert lost.mean() > 0.05


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_long_products_neither_overflow_nor_vanish(scale):
    network = mlp(1, depth=150, activation="identity", scale=scale)
    unscaled = mlp(1, depth=150, activation="identity", scale=1.0)
    x = vectors(3)
    expected = max_ftle(unscaled, x, 150) + math.log(scale)
    torch.testing.assert_close(max_ftle(network, x, 150), expected, atol=1e-10, rtol=0)


def test_float32_networks_are_measured_in_float64():
    x = vectors(3)
    single = mlp(dtype=torch.float32)
    double = mlp()
    double.load_state_dict({k: v.double() for k, v in single.state_dict().items()})
    torch.testing.assert_close(max_ftle(single, x), max_ftle(double, x), atol=1e-14, rtol=0)


def test_dead_units_and_nan_weights():
    network, x = mlp(3, activation="relu"), vectors(3)
    healthy = max_ftle(network, x)
    with torch.no_grad():
        network.bias_1[0].fill_(-1e6)
        network.weight_2[1, 0, 0] = float("nan")
    field = max_ftle(network, x)
    assert torch.isneginf(field[0, 1:]).all()
    assert field[1, 2:].isnan().all()
    assert torch.equal(field[2], healthy[2])
    assert max_stretching(network, x).directions[1].isnan().all()


def test_chunks_do_not_show(monkeypatch):
    network, x = mlp(inputs=20), vectors(20, 50)
    whole, direction = max_ftle(network, x), max_stretching(network, x)
    monkeypatch.setattr(ftle, "LARGEST_CHUNK", 2 * 12 * 12 * 7)
    torch.testing.assert_close(max_ftle(network, x), whole, atol=1e-13, rtol=0)
    again = max_stretching(network, x).exponents
    torch.testing.assert_close(again, direction.exponents, atol=1e-13, rtol=0)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="layer must be between 1 and 4, got 5"):
        max_ftle(mlp(), vectors(3), 5)
    with pytest.raises(ValueError, match=r"inputs must be \(B, I\)"):
        max_ftle(mlp(), torch.zeros(0, 3))
