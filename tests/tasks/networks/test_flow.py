"""Networks of numerical steps: what holds for all five, against plain torch and autograd."""

import pytest
import torch
from torch.func import jacrev

from pipeline import catalog
from tasks.base import UnsuitableError, generator_for
from tasks.networks.dropout import DropoutStreams

F64 = torch.float64
CASES = [
    ("resnet", {}),
    ("resnet", {"activation": "relu"}),
    ("ode_net", {"steps": "free"}),
    ("ode_net", {"steps": "simplex", "method": "kutta3"}),
    ("runge_kutta", {"method": "heun", "activation": "gelu"}),
    ("runge_kutta", {"method": "kutta4"}),
    ("gradient_flow", {"limit": "none", "rows": 3}),
    ("gradient_flow", {"limit": "rate"}),
    ("hamiltonian", {}),
    ("hamiltonian", {"field": "second_order", "integrator": "leapfrog", "rows": 5}),
    ("hamiltonian", {"integrator": "explicit_euler"}),
]


def population(name, count=3, *, start=0, inputs=2, dtype=F64, **settings):
    kind = catalog.load("networks", name)
    settings = {"width": 6, "depth": 3, "step": 0.4, "bias_scale": 0.3, **settings}
    generators = [generator_for(n, "init") for n in range(start, start + count)]
    configs = [kind.Config(**settings) for _ in range(count)]
    return kind(configs, input_size=inputs, output_size=2, generators=generators, dtype=dtype)


def vectors(inputs=2, count=5):
    return torch.randn((count, inputs), generator=generator_for("x"), dtype=F64)


@pytest.mark.parametrize(("name", "settings"), CASES)
@pytest.mark.parametrize(
    "ends", [{}, {"lift": "pad", "readout": "none"}, {"lift": "pad", "width": 2}]
)
def test_tangents_are_the_derivative_from_the_input(name, settings, ends):
    network, x = population(name, **settings, **ends), vectors()
    J = torch.eye(2, dtype=F64).expand(3, 1, 2, 2)
    maps = list(network.orbit(x).maps())
    assert len(maps) == 3
    for step in maps:
        J = step(J)
        P = torch.randn(3, 5, network.width, 2, dtype=F64, generator=generator_for("P"))
        expected = step.dense().mT @ P
        torch.testing.assert_close(step.transposed(P), expected, rtol=1e-12, atol=1e-13)
    for b in range(5):
        by_autograd = jacrev(lambda v: list(network.orbit(v[None]).states())[-1][:, 0])(x[b])
        torch.testing.assert_close(J[:, b], by_autograd, rtol=1e-12, atol=1e-13)
    last = list(network.orbit(x).states())[-1]
    if not network.has_readout:
        torch.testing.assert_close(network(x)[0], last[..., :2], rtol=1e-13, atol=1e-14)
    else:
        shown = last @ network.weight_out.mT + network.bias_out.unsqueeze(1)
        torch.testing.assert_close(network(x)[0], shown, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_field_is_what_short_steps_integrate(name, settings):
    """(J − I)/h → Df as h → 0, at rate h. The simplex only fixes the sum of its steps."""
    errors = []
    for step in (1e-3, 5e-4):
        network = population(name, lift="pad", width=6, inputs=6, step=step, depth=1, **settings)
        ((block, x),) = network.orbit(vectors(6)).steps()
        J, Df = block.tangent(x).dense(), block.field(x)
        errors.append(((J - torch.eye(6, dtype=F64)) / step - Df).abs().max().item())
    assert errors[0] < 0.01
    assert errors[1] < 0.55 * errors[0] + 1e-11


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_precisions_start_alike_and_agree(name, settings):
    single, double = (population(name, dtype=t, **settings) for t in (torch.float32, F64))
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert torch.equal(a, b.float())
    x = vectors()
    # Rounding of float32 through three blocks.
    torch.testing.assert_close(single(x)[0].double(), double(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_dropout_is_of_training_and_of_each_member(name, settings):
    kind = catalog.load("networks", name)
    configs = [kind.Config(width=6, depth=3, dropout=rate, **settings) for rate in (0.5, 0.0)]
    generators = [generator_for(n) for n in range(2)]
    network = kind(configs, input_size=2, output_size=2, generators=generators, dtype=F64)
    x = vectors()
    dropped = network(x, dropout=DropoutStreams([1, 2]))[0]
    plain = network(x)[0]
    assert not torch.equal(dropped[0], plain[0])
    torch.testing.assert_close(dropped[1], plain[1], rtol=1e-13, atol=1e-14)
    streams = DropoutStreams([1, 2])
    first, second = network(x, dropout=streams)[0], network(x, dropout=streams)[0]
    assert torch.equal(first, dropped)
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_start_weights_and_selection_belong_to_members(name, settings):
    together, alone = population(name, **settings), population(name, 1, start=2, **settings)
    x = vectors()
    expected = together(x)[0][2:].detach()
    torch.testing.assert_close(alone(x)[0], expected, rtol=1e-12, atol=1e-13)
    together.select([2])
    torch.testing.assert_close(together(x)[0], expected, rtol=1e-12, atol=1e-13)


def test_resnet_equals_its_formula():
    network, x = population("resnet", width=4, depth=2, step=0.3), vectors()
    for n in range(3):
        state = x @ network.weight_in[n].T + network.bias_in[n]
        for layer in range(2):
            a = state @ network.weight[n, layer].T + network.bias[n, layer]
            state = state + 0.3 * a.tanh()
        expected = state @ network.weight_out[n].T + network.bias_out[n]
        torch.testing.assert_close(network(x)[0][n], expected, rtol=1e-13, atol=1e-14)


def test_the_default_step_takes_unit_time_and_steps_are_per_member():
    kind = catalog.load("networks", "resnet")
    configs = [kind.Config(depth=5), kind.Config(depth=5, step=0.7)]
    network = kind(
        configs, input_size=2, output_size=1, generators=[generator_for(n) for n in range(2)]
    )
    torch.testing.assert_close(network.step_N, torch.tensor([0.2, 0.7]))


def test_simplex_steps_are_positive_and_keep_their_sum():
    network = population("ode_net", steps="simplex", depth=4, step=0.5)
    torch.testing.assert_close(network.step_sizes(), torch.full((3, 4), 0.5, dtype=F64))
    with torch.no_grad():
        network.steps.copy_(torch.randn(3, 4, generator=generator_for("s"), dtype=F64) * 3)
    assert (network.step_sizes() > 0).all()
    torch.testing.assert_close(network.step_sizes().sum(1), torch.full((3,), 2.0, dtype=F64))


def test_free_steps_start_where_they_are_told_and_learn():
    network, x = population("ode_net", step=0.25), vectors()
    assert (network.step_sizes() == 0.25).all()
    (by_steps,) = torch.autograd.grad(network(x)[0].square().sum(), network.steps)
    with torch.no_grad():
        change = 1e-6
        network.steps[1, 2] += change
        up = network(x)[0].square().sum()
        network.steps[1, 2] -= 2 * change
        down = network(x)[0].square().sum()
    # Central differences lose half the digits.
    assert by_steps[1, 2].item() == pytest.approx(float(up - down) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("name", ["resnet", "hamiltonian"])
def test_sizes_that_do_not_fit_are_refused(name):
    with pytest.raises(UnsuitableError, match=r"lift 'pad' needs .* 7 inputs, got width 6"):
        population(name, inputs=7, lift="pad")
    settings = {"lift": "linear", "readout": "none", "width": 2}
    assert population(name, **settings)(vectors())[0].shape == (3, 5, 2)


def test_outputs_without_a_readout_need_as_many_components():
    kind = catalog.load("networks", "resnet")
    settings = {"input_size": 1, "output_size": 2, "generators": [generator_for(0)]}
    with pytest.raises(UnsuitableError, match=r"readout 'none' needs .* 2 outputs"):
        kind([kind.Config(width=1, readout="none")], **settings)


def test_a_wide_input_enters_by_the_directions_that_the_lift_sees():
    network = population("resnet", inputs=9, width=4)
    basis = network.orbit(vectors(9)).active_directions()
    assert basis.shape == (3, 9, 4)
    J = next(network.orbit(vectors(9)).maps()).dense()
    projected = J @ (basis @ basis.mT).unsqueeze(1)
    torch.testing.assert_close(projected, J, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_layers_are_a_sequence_and_their_orbit_can_be_differentiated(name, settings):
    network, x = population(name, **settings), vectors()
    sequence = network.layer_sequence()
    assert all(len(role) == 3 for role in sequence.roles)
    assert len(sequence.roles) == len(network.block_names)
    Q = torch.eye(2, dtype=F64).expand(3, 5, 2, 2)
    for step in network.differentiable_orbit(x).maps():
        Q = step(Q)
    (by_weight,) = torch.autograd.grad(
        Q.square().sum(), [network.get_parameter(network.block_names[0])]
    )
    assert (by_weight.abs().amax((1, 2, 3)) > 0).all()
    assert population(name, depth=1, **settings).layer_sequence() is None
