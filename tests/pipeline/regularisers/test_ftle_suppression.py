"""The hinge on early finite-time exponents: against the singular values of the dense product."""

import pytest
import torch

from pipeline.regularisers.ftle_suppression import FtleSuppression
from tasks.networks.mlp import MLP


def mlp(*, scales=(1.0, 2.0), **settings):
    given = {"width": 6, "depth": 4, "bias_scale": 0.3} | settings
    return MLP(
        [MLP.Config(init_scale=scale, **given) for scale in scales],
        input_size=2,
        output_size=3,
        generators=[torch.Generator().manual_seed(n) for n in range(len(scales))],
        dtype=torch.float64,
    )


def inputs(B=7):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(B, 2, generator=generator, dtype=torch.float64)


def suppression(members=2, **settings):
    config = FtleSuppression.Config(**settings)
    return FtleSuppression([config] * members, [0] * members)


def by_singular_values(network, x, layers, threshold):
    """The obvious way: the dense product and its singular values, differentiated."""
    product = None
    for _, J in zip(range(layers), network.differentiable_orbit(x).maps(), strict=False):
        product = J.dense() if product is None else J.dense() @ product
    exponents = torch.linalg.svdvals(product)[..., 0].log() / layers
    return (exponents - threshold).clamp(min=0).square().mean(1)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "silu", "sigmoid", "identity"])
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_values_and_gradients_are_those_of_the_singular_values(activation, layers):
    network, x = mlp(activation=activation), inputs()
    threshold = -3.0 if activation == "sigmoid" else -0.2
    parameters = list(network.parameters())
    penalty = suppression(threshold=threshold, layers=layers).penalty
    found, expected = penalty(network, x), by_singular_values(network, x, layers, threshold)
    assert (expected > 1e-3).all()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    gradients = [
        torch.autograd.grad(value.sum(), parameters, allow_unused=True, materialize_grads=True)
        for value in (found, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_early_half_of_the_layers_is_looked_at_by_default():
    network, x = mlp(depth=5), inputs()
    assert torch.equal(
        suppression(threshold=-1.0).penalty(network, x),
        suppression(threshold=-1.0, layers=3).penalty(network, x),
    )


def test_inputs_below_the_threshold_and_those_beyond_the_count_cost_nothing():
    network, x = mlp(scales=(0.3, 0.4)), inputs()
    assert suppression(threshold=1.0).penalty(network, x).tolist() == [0.0, 0.0]
    changed = x.clone()
    changed[3:] += 1
    penalty = suppression(threshold=-2.0, inputs=3).penalty
    assert torch.equal(penalty(network, x), penalty(network, changed))
    assert (penalty(network, x) > 0).all()


def test_inputs_of_which_nothing_is_left_give_no_nan():
    network, x = mlp(activation="relu"), inputs()
    with torch.no_grad():
        network.bias_1[0].fill_(-100.0)
    gradient = torch.zeros(2, sum(p[0].numel() for p in network.parameters()), dtype=torch.float64)
    suppression(threshold=-2.0).add(gradient, network, x)
    assert torch.isfinite(gradient).all()
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).any()


def test_many_layers_stay_in_range():
    network, x = mlp(depth=400, activation="identity", scales=(6.0, 8.0)), inputs()
    found = suppression(layers=400).penalty(network, x)
    assert torch.isfinite(found).all()
    assert (found > 1).all()


def test_descending_the_penalty_brings_the_exponents_under_the_threshold():
    network, x = mlp(scales=(2.0,)), inputs()
    penalty = suppression(1).penalty
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    before = penalty(network, x).item()
    for _ in range(80):
        optimiser.zero_grad()
        penalty(network, x).sum().backward()
        optimiser.step()
    assert penalty(network, x).item() < 0.01 * before
