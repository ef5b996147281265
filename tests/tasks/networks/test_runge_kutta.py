"""Runge–Kutta networks: the order of each method, and its adjoint against autograd."""

import pytest
import torch

from tasks.base import generator_for
from tasks.networks.resnet import ResNet
from tasks.networks.runge_kutta import RungeKutta
from tasks.networks.tableau import TABLEAUS, Tableau

F64 = torch.float64
ORDERS = {"euler": 1, "heun": 2, "kutta3": 3, "kutta4": 4}


def network(method, *, depth=4, step=0.5, kind=RungeKutta, **settings):
    config = {"width": 3, "depth": depth, "step": step, "bias_scale": 0.4, **settings}
    if kind is RungeKutta:
        config["method"] = method
    generators = [generator_for(n, "init") for n in range(3)]
    return kind(
        [kind.Config(**config)] * 3, input_size=3, output_size=2, generators=generators, dtype=F64
    )


def points(count=6):
    return torch.randn((count, 3), generator=generator_for("x"), dtype=F64)


def losses(outputs):
    return (outputs.tanh() - 0.3).square().mean((1, 2))


@pytest.mark.parametrize("method", sorted(ORDERS))
@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_the_gradient_by_the_adjoint_tableau_is_autograds(method, activation):
    net, x = network(method, activation=activation, init_scale=2.0), points()
    found = net.adjoint_gradient(losses, x)
    expected = torch.autograd.grad(losses(net(x)[0]).sum(), [net.weight, net.bias])
    for name, gradient in zip(("weight", "bias"), expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10)
        assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("method", ["heun", "kutta3", "kutta4"])
def test_another_way_back_gives_another_gradient(method):
    """An adjoint integrated by weights alone, P_i = G, is only right as h → 0."""
    count = len(TABLEAUS[method].weights)
    x, off = points(), []
    for step in (0.4, 0.2):
        net = network(method, step=step, depth=1, init_scale=2.0)
        exact = net.adjoint_gradient(losses, x)["weight"]
        other = net.adjoint_gradient(losses, x, [[0.0] * count] * count)["weight"]
        off.append(((other - exact).norm() / exact.norm()).item())
    assert off[0] > 1e-3
    assert off[1] < 0.7 * off[0]


@pytest.mark.parametrize(("method", "order"), ORDERS.items())
def test_methods_converge_at_their_order(method, order):
    """Error after time 1 with the same field in every block, against a step 32 times shorter."""

    def last(steps):
        net = network(method, depth=steps, step=1 / steps, lift="pad", readout="none")
        source = network(method, depth=1, lift="pad", readout="none")
        with torch.no_grad():
            net.weight.copy_(1.5 * source.weight.expand(-1, steps, -1, -1))
            net.bias.copy_(source.bias.expand(-1, steps, -1))
            return net(points())[0]

    exact = last(512)
    errors = [(last(steps) - exact).abs().max().item() for steps in (8, 16)]
    measured = torch.tensor(errors[0] / errors[1]).log2().item()
    assert measured == pytest.approx(order, abs=0.35)  # the next order still shows at h = 1/8


def test_euler_is_the_resnet():
    one, other = network("euler"), network("euler", kind=ResNet)
    assert torch.equal(one(points())[0], other(points())[0])


@pytest.mark.parametrize("method", sorted(ORDERS))
def test_each_method_is_its_own_adjoint_run_backward(method):
    """w_i ã_ij = w_j a_ji; of these four ã is a with its stages in reverse order."""
    tableau = TABLEAUS[method]
    w, a, last = tableau.weights, tableau.stages, len(tableau.weights) - 1
    assert sum(w) == pytest.approx(1, abs=1e-15)
    for i, row in enumerate(tableau.adjoint()):
        for j, found in enumerate(row):
            if j <= i:
                assert found == 0
                continue
            assert w[i] * found == pytest.approx(w[j] * a[j][i], abs=1e-15)
            assert found == pytest.approx(a[last - i][last - j], abs=1e-15)


def test_a_method_that_is_not_its_own_adjoint_still_gives_autograds_gradient():
    """Ralston's: a_21 = 2/3, weights 1/4 and 3/4; its ã_12 = 2 is no stage of its own."""
    ralston = Tableau(((), (2 / 3,)), (1 / 4, 3 / 4))
    assert ralston.adjoint()[0][1] == pytest.approx(2)
    net, x = network("heun", init_scale=2.0), points()
    net._tableau = ralston
    found = net.adjoint_gradient(losses, x)["weight"]
    (expected,) = torch.autograd.grad(losses(net(x)[0]).sum(), [net.weight])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    (J, *_), P = net.orbit(x).maps(), torch.ones(3, 6, 3, 1, dtype=F64)
    torch.testing.assert_close(J.transposed(P), J.dense().mT @ P, rtol=1e-12, atol=1e-13)


def test_methods_without_an_adjoint_are_refused():
    with pytest.raises(ValueError, match="weights must differ from 0"):
        Tableau(((), (0.5,)), (0.0, 1.0))
    with pytest.raises(ValueError, match="row i of an explicit method has i entries"):
        Tableau(((), (0.5, 0.5)), (0.5, 0.5))
