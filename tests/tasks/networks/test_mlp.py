"""The MLP population against plain torch, its start weights, dropout and tangents."""

import pytest
import torch
from torch.func import jacrev

from pipeline.optim import Optimiser, Trainer
from tasks.base import generator_for
from tasks.networks.dropout import DropoutStreams
from tasks.networks.mlp import ACTIVATIONS, MLP

F64 = torch.float64


def population(count=3, *, start=0, dtype=F64, inputs=5, **settings):
    configs = [MLP.Config(bias_scale=0.3, **settings) for _ in range(count)]
    generators = [generator_for(n, "init") for n in range(start, start + count)]
    return MLP(configs, input_size=inputs, output_size=2, generators=generators, dtype=dtype)


def vectors(inputs=5, count=6):
    return torch.randn((count, inputs), generator=generator_for("x"), dtype=F64)


def hidden(network, member, x, depth):
    for layer in range(depth):
        W, b = network._layer(layer)
        x = network.activation(x @ W[member].detach().T + b[member].detach())
    return x


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_outputs_and_tangents_equal_plain_torch(activation):
    network = population(activation=activation, width=7, depth=3, init_scale=1.7)
    x = vectors()
    outputs, state = network(x)
    assert state is None
    for n in range(3):
        last = hidden(network, n, x, 3)
        expected = last @ network.weight_out[n].T + network.bias_out[n]
        torch.testing.assert_close(outputs[n], expected, atol=1e-12, rtol=1e-12)
    J = torch.eye(5, dtype=F64).expand(3, 1, 5, 5)
    dense = torch.eye(5, dtype=F64).expand(3, 6, 5, 5)
    for step in network.orbit(x).maps():
        J, dense = step(J), step.dense() @ dense
    for n in range(3):
        for b in range(6):
            expected = jacrev(lambda v, n=n: hidden(network, n, v, 3))(x[b])
            torch.testing.assert_close(J[n, b], expected, atol=1e-12, rtol=1e-12)
            torch.testing.assert_close(dense[n, b], expected, atol=1e-12, rtol=1e-12)


def test_company_and_nan_do_not_matter():
    together, poisoned = population(width=7), population(width=7)
    with torch.no_grad():
        poisoned.weight_1[1, 0, 0] = float("nan")
    x = vectors()
    outputs = together(x)[0]
    alone = population(1, start=2, width=7)(x)[0]
    torch.testing.assert_close(alone[0], outputs[2], atol=1e-12, rtol=0)
    broken = poisoned(x)[0]
    assert broken[1].isnan().any()
    for n in (0, 2):
        assert torch.equal(broken[n], outputs[n])


def test_gaussian_start_weights_have_the_ensembles_variance():
    network = population(1, width=400, depth=2, inputs=100, init_scale=1.5)
    assert network.weight_0.var().item() == pytest.approx(1.5**2 / 100, rel=0.02)
    assert network.weight_1.var().item() == pytest.approx(1.5**2 / 400, rel=0.02)
    assert network.bias_1.std().item() == pytest.approx(0.3, rel=0.15)
    assert network.weight_out.var().item() == pytest.approx(1 / 400, rel=0.2)


@pytest.mark.parametrize(("outputs", "inputs"), [(6, 4), (4, 6)])
def test_orthogonal_start_weights_are_semi_orthogonal(outputs, inputs):
    from tasks.networks.layers import draw_weight

    W = draw_weight("orthogonal", outputs, inputs, 3.0, generator_for("o"))
    gram = W @ W.T if outputs <= inputs else W.T @ W
    torch.testing.assert_close(gram, 9 * torch.eye(4, dtype=F64), atol=1e-13, rtol=0)


def test_dropout_acts_in_training_only():
    network = population(dropout=0.5, width=20)
    x = vectors()
    assert not torch.equal(network(x, dropout=DropoutStreams([1, 2, 3]))[0], network(x)[0])
    assert torch.equal(network(x)[0], network(x)[0])


def loss(outputs):
    return outputs.square().sum((1, 2))


def test_held_layers_have_no_gradient_and_are_no_parameters():
    whole, held = population(width=7, depth=3), population(width=7, depth=3, trained="output")
    x = vectors()
    assert [name for name, _ in held.named_parameters()] == ["weight_out", "bias_out"]
    assert whole.state_dict().keys() == held.state_dict().keys()
    assert torch.equal(whole(x)[0], held(x)[0])
    of_outputs = sum(p[0].numel() for p in held.parameters())
    everything = whole.gradient(loss, x)[2]
    found = held.gradient(loss, x)[2]
    assert found.shape == (3, of_outputs)
    assert torch.equal(found, everything[:, -of_outputs:])
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for network, leaf in zip((whole, held), inputs, strict=True):
        loss(network(leaf)[0]).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(held.weight_out.grad, whole.weight_out.grad)


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_no_optimiser_and_no_decay_moves_held_layers(optimiser):
    held = population(width=7, depth=2, trained="output", dropout=0.2)
    before = {name: tensor.clone() for name, tensor in held.state_dict().items()}
    trainer = Trainer(optimiser=optimiser, learning_rate=0.1, weight_decay=0.5)
    moving = Optimiser(held.pack(), [trainer] * 3)
    alive = torch.ones(3, dtype=torch.bool)
    for _ in range(3):
        gradient = held.gradient(loss, vectors(), dropout=DropoutStreams([1, 2, 3]))[2]
        moving.step(gradient, alive)
    for name, tensor in held.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.endswith("_out")), name
    held.select([2, 0])
    assert torch.equal(held.weight_0, before["weight_0"][[2, 0]])
    assert held.gradient(loss, vectors())[2].shape[0] == 2
