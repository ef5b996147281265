"""What cannot be measured is refused or marked by every measurement, never answered by a number.

Shapes: N members, B sequences, T steps, D state.
"""

import math

import pytest
import torch
from torch import nn

from pipeline.dynamics.clv import covariant_vectors
from pipeline.dynamics.ftle import finite_time_exponents, ftle_field, input_ftle, max_ftle
from pipeline.dynamics.local import local_exponents
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.gru import GRU
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP
from tasks.networks.rnn import RNN

F64 = torch.float64
ALONG_AN_ORBIT = [lyapunov_spectrum, local_exponents, covariant_vectors]
BY_LAYER = [
    lambda network, x: max_ftle(network, x),
    lambda network, x: ftle_field(network, x).exponents,
    lambda network, x: ftle_field(network, x, layer=2, method="sweeps").exponents,
    lambda network, x: finite_time_exponents(network, x, k=2),
]
NETWORKS = {
    "rnn": (RNN, {}),
    "relu rnn": (RNN, {"activation": "relu"}),
    "gru": (GRU, {}),
    "lstm": (LSTM, {}),
}
MODULES = {"nn.RNN": nn.RNN, "nn.GRU": nn.GRU, "nn.LSTM": nn.LSTM, "nn.GRUCell": nn.GRUCell}
every_measurement = pytest.mark.parametrize("measure", ALONG_AN_ORBIT, ids=lambda f: f.__name__)
every_source = pytest.mark.parametrize("kind", [*NETWORKS, *MODULES])
by_layer = pytest.mark.parametrize("measure", BY_LAYER, ids=["max", "field", "sweeps", "spectrum"])


def source(kind):
    if kind in MODULES:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return MODULES[kind](3, 4, dtype=F64)
    network_type, settings = NETWORKS[kind]
    generators = [generator_for("bad", n) for n in range(2)]
    configs = [network_type.Config(units=4, **settings)] * 2
    network = network_type(configs, input_size=3, output_size=3, generators=generators, dtype=F64)
    if kind == "relu rnn":
        with torch.no_grad():
            network.get_parameter("bias_0").add_(3)  # all alive: maps that can be inverted
    return network


def sequences(num_sequences=2, num_steps=40):
    shape = (num_sequences, num_steps, 3)
    return torch.randn(shape, generator=generator_for("bad x"), dtype=F64)


def mlp(activation="tanh", count=2, dtype=F64):
    generators = [generator_for("bad mlp", n) for n in range(count)]
    configs = [MLP.Config(width=5, depth=3, activation=activation)] * count
    return MLP(configs, input_size=3, output_size=2, generators=generators, dtype=dtype)


def numbers(measure, found):
    """(…, B) something of every sequence that is NaN where its numbers are."""
    if measure is lyapunov_spectrum:
        return found.per_sequence.sum(-1)
    growth = found.exponents if measure is local_exponents else found.growth
    return growth.sum((-2, -1))


@every_measurement
@every_source
def test_nan_in_the_inputs_stays_with_its_sequence(measure, kind):
    x = sequences()
    healthy = measure(source(kind), x)
    x[0, 20, 1] = math.nan
    found = measure(source(kind), x)
    is_nan = numbers(measure, found).isnan()
    assert is_nan[..., 0].all()
    assert not is_nan[..., 1].any()
    if measure is lyapunov_spectrum:
        assert found.exponents.isnan().all()
        assert not found.converged.any()
        assert not found.self_check_passed.any()
    else:
        ours, expected = numbers(measure, found), numbers(measure, healthy)
        torch.testing.assert_close(ours[..., 1], expected[..., 1], atol=1e-9, rtol=0)


@every_measurement
@every_source
def test_nan_in_the_weights_is_no_number(measure, kind):
    network = source(kind)
    weight = next(p for name, p in network.named_parameters() if "rec" in name or "hh" in name)
    with torch.no_grad():
        weight.reshape(-1)[0] = math.nan  # of the first member
    found = numbers(measure, measure(network, sequences())).isnan()
    assert (found[0] if kind in NETWORKS else found).all()
    if kind in NETWORKS:
        assert not found[1].any()


@pytest.mark.parametrize("kind", NETWORKS)
def test_nan_stays_at_home_where_frames_are_triangular(kind, device):
    """From 64 tangents on frames are eliminated one by one, without their zeros."""

    def spectrum(member=None, sequence=None):
        generators = [generator_for("wide", n) for n in range(2)]
        network_type, settings = NETWORKS[kind]
        network = network_type(
            [network_type.Config(units=66, **settings)] * 2,
            input_size=3,
            output_size=3,
            generators=generators,
            dtype=F64,
        )
        x = sequences(num_steps=24)
        if sequence is not None:
            x[sequence, 9, 1] = math.nan
        if member is not None:
            with torch.no_grad():
                network.weight_rec_0[member, 0, 0] = math.nan
        return lyapunov_spectrum(network, x)

    healthy, by_member, by_input = spectrum(), spectrum(member=0), spectrum(sequence=0)
    assert healthy.method == ("lu" if device.type == "cpu" else "householder")
    assert by_member.exponents[0].isnan().all()
    assert not by_member.self_check_passed[0]
    assert torch.equal(by_member.exponents[1], healthy.exponents[1])
    assert by_input.per_sequence[:, 0].isnan().all()
    assert by_input.exponents.isnan().all()
    assert not by_input.self_check_passed.any()
    assert not by_input.converged.any()
    # T_ON is a member's, and NaN shortens it: equal to rounding, where rounding is all there is.
    fine = ~(healthy.at_floor | by_input.at_floor)
    torch.testing.assert_close(
        by_input.per_sequence[:, 1][fine], healthy.per_sequence[:, 1][fine], atol=1e-6, rtol=0
    )


@every_measurement
@pytest.mark.parametrize("kind", MODULES)
def test_nan_in_the_start_state_is_no_number(measure, kind):
    D = 8 if "LSTM" in kind else 4
    start = torch.full((D,), math.nan, dtype=F64)
    assert numbers(measure, measure(source(kind), sequences(), start=start)).isnan().all()


@every_measurement
@pytest.mark.parametrize("size", [3, 70])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_jacobians_that_are_not_finite_give_no_number(measure, size, value):
    """70: by another factorisation than 3."""
    g = generator_for("bad J", size)
    J = torch.randn((24, size, size), generator=g, dtype=F64) / size**0.5
    J[12, 1, 1] = value
    assert numbers(measure, measure(J)).isnan().all()


@every_measurement
def test_an_orbit_that_escapes_gives_no_number(measure):
    def henon(s):
        return torch.stack([1 - 1.4 * s[:, 0] ** 2 + s[:, 1], 0.3 * s[:, 0]], 1)

    found = measure(henon, start=torch.tensor([5.0, 5.0], dtype=F64), steps=40)
    assert numbers(measure, found).isnan().all()


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nan_is_no_dead_unit_of_a_module(nonlinearity):
    """A comparison with NaN is false: a slope of 0 would make λ = −∞ of it."""
    made = source("nn.RNN")
    made.nonlinearity = nonlinearity
    x = sequences()
    x[0, 10, 0] = math.nan
    found = local_exponents(made, x).exponents
    assert found[0, 10:].isnan().all()
    assert not found[1].isnan().any()


@by_layer
@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "silu", "sigmoid"])
def test_nan_in_inputs_and_biases_of_layers(measure, activation):
    x = torch.randn((4, 3), generator=generator_for("bad v"), dtype=F64)
    healthy = measure(mlp(activation), x)
    x[1, 0] = math.nan
    found = measure(mlp(activation), x)
    is_bad = torch.arange(4) == 1
    axis = 1 if measure is BY_LAYER[3] else -1
    nan = found.isnan().movedim(axis, -1)
    assert nan[..., is_bad].all()
    assert not nan[..., ~is_bad].any()
    ours, expected = (v.movedim(axis, -1)[..., ~is_bad] for v in (found, healthy))
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)
    network = mlp(activation)
    with torch.no_grad():
        network.bias_1[1, 2] = math.nan
    found = measure(network, x.nan_to_num())
    nan = found.isnan()
    if measure in BY_LAYER[:2]:
        assert not nan[:, 0].any()  # the first layer comes before it
        nan = nan[:, 1:]
    assert nan[1].all()
    assert not nan[0].any()


@pytest.mark.parametrize("kind", NETWORKS)
def test_nan_reaches_the_sensitivity_to_inputs_of_its_sequence_alone(kind):
    x = sequences(num_steps=8)
    healthy = input_ftle(source(kind), x)
    x[0, 4, 1] = math.nan
    found = input_ftle(source(kind), x)
    assert found[:, 0].isnan().all()
    torch.testing.assert_close(found[:, 1], healthy[:, 1], atol=1e-12, rtol=0)


@every_measurement
@every_source
def test_sequences_and_settings_that_do_not_fit(measure, kind):
    made, x = source(kind), sequences()
    with pytest.raises(ValueError, match="none empty"):
        measure(made, x[:, :0])
    with pytest.raises(ValueError, match="none empty"):
        measure(made, x[:0])
    with pytest.raises(ValueError, match=r"warmup \+ steps must fit.*40 maps"):
        measure(made, x, warmup=40)
    with pytest.raises(ValueError, match=r"warmup \+ steps must fit"):
        measure(made, x, warmup=60)
    with pytest.raises(ValueError, match=r"k must be between 1 and the state's size \d, got 9"):
        measure(made, x, k=9)
    with pytest.raises(ValueError, match="needs `inputs`"):
        measure(made)


@every_measurement
def test_maps_that_are_not_square(measure):
    """Growth per step has no meaning across spaces of different size; local growth has."""
    network = mlp()
    x = torch.randn((4, 3), generator=generator_for("bad v"), dtype=F64)
    if measure is local_exponents:
        assert measure(network, x).exponents.shape == (2, 4, 3, 3)
        return
    with pytest.raises(ValueError, match=r"square maps; map 0 is 5 × 3"):
        measure(network, x, warmup=0)


def test_growth_over_maps_between_spaces_passes_its_self_check():
    """Σλ is compared with determinants only where every map has one."""
    g = generator_for("spaces")
    shapes = [(4, 3), (4, 4), (4, 4)]
    maps = [torch.randn(shape, generator=g, dtype=F64) for shape in shapes]
    for warmup in (0, 1):
        found = lyapunov_spectrum(maps, warmup=warmup, steps=3 - warmup)
        assert "sum_rule" not in found.self_check
        assert found.self_check_passed


@every_measurement
@every_source
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_wherever_it_hides(measure, kind, half):
    x, few_digits = sequences(), "carries too few digits"
    with pytest.raises(ValueError, match=few_digits):
        measure(source(kind).to(half), x)
    with pytest.raises(ValueError, match=few_digits):
        measure(source(kind), x.to(half))
    mixed = source(kind)
    last = list(mixed.parameters())[-1]
    last.data = last.data.to(half)
    with pytest.raises(ValueError, match=few_digits):
        measure(mixed, x)
    if kind in MODULES:
        start = torch.zeros(8 if "LSTM" in kind else 4, dtype=half)
        with pytest.raises(ValueError, match=few_digits):
            measure(source(kind), x, start=start)
    if measure is not covariant_vectors:  # which has no setting for it
        with pytest.raises(ValueError, match="dtype must be torch"):
            measure(source(kind), x, dtype=half)


@every_measurement
def test_half_precision_in_functions_and_maps(measure):
    J = [torch.eye(2, dtype=F64)] * 9 + [torch.eye(2).half()]
    for maps in (J, J[::-1], torch.eye(2).half().expand(9, 2, 2)):
        with pytest.raises(ValueError, match="carries too few digits"):
            measure(maps)
    with pytest.raises(ValueError, match="of the shape and dtype it gets"):
        measure(lambda s: s.half(), start=torch.ones(2), steps=9)
    with pytest.raises(ValueError, match="twice the size"):
        measure(torch.eye(2, dtype=torch.complex128).expand(9, 2, 2))


@by_layer
def test_half_precision_and_empty_inputs_of_layers(measure):
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="carries too few digits"):
        measure(mlp(dtype=torch.float16), x)
    with pytest.raises(ValueError, match="carries too few digits"):
        measure(mlp(), x.half())
    with pytest.raises(ValueError, match="not empty"):
        measure(mlp(), x[:0])


@pytest.mark.parametrize("kind", NETWORKS)
def test_bad_input_of_the_sensitivity_to_inputs(kind):
    with pytest.raises(ValueError, match="carries too few digits"):
        input_ftle(source(kind).half(), sequences())
    with pytest.raises(ValueError, match="carries too few digits"):
        input_ftle(source(kind), sequences().half())
    with pytest.raises(ValueError, match="none empty"):
        input_ftle(source(kind), sequences()[:, :0])


@by_layer
@pytest.mark.parametrize("kind", MODULES)
def test_ftles_need_networks_with_layers(measure, kind):
    x = torch.zeros(2, 3, dtype=F64)
    with pytest.raises(TypeError, match=r"need a network with `orbit`.* has none"):
        measure(source(kind), x)
    with pytest.raises(TypeError, match=r"need a network with `orbit`.* has none"):
        input_ftle(source(kind), sequences())
    with pytest.raises(TypeError, match="GRU is recurrent: its maps are time steps"):
        measure(source("gru"), x)
    with pytest.raises(TypeError, match=r"transposed_with_inputs"):
        input_ftle(mlp(), x)


@every_measurement
def test_frames_that_leave_a_direction_open_are_refused(measure):
    J = torch.eye(3, dtype=F64).expand(9, 3, 3)
    column = torch.ones(3, 1, dtype=F64)
    for frame in (torch.zeros(3, 2), torch.cat([column, column], 1), math.nan * torch.eye(3)):
        with pytest.raises(ValueError, match="finite, linearly independent columns"):
            measure(J, tangents=frame)


class Normed(nn.Module):
    """A feed-forward network of someone else, with an orbit and layers that know a mode."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()
        self.drop = nn.Dropout(0.5)

    def orbit(self, inputs, **settings):
        return self.inner.orbit(self.drop(inputs), **settings)


@by_layer
def test_networks_in_training_mode_are_measured_as_they_are_used(measure):
    x = torch.randn((4, 3), generator=generator_for("bad v"), dtype=F64)
    network = Normed().train()
    before = torch.get_rng_state()
    assert torch.equal(measure(network, x), measure(mlp(), x))
    assert torch.equal(torch.get_rng_state(), before)
    assert network.training
    assert network.drop.training


@every_measurement
@every_source
def test_training_mode_makes_no_difference(measure, kind):
    x = sequences()
    with torch.random.fork_rng():
        training = source(kind).train()
        evaluating = source(kind).eval()
        if kind in ("nn.RNN", "nn.GRU", "nn.LSTM"):
            training.dropout = evaluating.dropout = 0.5
        one, two = (numbers(measure, measure(m, x)) for m in (training, evaluating))
    assert torch.equal(one, two)
    assert training.training
    assert not evaluating.training


@every_measurement
def test_dropout_in_the_recurrence(measure):
    """In a module it is switched off; in a function it is seen, even on a state of zeros."""

    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.W = nn.Linear(4, 4, bias=False, dtype=F64)
            self.drop = nn.Dropout(0.5)

        def forward(self, s):
            return self.W(self.drop(torch.tanh(s)))

    made = Dropped().train()
    start = torch.zeros(4, dtype=F64)
    measure(made, start=start, steps=12)
    assert made.drop.training
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="a step must not be random"):
        measure(lambda s: made(s), start=start, steps=12)
    assert torch.equal(torch.get_rng_state(), before)
    # A mask drawn once, by a seed of its own, is a map.
    fixed = torch.bernoulli(torch.full((4,), 0.5, dtype=F64))
    measure(lambda s: made.W(fixed * torch.tanh(s)), start=start, steps=12)


@every_measurement
def test_a_module_that_computes_something_else_is_refused(measure):
    """Dropout on the recurrent weights, as in Merity et al. (2018), by way of a subclass."""

    class WeightDropped(nn.LSTM):
        def forward(self, x, state=None):
            return super().forward(nn.functional.dropout(x), state)

    with pytest.raises(ValueError, match="WeightDropped has a forward of its own"):
        measure(WeightDropped(3, 4, dtype=F64), sequences())
