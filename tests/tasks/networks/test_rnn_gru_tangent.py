"""Tangents of RNN and GRU steps against autograd, their transposes, and cells of one unit."""

import math

import pytest
import torch
from torch.func import jacrev

from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.gru import GRU
from tasks.networks.rnn import RNN

F64 = torch.float64
KINDS = {
    "tanh": (RNN, {"activation": "tanh"}),
    "relu": (RNN, {"activation": "relu"}),
    "gru": (GRU, {}),
}
every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def population(kind, layers=1, *, units=4, inputs=3, scale=1.0, count=2, **settings):
    network_type, fixed = KINDS[kind]
    configs = [
        network_type.Config(units=units, layers=layers, init_scale=scale + n, **fixed, **settings)
        for n in range(count)
    ]
    generators = [generator_for("tangent", n) for n in range(count)]
    return network_type(configs, input_size=inputs, output_size=2, generators=generators, dtype=F64)


def sequences(num_sequences=2, num_steps=5):
    shape = (num_sequences, num_steps, 3)
    return torch.randn(shape, generator=generator_for("x"), dtype=F64)


def step_of(kind, network, member):
    """(s, x) ↦ F(s, x) of one member in plain torch; s is (layers, H)."""
    layers = []
    for i in range(network.num_layers):
        weights = [None if p is None else p[member].detach() for p in network._layer(i)]
        b_hn = getattr(network, f"bias_reset_{i}", None)
        layers.append((*weights, None if b_hn is None else b_hn[member].detach()))

    def step(s, x):
        after = []
        for h, (W, U, b, b_hn) in zip(s, layers, strict=True):
            w, u = W @ x + (0 if b is None else b), U @ h
            if kind == "gru":
                (w_r, w_z, w_n), (u_r, u_z, u_n) = w.chunk(3), u.chunk(3)
                r, z = torch.sigmoid(w_r + u_r), torch.sigmoid(w_z + u_z)
                n = torch.tanh(w_n + r * (u_n + (0 if b_hn is None else b_hn)))
                x = (1 - z) * n + z * h
            else:
                x = getattr(torch, kind)(w + u)
            after.append(x)
        return torch.stack(after)

    return step


@every_kind
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("convention", ["full", "hidden"])
def test_tangents_and_their_transposes_equal_autograd(kind, layers, bias, convention):
    network = population(kind, layers, bias=bias)
    x = sequences()
    state = torch.zeros(2, 2, layers, 4, dtype=F64)
    orbit = network.orbit(x, state=convention)
    D = orbit.tangent_size
    assert (D, orbit.state) == (4 * layers, convention)
    tight = {"atol": 1e-12, "rtol": 1e-12}
    for t, J in enumerate(orbit.maps()):
        Q = torch.randn((2, 2, D, 3), generator=generator_for("Q", t), dtype=F64)
        dense, moved = J.dense(), J(Q)
        pulled, to_input = J.transposed_with_inputs(Q)
        torch.testing.assert_close(J.autodiff(Q[..., 0]), moved[..., 0], **tight)
        assert torch.equal(J.transposed(Q), pulled)
        for n in range(2):
            step = step_of(kind, network, n)
            for b in range(2):
                s = state[n, b]
                by_state, by_input = jacrev(step, (0, 1))(s, x[b, t])
                by_state = by_state.reshape(D, D)
                by_input = by_input.reshape(D, 3)
                torch.testing.assert_close(dense[n, b], by_state, **tight)
                torch.testing.assert_close(moved[n, b], by_state @ Q[n, b], **tight)
                torch.testing.assert_close(pulled[n, b], by_state.T @ Q[n, b], **tight)
                torch.testing.assert_close(to_input[n, b], by_input.T @ Q[n, b], **tight)
                state[n, b] = step(s, x[b, t])
        if kind == "gru":
            assert J.log_abs_det() is None
        else:
            determinant = torch.linalg.slogdet(dense).logabsdet
            torch.testing.assert_close(J.log_abs_det(), determinant, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("layers", [1, 2])
def test_many_tangents_of_a_gru_move_like_few(layers):
    """From some number of tangents on, J is formed."""
    J = list(population("gru", layers, units=40, scale=0.3).orbit(sequences()).maps())[-1]
    Q = torch.randn((2, 2, 40 * layers, 200), generator=generator_for("Q"), dtype=F64)
    few = torch.cat([J(part) for part in Q.split(20, dim=-1)], dim=-1)
    torch.testing.assert_close(J(Q), few, atol=1e-12, rtol=1e-12)


@every_kind
def test_the_orbit_follows_the_network_on_tokens(kind):
    network = population(kind, 2)
    tokens = torch.randint(3, (2, 6), generator=generator_for("tokens"))
    one_hot = torch.nn.functional.one_hot(tokens, 3).to(F64)
    last = [list(network.orbit(inputs).maps())[-1] for inputs in (tokens, one_hot)]
    torch.testing.assert_close(last[0].dense(), last[1].dense(), atol=1e-14, rtol=0)
    _, state = network(tokens[:, :-1])
    for ours, theirs in zip(last[0].before, state, strict=True):
        torch.testing.assert_close(ours, theirs[0], atol=1e-14, rtol=0)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("tokens", [True, False])
def test_sum_rule_of_the_rnn(layers, tokens):
    """Σλ = ⟨Σ ln φ'⟩ + ln|det U|, summed over layers."""
    # Small enough that no step is so ill-conditioned that its smallest R_ii loses digits.
    network = population("tanh", layers, scale=0.4)
    shape = (3, 60) if tokens else (3, 60, 3)
    g = generator_for("sum")
    x = torch.randint(3, shape, generator=g) if tokens else torch.randn(shape, generator=g)
    spectrum = lyapunov_spectrum(network, x, warmup=10, t_on=1)
    steps = list(network.orbit(x).maps())[10:]
    slopes = torch.stack([sum(g.log().sum(-1) for g in J.gains) for J in steps]).mean(0)
    log_det_U = sum(
        torch.linalg.slogdet(getattr(network, f"weight_rec_{i}").detach()).logabsdet
        for i in range(layers)
    )
    total = spectrum.per_sequence.sum(-1)
    torch.testing.assert_close(total, slopes + log_det_U.unsqueeze(1), atol=1e-10, rtol=0)
    assert spectrum.self_check_passed.all()


def test_sum_rule_of_the_gru():
    """No closed form: the determinants of the dense Jacobians."""
    network = population("gru", 2, scale=0.5)
    x = torch.randn((3, 60, 3), generator=generator_for("sum"), dtype=F64)
    spectrum = lyapunov_spectrum(network, x, warmup=10, t_on=1)
    steps = list(network.orbit(x).maps())[10:]
    log_det = torch.stack([torch.linalg.slogdet(J.dense()).logabsdet for J in steps]).mean(0)
    torch.testing.assert_close(spectrum.per_sequence.sum(-1), log_det, atol=1e-10, rtol=0)


def test_without_recurrent_weights_the_rnn_is_dead():
    network = population("tanh")
    with torch.no_grad():
        network.weight_rec_0.zero_()
    x = torch.randn((2, 30, 3), generator=generator_for("x"), dtype=F64)
    spectrum = lyapunov_spectrum(network, x, warmup=5)
    assert torch.isneginf(spectrum.exponents).all()
    assert spectrum.minus_infinity.all()
    assert (spectrum.num_zeros > 0).all()


def test_without_recurrent_weights_the_gru_forgets_at_the_rate_of_its_update_gate():
    """λ_i = ⟨ln z_i⟩, exactly so from a frame along the axes."""
    network = population("gru", units=3)
    with torch.no_grad():
        network.weight_rec_0.zero_()
    x = torch.randn((2, 400, 3), generator=generator_for("x"), dtype=F64)
    log_z = torch.stack([J.gains[0].z.log() for J in network.orbit(x).maps()]).mean(0)
    spectrum = lyapunov_spectrum(network, x, warmup=0, tangents=torch.eye(3, dtype=F64))
    torch.testing.assert_close(spectrum.per_sequence, log_z, atol=1e-12, rtol=0)
    # From a random frame the directions must still be found; they come out in order.
    free = lyapunov_spectrum(network, x, warmup=100)
    later = torch.stack([J.gains[0].z.log() for J in network.orbit(x).maps()])[100:].mean(0)
    expected = later.sort(dim=-1, descending=True).values
    torch.testing.assert_close(free.per_sequence, expected, atol=2e-2, rtol=0)


def one_unit(network, **weights):
    with torch.no_grad():
        for name, values in weights.items():
            weight = network.get_parameter(name)
            weight.copy_(torch.tensor(values, dtype=F64).reshape(weight.shape))
    return network


def test_worked_example_of_a_gru_of_one_unit():
    """In PyTorch's form: b_ih = (.1, .2, 0), b_hh = (0, 0, .3)."""
    network = one_unit(
        population("gru", units=1, inputs=1, count=1),
        weight_in_0=[0.5, -0.3, 0.8],
        weight_rec_0=[0.4, 0.6, -0.7],
        bias_0=[0.1, 0.2, 0.0],
        bias_reset_0=[0.3],
    )
    cell = network.orbit(torch.zeros(1, 1, 1))._cells[0]
    h_new, gains = cell.advance(
        0.7 * cell.W.mT + cell.b.unsqueeze(1), torch.full((1, 1, 1), 0.3, dtype=F64)
    )
    assert h_new.item() == pytest.approx(0.414115468284, abs=1e-12)
    moved = torch.empty(1, 1, 1, 1, dtype=F64)
    cell.push(gains, torch.ones_like(moved), None, moved)
    assert moved.item() == pytest.approx(0.365059018978, abs=1e-12)

    x = torch.full((1, 600, 1), 0.7, dtype=F64)
    *_, last = network.orbit(x).maps()
    assert last.before[0].item() == pytest.approx(0.487595296245, abs=1e-12)
    spectrum = lyapunov_spectrum(network, x, warmup=200)
    assert spectrum.exponents.item() == pytest.approx(-0.871017675732, abs=1e-11)


def test_fixed_point_of_an_rnn_of_one_unit():
    """h = tanh(1.7 h + .1)."""
    network = one_unit(
        population("tanh", units=1, inputs=1, count=1),
        weight_in_0=[0.0],
        weight_rec_0=[1.7],
        bias_0=[0.1],
    )
    x = torch.zeros((1, 600, 1), dtype=F64)
    *_, last = network.orbit(x).maps()
    assert last.before[0].item() == pytest.approx(0.933829298146, abs=1e-12)
    spectrum = lyapunov_spectrum(network, x, warmup=200)
    assert spectrum.exponents.item() == pytest.approx(-1.525387103617, abs=1e-11)


def test_scaled_orthogonal_relu_network_that_never_clips_is_linear():
    """With large biases every unit is open: J = g O, λ_i = ln g."""
    network = population("relu", units=5, count=1, init="orthogonal", scale=0.25)
    with torch.no_grad():
        network.weight_in_0.zero_()
        network.bias_0.fill_(100.0)
    spectrum = lyapunov_spectrum(network, torch.zeros(2, 50, 3, dtype=F64), warmup=0)
    expected = torch.full((1, 5), math.log(0.25), dtype=F64)
    torch.testing.assert_close(spectrum.exponents, expected, atol=1e-12, rtol=0)


def test_saturated_units_keep_their_tiny_derivative():
    """Autograd's 1 − tanh² is exactly 0 here, the true derivative is not."""
    for kind in ("tanh", "gru"):
        network = population(kind, scale=30.0)
        J = next(iter(network.orbit(torch.full((1, 1, 3), 3.0, dtype=F64)).maps()))
        dense = J.dense()
        assert torch.isfinite(dense).all()
        assert (dense != 0).all()
