"""log ‖∂h_T/∂x_t‖ by backward sweeps against autograd."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev

from pipeline.dynamics.ftle import input_ftle
from tasks.base import generator_for
from tasks.networks.gru import GRU
from tasks.networks.lstm import LSTM
from tasks.networks.rnn import RNN

F64 = torch.float64


def population(network_type, *, layers=1, count=2, units=4, inputs=3, scale=0.7, **settings):
    config = network_type.Config(units=units, layers=layers, init_scale=scale, **settings)
    return network_type(
        [config] * count,
        input_size=inputs,
        output_size=2,
        generators=[generator_for("inputs", n) for n in range(count)],
        dtype=F64,
    )


def sequences(num_sequences=3, num_steps=6, inputs=3):
    shape = (num_sequences, num_steps, inputs)
    return torch.randn(shape, generator=generator_for("x"), dtype=F64)


def attached(network, x_TBI):
    """The states of the last layer at the end, still in the graph: `forward` detaches them."""
    layers = [network._cell(i) for i in range(network.num_layers)]
    states = list(network._zero_state(x_TBI.shape[1]))
    for x in x_TBI.unbind(0):
        below = x.expand(network.num_members, *x.shape)
        for i, advance in enumerate(layers):
            W, _, b = network._layer(i)
            drive = below @ W.mT + (0 if b is None else b.unsqueeze(1))
            states[i] = advance(drive, states[i])
            below = states[i][0]
    return states, below


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("network_type", [RNN, GRU, LSTM])
def test_equals_autograd(network_type, layers):
    network, x = population(network_type, layers=layers), sequences()
    found = input_ftle(network, x)
    assert found.shape == (2, 3, 6)
    J = jacrev(lambda x: attached(network, x.transpose(0, 1))[1])(x).detach()  # N B H B T I
    for b in range(3):
        by_time = J[:, b, :, b].movedim(2, 1)
        expected = torch.linalg.svdvals(by_time)[..., 0].log()
        torch.testing.assert_close(found[:, b], expected, atol=1e-11, rtol=0)
    single = input_ftle(network, x, dtype=torch.float32)
    torch.testing.assert_close(single, found, atol=1e-4, rtol=0)


@settings(max_examples=12)
@given(
    network_type=st.sampled_from([RNN, GRU, LSTM]),
    units=st.integers(1, 5),
    layers=st.integers(1, 3),
    batch=st.integers(1, 3),
    steps=st.integers(1, 9),
    members=st.integers(1, 3),
    single=st.booleans(),
    seed=st.integers(0, 50),
)
def test_equals_autograd_whatever_the_shapes(
    network_type, units, layers, batch, steps, members, single, seed
):
    """Alone and in company, in any order, in both precisions."""
    network = population(network_type, layers=layers, count=members, units=units)
    x = torch.randn((batch, steps, 3), generator=generator_for("shapes", seed), dtype=F64)
    found = input_ftle(network, x, dtype=torch.float32 if single else F64)
    J = jacrev(lambda x: attached(network, x.transpose(0, 1))[1])(x).detach()
    expected = torch.stack(
        [torch.linalg.svdvals(J[:, b, :, b].movedim(2, 1))[..., 0].log() for b in range(batch)], 1
    )
    tolerance = {"atol": 1e-3 if single else 1e-9, "rtol": 0}
    torch.testing.assert_close(found, expected, **tolerance)
    alone = input_ftle(population(network_type, layers=layers, count=1, units=units), x.flip(0))
    torch.testing.assert_close(alone[0], found[0].flip(0), **tolerance)


def test_the_reference_is_the_network():
    for network_type in (RNN, GRU, LSTM):
        network, x = population(network_type, layers=2), sequences()
        outputs, _ = network(x)
        *_, h = attached(network, x.transpose(0, 1))
        expected = h @ network.weight_out.mT + network.bias_out.unsqueeze(1)
        torch.testing.assert_close(outputs[:, :, -1], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("state", ["full", "hidden"])
@pytest.mark.parametrize("network_type", [RNN, GRU, LSTM])
def test_transposes_are_those_of_the_dense_jacobian(network_type, state):
    network = population(network_type, layers=3)
    orbit = network.orbit(sequences(), state=state)
    for t, J in enumerate(orbit.maps()):
        P = torch.randn((2, 3, orbit.tangent_size, 5), generator=generator_for("P", t), dtype=F64)
        torch.testing.assert_close(J.transposed(P), J.dense().mT @ P, atol=1e-13, rtol=0)
    rows = torch.arange(orbit.tangent_size)[orbit.output_rows]
    assert rows.tolist() == list(range(rows[0], rows[0] + 4))
    parts = 2 if network_type is LSTM and state == "full" else 1
    assert rows[0] == orbit.tangent_size - 4 * parts


def test_tokens_count_as_one_hot_inputs():
    network = population(GRU)
    tokens = torch.randint(3, (2, 5), generator=generator_for("tokens"))
    one_hot = torch.nn.functional.one_hot(tokens, 3).to(F64)
    torch.testing.assert_close(
        input_ftle(network, tokens), input_ftle(network, one_hot), atol=1e-13, rtol=0
    )


def test_long_sequences_neither_underflow_nor_overflow():
    """A linear cell: ‖U^(T−t) W‖ in closed form, from e^−1000 to 1 and from 1 to e^1000."""
    for gain in (1e-3, 1e3):
        network = population(RNN, count=1, init="orthogonal", activation="relu", scale=1.0)
        with torch.no_grad():
            network.weight_rec_0.copy_(gain * torch.eye(4, dtype=F64))
            network.weight_in_0.abs_()
            network.bias_0.fill_(1.0)
        x = torch.ones((1, 100, 3), dtype=F64)
        found = input_ftle(network, x)[0, 0]
        norm = torch.linalg.svdvals(network.weight_in_0.detach())[0, 0].log()
        expected = norm + math.log(gain) * torch.arange(99, -1, -1, dtype=F64)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_an_input_that_cannot_matter_and_a_member_with_nan():
    network, x = population(RNN, count=3, activation="relu"), sequences()
    healthy = input_ftle(network, x)
    with torch.no_grad():
        network.bias_0[0] = -100.0
        network.weight_rec_0[1, 0, 0] = float("nan")
    found = input_ftle(network, x)
    assert torch.isneginf(found[0]).all()
    assert found[1].isnan().any()
    assert torch.equal(found[2], healthy[2])


def test_inputs_that_do_not_fit_are_refused():
    network = population(RNN)
    with pytest.raises(ValueError, match=r"inputs must be \(B, T, I\) or tokens"):
        input_ftle(network, torch.zeros(2, 0, 3))
    with pytest.raises(ValueError, match=r"dtype must be torch.float32 or torch.float64"):
        input_ftle(network, sequences(), dtype=torch.float16)

    class Bare:
        def orbit(self, inputs, *, dtype):
            orbit = network.orbit(inputs, dtype=dtype)
            orbit.maps = lambda: [lambda Q: Q]
            return orbit

    with pytest.raises(TypeError, match=r"transposed_with_inputs.*those of Bare"):
        input_ftle(Bare(), sequences())
