"""The LSTM population against torch.nn.LSTM, against autograd, and against itself in company."""

import pytest
import torch

from tasks.base import UnsuitableError, generator_for, seed_for
from tasks.networks.dropout import DropoutStreams
from tasks.networks.lstm import LSTM

F64 = torch.float64
ALPHABET, OUTPUTS = 5, 4


def population(count=3, *, dtype=F64, start=0, **settings):
    settings.setdefault("init_scale", 0.6)
    members = range(start, start + count)
    configs = [LSTM.Config(units=6, dropout=0.1 * n, **settings) for n in members]
    generators = [generator_for(n, "init") for n in members]
    return LSTM(
        configs, input_size=ALPHABET, output_size=OUTPUTS, generators=generators, dtype=dtype
    )


def tokens(num_sequences=4, num_steps=7):
    return torch.randint(ALPHABET, (num_sequences, num_steps), generator=generator_for("tokens"))


def sequences(num_sequences=4, num_steps=7):
    shape = (num_sequences, num_steps, ALPHABET)
    return torch.randn(shape, generator=generator_for("x"), dtype=F64)


def masks(count=3, start=0):
    return DropoutStreams([seed_for(n, "dropout") for n in range(start, start + count)])


def oracle(network, member):
    """torch.nn.LSTM with the weights of one member."""
    layers = network.num_layers
    has_bias = hasattr(network, "bias_0")
    reference = torch.nn.LSTM(
        network.input_size, network.units, layers, bias=has_bias, batch_first=True, dtype=F64
    )
    with torch.no_grad():
        for layer in range(layers):
            W, U, b = (None if p is None else p[member] for p in network._layer(layer))
            getattr(reference, f"weight_ih_l{layer}").copy_(W)
            getattr(reference, f"weight_hh_l{layer}").copy_(U)
            if has_bias:
                getattr(reference, f"bias_ih_l{layer}").copy_(b)
                getattr(reference, f"bias_hh_l{layer}").zero_()
    return reference


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_gradients_and_state_equal_nn_lstm(layers, bias):
    network = population(layers=layers, bias=bias)
    x = sequences()
    state = network._zero_state(len(x))
    for _ in range(2):  # the second pass starts from the state of the first
        outputs, after = network(x, state)
        network.zero_grad()
        outputs.square().sum().backward()
        for n in range(3):
            reference = oracle(network, n)
            h0, c0 = (torch.stack([pair[i][n] for pair in state]) for i in (0, 1))
            hidden, (h, c) = reference(x, (h0, c0))
            readout_bias = network.bias_out[n].detach() if bias else None
            expected = torch.nn.functional.linear(
                hidden, network.weight_out[n].detach(), readout_bias
            )
            expected.square().sum().backward()
            torch.testing.assert_close(outputs[n], expected, atol=1e-10, rtol=0)
            for layer in range(layers):
                torch.testing.assert_close(after[layer][0][n], h[layer], atol=1e-10, rtol=0)
                torch.testing.assert_close(after[layer][1][n], c[layer], atol=1e-10, rtol=0)
                pairs = [("weight_in", "weight_ih"), ("weight_rec", "weight_hh")]
                for ours, theirs in [*pairs, *([("bias", "bias_ih")] if bias else [])]:
                    torch.testing.assert_close(
                        getattr(network, f"{ours}_{layer}").grad[n],
                        getattr(reference, f"{theirs}_l{layer}").grad,
                        atol=1e-10,
                        rtol=1e-10,
                    )
        state = after


def test_tokens_are_one_hot_inputs():
    network = population()
    one_hot = torch.nn.functional.one_hot(tokens(), ALPHABET).to(F64)
    assert torch.equal(network(tokens())[0], network(one_hot)[0])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_member_alone_equals_itself_in_company(dtype):
    together = population(3, dtype=dtype, layers=2)
    outputs, state = together(tokens(), dropout=masks())
    outputs.square().sum().backward()
    for n in range(3):
        alone = population(1, dtype=dtype, start=n, layers=2)
        output, its_state = alone(tokens(), dropout=masks(1, start=n))
        output.square().sum().backward()
        assert torch.equal(output[0], outputs[n])
        assert torch.equal(its_state[1][1][0], state[1][1][n])
        for ours, theirs in zip(alone.parameters(), together.parameters(), strict=True):
            assert torch.equal(ours.grad[0], theirs.grad[n])


def test_nan_in_one_member_leaves_the_others_bits():
    healthy, poisoned = population(), population()
    with torch.no_grad():
        poisoned.weight_rec_0[1, 0, 0] = float("nan")
    expected, _ = healthy(tokens())
    outputs, _ = poisoned(tokens())
    assert outputs[1].isnan().any()
    healthy(tokens())[0].square().sum((1, 2, 3)).sum().backward()
    outputs.square().sum((1, 2, 3)).sum().backward()
    for n in (0, 2):
        assert torch.equal(outputs[n], expected[n])
        for ours, theirs in zip(poisoned.parameters(), healthy.parameters(), strict=True):
            assert torch.equal(ours.grad[n], theirs.grad[n])


def test_the_carried_state_is_detached():
    _, state = population(layers=2)(tokens())
    assert all(not part.requires_grad for pair in state for part in pair)


def test_both_precisions_start_from_the_same_weights():
    for a, b in zip(
        population(dtype=F64).parameters(),
        population(dtype=torch.float32).parameters(),
        strict=True,
    ):
        assert torch.equal(a.float(), b)


@pytest.mark.parametrize("init", ["uniform", "gaussian", "orthogonal", "glorot"])
def test_init_scale_scales_every_gate_but_not_the_readout(init):
    one = population(1, init=init, init_scale=1.0, bias=False)
    two = population(1, init=init, init_scale=2.0, bias=False)
    for name in ("weight_in_0", "weight_rec_0"):
        torch.testing.assert_close(2 * getattr(one, name), getattr(two, name), rtol=1e-14, atol=0)
    assert torch.equal(one.weight_out, two.weight_out)
    if init == "orthogonal":
        for gate in one.weight_rec_0[0].detach().chunk(4):
            torch.testing.assert_close(gate @ gate.T, torch.eye(6, dtype=F64), atol=1e-14, rtol=0)
    if init == "uniform":
        assert two.weight_rec_0.abs().max() <= 2


def test_forget_bias_enters_the_forget_gate_alone():
    plain = population(1)
    remembering = population(1, forget_bias=1.5)
    difference = (remembering.bias_0 - plain.bias_0).detach()[0].reshape(4, 6)
    torch.testing.assert_close(difference[1], torch.full((6,), 1.5, dtype=F64))
    assert not difference[[0, 2, 3]].any()
    with pytest.raises(UnsuitableError, match="forget_bias needs bias"):
        population(1, forget_bias=1.5, bias=False)


def test_members_of_two_shapes_are_refused():
    configs = [LSTM.Config(units=3), LSTM.Config(units=4)]
    generators = [generator_for(n) for n in range(2)]
    with pytest.raises(ValueError, match="units: members of one population must agree"):
        LSTM(configs, input_size=2, output_size=2, generators=generators)
