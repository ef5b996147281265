"""A bottleneck before the outputs: its gradients, what it leaves alone, and what it shows."""

import pytest
import torch
from torch import nn

from tasks.base import generator_for
from tasks.networks.bottleneck_mlp import BottleneckMLP
from tasks.networks.dropout import DropoutStreams
from tasks.networks.mlp import MLP

F64 = torch.float64


def population(count=3, *, start=0, learns="together", **settings):
    settings = {"width": 7, "depth": 3, "bias_scale": 0.3, **settings}
    configs = [BottleneckMLP.Config(learns=learns, **settings) for _ in range(count)]
    generators = [generator_for(n, "init") for n in range(start, start + count)]
    return BottleneckMLP(configs, input_size=5, output_size=4, generators=generators, dtype=F64)


def batch():
    x = torch.randn((6, 5), generator=generator_for("x"), dtype=F64)
    return x, torch.tensor([0, 1, 2, 3, 0, 1])


def loss_of(targets):
    def losses(outputs):
        flat = nn.functional.cross_entropy(
            outputs.flatten(0, 1), targets.repeat(len(outputs)), reduction="none"
        )
        return flat.view(len(outputs), -1).mean(1)

    return losses


def plain(network, n, x):
    """Local fields and outputs of one member, by plain torch."""
    for layer in range(3):
        W, b = network._layer(layer)
        x = torch.tanh(x @ W[n].T + b[n])
    upper = x @ network.weight_out[n].T + network.bias_out[n]
    b = upper[:, -2:]
    return upper[:, :-2], b, torch.tanh(b) @ network.weight_end[n].T + network.bias_end[n], x


@pytest.mark.parametrize("learns", ["together", "apart"])
def test_outputs_and_local_fields_equal_plain_torch(learns):
    network, (x, _) = population(learns=learns), batch()
    outputs, state = network(x)
    own, fields = network.own_outputs(x), network.local_fields(x)
    assert state is None
    assert own.shape == (3, 6, 4 if learns == "apart" else 0)
    for n in range(3):
        expected_own, b, expected, _ = plain(network, n, x)
        torch.testing.assert_close(outputs[n], expected, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(fields[n], b, atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(own[n], expected_own, atol=1e-12, rtol=1e-12)


def test_together_the_gradient_is_autograds():
    network, (x, y) = population(), batch()
    losses, _, found = network.gradient(loss_of(y), x)
    expected_losses = []
    for n in range(3):
        _, _, outputs, _ = plain(network, n, x)
        loss = nn.functional.cross_entropy(outputs, y)
        expected_losses.append(loss.detach())
        parts = torch.autograd.grad(loss, list(network.parameters()))
        expected = torch.cat([part[n].flatten() for part in parts])
        torch.testing.assert_close(found[n], expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(losses, torch.stack(expected_losses))


def test_apart_the_hidden_layers_learn_as_if_nothing_came_after():
    network, (x, y) = population(learns="apart"), batch()
    losses, _, found = network.gradient(loss_of(y), x)
    found = found.clone()
    for n in range(3):
        own, _, outputs, hidden = plain(network, n, x)
        upper = hidden.detach() @ network.weight_out[n].T + network.bias_out[n]
        held = torch.tanh(upper[:, -2:]) @ network.weight_end[n].T + network.bias_end[n]
        apart = nn.functional.cross_entropy(held, y) + nn.functional.cross_entropy(own, y)
        parts = torch.autograd.grad(apart, list(network.parameters()))
        expected = torch.cat([part[n].flatten() for part in parts])
        torch.testing.assert_close(found[n], expected, atol=1e-12, rtol=1e-10)
        torch.testing.assert_close(losses[n], nn.functional.cross_entropy(outputs, y).detach())
    # The same hidden layers with a bottleneck that is quite another learn the same.
    with torch.no_grad():
        network.weight_end.mul_(-3)
    again = network.gradient(loss_of(y), x)[2]
    below = sum(p[0].numel() for p in list(network.parameters())[:6])
    assert torch.equal(again[:, :below], found[:, :below])
    assert not torch.equal(again[:, below:], found[:, below:])


@pytest.mark.parametrize("learns", ["together", "apart"])
def test_inputs_derivative_is_that_of_the_outputs(learns):
    """Also apart: what holds the hidden layers still in training is no property of the function."""
    network, (x, _) = population(learns=learns), batch()
    inputs = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(network(inputs)[0].square().sum(), inputs)
    expected = torch.zeros_like(x)
    for n in range(3):
        leaf = x.clone().requires_grad_()
        (each,) = torch.autograd.grad(plain(network, n, leaf)[2].square().sum(), leaf)
        expected += each
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-10)


def test_functional_transforms_see_the_same_function():
    network, (x, _) = population(1, learns="apart"), batch()
    outputs, tangent = torch.func.jvp(lambda v: network(v)[0], (x,), (torch.ones_like(x),))
    torch.testing.assert_close(outputs, network(x)[0])
    step = 1e-6
    ahead, behind = network(x + step)[0], network(x - step)[0]
    # The error of a central difference at this step is about 1e-9.
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), atol=1e-7, rtol=1e-6)


def test_company_dropout_and_selection():
    together, (x, y) = population(learns="apart", dropout=0.4), batch()
    alone = population(1, start=2, learns="apart", dropout=0.4)
    in_company = together.gradient(loss_of(y), x, dropout=DropoutStreams([5, 6, 7]))[2].clone()
    single = alone.gradient(loss_of(y), x, dropout=DropoutStreams([7]))[2]
    torch.testing.assert_close(single[0], in_company[2], atol=1e-12, rtol=1e-10)
    outputs = together(x)[0]
    together.select([2, 0])
    assert torch.equal(together(x)[0], outputs[[2, 0]])


def test_exponents_are_those_of_the_hidden_layers():
    network, (x, _) = population(learns="apart"), batch()
    config = MLP.Config(width=7, depth=3, bias_scale=0.3)
    plain_one = MLP(
        [config], input_size=5, output_size=4, generators=[generator_for(1, "init")], dtype=F64
    )
    for ours, theirs in zip(network.orbit(x).maps(), plain_one.orbit(x).maps(), strict=True):
        torch.testing.assert_close(ours.dense()[1], theirs.dense()[0])
