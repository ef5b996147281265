"""The tangent of an LSTM step against autograd and the worked example of one unit."""

import pytest
import torch
from torch.func import jacrev

from tasks.base import generator_for
from tasks.networks.lstm import LSTM

F64 = torch.float64


def population(layers, bias=True, scale=1.0):
    configs = [
        LSTM.Config(units=4, layers=layers, bias=bias, init_scale=scale + n) for n in range(2)
    ]
    return LSTM(
        configs,
        input_size=3,
        output_size=2,
        generators=[generator_for("tangent", n) for n in range(2)],
        dtype=F64,
    )


def step_of(network, member, inputs, convention):
    """s ↦ F(s, x) of one member and sequence; hidden: c is taken from the state `held`."""
    layers = [
        tuple(None if p is None else p[member].detach() for p in network._layer(i))
        for i in range(network.num_layers)
    ]

    def step(varied, held):
        x, after = inputs, []
        for layer, (W, U, b) in enumerate(layers):
            h = varied[layer, 0]
            c = varied[layer, 1] if convention == "full" else held[layer, 1]
            a = W @ x + U @ h + (0 if b is None else b)
            i, f, g, o = a.reshape(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            x = torch.sigmoid(o) * torch.tanh(c)
            after.append(torch.stack([x, c]))
        return torch.stack(after)

    return step


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("convention", ["full", "hidden"])
def test_tangents_equal_autograd(layers, bias, convention):
    network = population(layers, bias)
    x = torch.randn((2, 5, 3), generator=generator_for("x"), dtype=F64)
    state = torch.zeros(2, 2, layers, 2, 4, dtype=F64)
    orbit = network.orbit(x, state=convention)
    for t, J in enumerate(orbit.maps()):
        D = orbit.tangent_size
        Q = torch.randn((2, 2, D, 3), generator=generator_for("Q", t), dtype=F64)
        dense, moved = J.dense(), J(Q)
        torch.testing.assert_close(J.autodiff(Q[..., 0]), moved[..., 0], atol=1e-12, rtol=1e-12)
        for n in range(2):
            for b in range(2):
                step = step_of(network, n, x[b, t], convention)
                s = state[n, b]
                whole = jacrev(lambda v, f=step, s=s: f(v, s))(s)
                expected = (
                    whole.reshape(8 * layers, 8 * layers)
                    if convention == "full"
                    else whole[:, 0, :, :, 0].reshape(4 * layers, 4 * layers)
                )
                torch.testing.assert_close(dense[n, b], expected, atol=1e-12, rtol=1e-12)
                torch.testing.assert_close(moved[n, b], expected @ Q[n, b], atol=1e-12, rtol=1e-12)
                state[n, b] = step(s, s)
        if convention == "full":
            determinant = torch.linalg.slogdet(dense).logabsdet
            torch.testing.assert_close(J.log_abs_det(), determinant, atol=1e-10, rtol=1e-10)
        else:
            assert J.log_abs_det() is None


def test_the_orbit_follows_the_network_on_tokens():
    network = population(2)
    tokens = torch.randint(3, (2, 6), generator=generator_for("tokens"))
    one_hot = torch.nn.functional.one_hot(tokens, 3).to(F64)
    last = [list(network.orbit(inputs).maps())[-1].dense() for inputs in (tokens, one_hot)]
    torch.testing.assert_close(*last, atol=1e-14, rtol=0)
    _, state = network(tokens[:, :-1])
    before = list(network.orbit(tokens).maps())[-1].before
    for ours, theirs in zip(before, state, strict=True):
        torch.testing.assert_close(ours[0], theirs[0], atol=1e-14, rtol=0)
        torch.testing.assert_close(ours[1], theirs[1], atol=1e-14, rtol=0)


def test_a_saturated_cell_keeps_its_tiny_derivative():
    network = population(1, scale=20.0)
    x = torch.full((1, 1, 3), 3.0, dtype=F64)
    J = next(iter(network.orbit(x).maps()))
    for gain in J.gains[0]:
        assert torch.isfinite(gain).all()
    # Autograd's 1 − tanh² is exactly 0 here, the true derivative is not.
    assert (J.gains[0].by_g != 0).all()


def scalar_cell():
    """Weights for which one step and the fixed point at x = 0.7 were worked out by autograd."""
    config = LSTM.Config(units=1)
    network = LSTM([config], input_size=1, output_size=1, generators=[generator_for(0)], dtype=F64)
    with torch.no_grad():
        network.weight_rec_0.copy_(torch.tensor([0.4, 0.6, -0.7, 0.9], dtype=F64).reshape(1, 4, 1))
        network.weight_in_0.copy_(torch.tensor([0.5, -0.3, 0.8, 0.2], dtype=F64).reshape(1, 4, 1))
        network.bias_0.copy_(torch.tensor([[0.1, 1.0, 0.0, -0.2]], dtype=F64))
    return network


def test_worked_example_of_one_unit():
    from tasks.networks.lstm_tangent import LayerWeights, LSTMStep, advance

    network = scalar_cell()
    weights = LayerWeights(*(p.detach() for p in network._layer(0)))
    h, c = (torch.tensor([[[v]]], dtype=F64) for v in (0.3, -0.4))
    drive = 0.7 * weights.W.mT + weights.b.unsqueeze(1)
    h_new, c_new, gains = advance(weights, drive, h, c)
    assert h_new.item() == pytest.approx(-0.041446372051, abs=1e-12)
    assert c_new.item() == pytest.approx(-0.075183488373, abs=1e-12)
    log_det_Uo = weights.U[:, 3:].abs().log().reshape(1)
    J = LSTMStep((weights,), (gains,), "full", drive, ((h, c),), log_det_Uo)
    expected = torch.tensor(
        [[-0.243700659879, 0.398233949373], [-0.413331983222, 0.725119497790]], dtype=F64
    )
    torch.testing.assert_close(J.dense()[0, 0], expected, atol=1e-12, rtol=0)
    assert J.log_abs_det().item() == pytest.approx(-4.413783836989, abs=1e-11)
    sigma = torch.linalg.svdvals(J.dense()[0, 0])
    torch.testing.assert_close(
        sigma, torch.tensor([0.956274831770, 0.012662962174], dtype=F64), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_closed_loop_is_fed_with_its_own_outputs(layers, bias):
    config = LSTM.Config(units=4, layers=layers, bias=bias)
    network = LSTM(
        [config] * 2,
        input_size=3,
        output_size=3,
        generators=[generator_for("closed", n) for n in range(2)],
        dtype=F64,
    )
    x = torch.randn((2, 5, 3), generator=generator_for("x"), dtype=F64)
    for J in network.closed_orbit(x, steps=4, state="full").maps():
        q = torch.randn((2, 2, 8 * layers), generator=generator_for("q"), dtype=F64)
        moved = J(q.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(J.autodiff(q), moved, atol=1e-13, rtol=0)
        assert J.log_abs_det() is None
    # One member and sequence by hand, through the network itself.
    outputs, state = network(x)
    for J in network.closed_orbit(x, steps=4).maps():
        for ours, theirs in zip(J.before, state, strict=True):
            torch.testing.assert_close(ours[0], theirs[0], atol=1e-13, rtol=0)
        fed = torch.stack([network(outputs[n, :, -1:], state)[0][n] for n in range(2)])
        state = tuple(
            tuple(
                torch.stack([network(outputs[n, :, -1:], state)[1][layer][part][n] for n in (0, 1)])
                for part in (0, 1)
            )
            for layer in range(layers)
        )
        outputs = fed


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("convention", ["full", "hidden"])
def test_weighting_rows_first_changes_nothing(layers, convention):
    x = torch.randn((2, 4, 3), generator=generator_for("x"), dtype=F64)
    for J in population(layers).orbit(x, state=convention).maps():
        dense = J.dense()
        Q = torch.randn(dense.shape, generator=generator_for("Q"), dtype=F64)
        torch.testing.assert_close(J._by_blocks(Q), dense @ Q, atol=1e-12, rtol=0)
