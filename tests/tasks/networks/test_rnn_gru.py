"""RNN and GRU populations against torch.nn, and against themselves in company."""

import pytest
import torch

from tasks.base import generator_for, seed_for
from tasks.networks.dropout import DropoutStreams
from tasks.networks.gru import GRU
from tasks.networks.rnn import RNN

F64 = torch.float64
ALPHABET, OUTPUTS, UNITS = 5, 4, 6
KINDS = {
    "tanh": (RNN, {"activation": "tanh"}),
    "relu": (RNN, {"activation": "relu"}),
    "gru": (GRU, {}),
}
ORACLES = {
    "tanh": lambda *a, **k: torch.nn.RNN(*a, nonlinearity="tanh", **k),
    "relu": lambda *a, **k: torch.nn.RNN(*a, nonlinearity="relu", **k),
    "gru": torch.nn.GRU,
}
every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def population(kind, count=3, *, dtype=F64, start=0, **settings):
    network_type, fixed = KINDS[kind]
    settings.setdefault("init_scale", 0.6)
    members = range(start, start + count)
    configs = [
        network_type.Config(units=UNITS, dropout=0.1 * n, **fixed, **settings) for n in members
    ]
    return network_type(
        configs,
        input_size=ALPHABET,
        output_size=OUTPUTS,
        generators=[generator_for(n, "init") for n in members],
        dtype=dtype,
    )


def tokens(num_sequences=4, num_steps=7):
    return torch.randint(ALPHABET, (num_sequences, num_steps), generator=generator_for("tokens"))


def sequences(num_sequences=4, num_steps=7):
    shape = (num_sequences, num_steps, ALPHABET)
    return torch.randn(shape, generator=generator_for("x"), dtype=F64)


def masks(count=3, start=0):
    return DropoutStreams([seed_for(n, "dropout") for n in range(start, start + count)])


def oracle(kind, network, member):
    """The module of torch.nn with the weights of one member."""
    has_bias = hasattr(network, "bias_0")
    reference = ORACLES[kind](
        ALPHABET, UNITS, network.num_layers, bias=has_bias, batch_first=True, dtype=F64
    )
    with torch.no_grad():
        for layer in range(network.num_layers):
            W, U, b = (None if p is None else p[member] for p in network._layer(layer))
            getattr(reference, f"weight_ih_l{layer}").copy_(W)
            getattr(reference, f"weight_hh_l{layer}").copy_(U)
            if has_bias:
                getattr(reference, f"bias_ih_l{layer}").copy_(b)
                beside_h = getattr(reference, f"bias_hh_l{layer}").zero_()
                if kind == "gru":
                    beside_h[2 * UNITS :] = getattr(network, f"bias_reset_{layer}")[member]
    return reference


@every_kind
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_gradients_and_state_equal_torch_nn(kind, layers, bias):
    network = population(kind, layers=layers, bias=bias)
    x = sequences()
    state = network._zero_state(len(x))
    for _ in range(2):  # the second pass starts from the state of the first
        outputs, after = network(x, state)
        network.zero_grad()
        outputs.square().sum().backward()
        for n in range(3):
            reference = oracle(kind, network, n)
            hidden, h = reference(x, torch.stack([parts[0][n] for parts in state]))
            readout_bias = network.bias_out[n].detach() if bias else None
            expected = torch.nn.functional.linear(
                hidden, network.weight_out[n].detach(), readout_bias
            )
            expected.square().sum().backward()
            torch.testing.assert_close(outputs[n], expected, atol=1e-10, rtol=0)
            for layer in range(layers):
                torch.testing.assert_close(after[layer][0][n], h[layer], atol=1e-10, rtol=0)
                pairs = [("weight_in", "weight_ih"), ("weight_rec", "weight_hh")]
                if bias:
                    pairs.append(("bias", "bias_ih"))
                for ours, theirs in pairs:
                    torch.testing.assert_close(
                        getattr(network, f"{ours}_{layer}").grad[n],
                        getattr(reference, f"{theirs}_l{layer}").grad,
                        atol=1e-10,
                        rtol=1e-10,
                    )
                if bias and kind == "gru":
                    torch.testing.assert_close(
                        getattr(network, f"bias_reset_{layer}").grad[n],
                        getattr(reference, f"bias_hh_l{layer}").grad[2 * UNITS :],
                        atol=1e-10,
                        rtol=1e-10,
                    )
        state = after


@every_kind
def test_tokens_are_one_hot_inputs(kind):
    network = population(kind)
    one_hot = torch.nn.functional.one_hot(tokens(), ALPHABET).to(F64)
    assert torch.equal(network(tokens())[0], network(one_hot)[0])


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_member_alone_equals_itself_in_company(kind, dtype):
    together = population(kind, 3, dtype=dtype, layers=2)
    outputs, state = together(tokens(), dropout=masks())
    outputs.square().sum().backward()
    for n in range(3):
        alone = population(kind, 1, dtype=dtype, start=n, layers=2)
        output, its_state = alone(tokens(), dropout=masks(1, start=n))
        output.square().sum().backward()
        assert torch.equal(output[0], outputs[n])
        assert torch.equal(its_state[1][0][0], state[1][0][n])
        for ours, theirs in zip(alone.parameters(), together.parameters(), strict=True):
            assert torch.equal(ours.grad[0], theirs.grad[n])


@every_kind
def test_nan_in_one_member_leaves_the_others_bits(kind):
    healthy, poisoned = population(kind), population(kind)
    with torch.no_grad():
        poisoned.weight_rec_0[1, 0, 0] = float("nan")
    expected, _ = healthy(tokens())
    outputs, state = poisoned(tokens())
    assert outputs[1].isnan().any()
    assert not any(part.requires_grad for parts in state for part in parts)
    for n in (0, 2):
        assert torch.equal(outputs[n], expected[n])


@every_kind
@pytest.mark.parametrize("init", ["uniform", "gaussian", "orthogonal", "glorot"])
def test_init_scale_scales_every_gate_but_not_the_readout(kind, init):
    one = population(kind, 1, init=init, init_scale=1.0, bias=False)
    two = population(kind, 1, init=init, init_scale=2.0, bias=False)
    for name in ("weight_in_0", "weight_rec_0"):
        torch.testing.assert_close(2 * getattr(one, name), getattr(two, name), rtol=1e-14, atol=0)
    assert torch.equal(one.weight_out, two.weight_out)
    if init == "orthogonal":
        for gate in one.weight_rec_0[0].detach().split(UNITS):
            torch.testing.assert_close(
                gate @ gate.T, torch.eye(UNITS, dtype=F64), atol=1e-14, rtol=0
            )


@every_kind
def test_both_precisions_start_from_the_same_weights(kind):
    for a, b in zip(
        population(kind, dtype=F64).parameters(),
        population(kind, dtype=torch.float32).parameters(),
        strict=True,
    ):
        assert torch.equal(a.float(), b)


@every_kind
def test_members_of_two_shapes_are_refused(kind):
    network_type = KINDS[kind][0]
    with pytest.raises(ValueError, match="units: members of one population must agree"):
        network_type(
            [network_type.Config(units=3), network_type.Config(units=4)],
            input_size=2,
            output_size=2,
            generators=[generator_for(n) for n in range(2)],
        )
