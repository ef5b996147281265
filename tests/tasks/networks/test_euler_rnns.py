"""Recurrent networks that are steps of a differential equation: AntisymmetricRNN and coRNN."""

import math

import pytest
import torch

from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import UnsuitableError, generator_for
from tasks.networks.antisymmetric_rnn import AntisymmetricRNN
from tasks.networks.cornn import CoRNN
from tasks.networks.dropout import DropoutStreams
from tasks.networks.staircase import WholeFrame

H = 6


def antisymmetric_step(network, layer, x, s):
    M = network.get_parameter(f"weight_rec_{layer}")
    A = M - M.mT - network.friction * torch.eye(H, dtype=torch.float64)
    h = s + network.step * torch.tanh(s @ A.mT + entering(network, layer, x))
    return h, h


def oscillator_step(network, layer, x, s):
    """eq. (3) of Rusch & Mishra (2021) with n̄ = n − 1, y and z by themselves."""
    (dt, gamma, epsilon), U = network.oscillation, network.get_parameter(f"weight_rec_{layer}")
    y, z = s[..., :H], s[..., H:]
    a = y @ U[..., :H].mT + z @ U[..., H:].mT + entering(network, layer, x)
    z = z + dt * torch.tanh(a) - dt * gamma * y - dt * epsilon * z
    y = y + dt * z
    return y, torch.cat([y, z], -1)


def entering(network, layer, x):
    b = network.get_parameter(f"bias_{layer}").unsqueeze(1)
    return x @ network.get_parameter(f"weight_in_{layer}").mT + b


KINDS = {
    "antisymmetric": (AntisymmetricRNN, {"step": 0.3, "friction": 0.05}, antisymmetric_step, H),
    "cornn": (CoRNN, {"step": 0.3, "stiffness": 1.5, "damping": 0.8}, oscillator_step, 2 * H),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind, members=2, outputs=2, **settings):
    network, usual, *_ = KINDS[kind]
    return network(
        [network.Config(units=H, **(usual | settings))] * members,
        input_size=3,
        output_size=outputs,
        generators=[generator_for(kind, m) for m in range(members)],
        dtype=torch.float64,
    )


def noise(*shape):
    return torch.randn(shape, generator=generator_for("x", shape), dtype=torch.float64)


def by_the_equation(kind, network, x_BTI):
    """Outputs (N, B, T, O), one step and layer after the other."""
    step, width = KINDS[kind][2:]
    N = network.num_members
    state = [torch.zeros(N, len(x_BTI), width, dtype=torch.float64)] * network.num_layers
    outputs = []
    for x in x_BTI.unbind(1):
        below = x.expand(N, *x.shape)
        for layer in range(network.num_layers):
            below, state[layer] = step(network, layer, below, state[layer])
        outputs.append(below @ network.get_parameter("weight_out").mT)
    return torch.stack(outputs, 2) + network.get_parameter("bias_out")[:, None, None]


@kinds
@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_and_gradients_are_those_of_the_equation(kind, layers):
    network, x = make(kind, layers=layers), noise(4, 7, 3).requires_grad_()
    sought = [*network.parameters(), x]
    outputs, state = network(x)
    plain = by_the_equation(kind, network, x)
    torch.testing.assert_close(outputs, plain, rtol=1e-12, atol=1e-13)
    pull = noise(*outputs.shape)
    for ours, slow in zip(
        torch.autograd.grad((outputs * pull).sum(), sought),
        torch.autograd.grad((plain * pull).sum(), sought),
        strict=True,
    ):
        torch.testing.assert_close(ours, slow, rtol=1e-11, atol=1e-13)
    # The state goes on where it was left, and without a way back nothing is different.
    with torch.no_grad():
        _, halfway = network(x[:, :4])
        on, _ = network(x[:, 4:], halfway)
    torch.testing.assert_close(on, outputs[:, :, 4:], rtol=1e-12, atol=1e-13)
    assert state[0][0].shape == (2, 4, KINDS[kind][3])


@kinds
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("loop", ["open", "closed"])
def test_the_tangent_is_the_derivative(kind, layers, loop):
    network, x = make(kind, layers=layers, outputs=3), noise(3, 5, 3)
    D = layers * KINDS[kind][3]
    closed = loop == "closed"
    orbit = network.closed_orbit(x, steps=4) if closed else network.orbit(x)
    for J in orbit.maps():
        q, p = noise(2, 3, D), noise(2, 3, D, 1)
        moved = J(q.unsqueeze(-1))
        torch.testing.assert_close(moved[..., 0], J.autodiff(q), rtol=1e-11, atol=1e-13)
        back = (J.transposed(p) * q.unsqueeze(-1)).sum((2, 3))
        torch.testing.assert_close((p * moved).sum((2, 3)), back, rtol=1e-11, atol=1e-13)


@kinds
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("loop", ["open", "closed"])
def test_one_frame_moves_by_blocks_as_all_do_by_products(kind, layers, loop):
    network, x = make(kind, layers=layers, outputs=3), noise(3, 5, 3)
    Q = noise(2, 3, layers * KINDS[kind][3], 4)
    closed = loop == "closed"
    orbit = network.closed_orbit(x, steps=4) if closed else network.orbit(x)
    for J in orbit.maps():
        out = torch.full((4, Q.shape[2]), torch.nan, dtype=torch.float64)
        J.move(1, 2, WholeFrame(Q[1, 2].mT), out)
        torch.testing.assert_close(out.mT, J(Q)[1, 2], rtol=1e-11, atol=1e-13)


@kinds
def test_steps_in_the_graph_of_the_weights_are_those_of_the_formulas(kind):
    network, x = make(kind, layers=2), noise(3, 4, 3)
    Q = noise(2, 3, 2 * KINDS[kind][3], 5)
    pairs = zip(network.orbit(x).maps(), network.differentiable_orbit(x).maps(), strict=True)
    for formula, dual in pairs:
        torch.testing.assert_close(dual(Q), formula(Q), rtol=1e-11, atol=1e-13)


@kinds
def test_gradients_hold_with_dropout_and_two_layers(kind):
    network, x = make(kind, layers=2, dropout=0.4), noise(4, 5, 3)
    weights, name = list(network.parameters()), "weight_rec_1"

    def loss():
        streams = DropoutStreams([1, 2])
        return (network(x, dropout=streams)[0] ** 2).sum()

    names = [n for n, _ in network.named_parameters()]
    found = torch.autograd.grad(loss(), weights)[names.index(name)]
    with torch.no_grad():
        M = network.get_parameter(name)
        slopes = []
        for sign in (1, -1):
            M[1, 0, 3] += sign * 1e-6
            slopes.append(float(loss()))
            M[1, 0, 3] -= sign * 1e-6
    # Central differences: error of order 1e-12 over a step of 1e-6.
    assert (slopes[0] - slopes[1]) / 2e-6 == pytest.approx(float(found[1, 0, 3]), rel=1e-6)


@kinds
def test_the_rows_that_the_readout_sees_are_named(kind):
    network, x = make(kind, layers=2), noise(1, 4, 3)
    orbit, width = network.orbit(x), KINDS[kind][3]
    assert orbit.output_rows == slice(width, width + H)


def test_exponents_lie_near_zero_whatever_the_weights():
    """At rest J = 1 + ε A: of modulus √((1 − εγ)² + ε²ω²), ω the rotation."""
    still = {"init": "gaussian", "init_scale": 2.0, "step": 0.01, "friction": 0.0, "bias": False}
    network = make("antisymmetric", members=1, **still)
    rest = torch.zeros(1, 200, 3, dtype=torch.float64)
    found = lyapunov_spectrum(network, rest, warmup=0).exponents[0]
    M = network.get_parameter("weight_rec_0")[0]
    rotation = torch.linalg.eigvals(M - M.mT).imag
    exact = 0.5 * torch.log1p((0.01 * rotation) ** 2)
    # The transient of a normal matrix is only how the random frame turns into its eigenspaces.
    assert found.sum().item() == pytest.approx(exact.sum().item(), abs=1e-12)
    assert found.abs().max() < 0.002


@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_oscillators_coupled_by_place_alone_lose_a_known_volume(scale):
    network, x = make("cornn", init="gaussian", init_scale=scale), noise(2, 60, 3)
    with torch.no_grad():
        network.get_parameter("weight_rec_0")[..., H:] = 0
    found = lyapunov_spectrum(network, x, warmup=0, t_on=1).exponents
    # J is a shear after one that multiplies every z by 1 − Δt ε.
    exact = torch.full((2,), H * math.log(1 - 0.3 * 0.8), dtype=torch.float64)
    torch.testing.assert_close(found.sum(-1), exact, rtol=1e-10, atol=1e-12)


def test_an_oscillator_at_rest_decays_as_its_matrix_does():
    quiet = {"init_scale": 1e-12, "bias": False, "step": 0.1, "stiffness": 4.0, "damping": 0.5}
    network = make("cornn", members=1, **quiet)
    rest = torch.zeros(1, 400, 3, dtype=torch.float64)
    found = lyapunov_spectrum(network, rest, warmup=100).exponents[0]
    J = torch.tensor([[1 - 0.01 * 4.0, 0.1 * 0.95], [-0.1 * 4.0, 0.95]], dtype=torch.float64)
    moduli = torch.linalg.eigvals(J).abs().log()
    torch.testing.assert_close(moduli[0], moduli[1])  # it swings: a complex pair
    torch.testing.assert_close(found, moduli[0].expand(12), rtol=0, atol=2e-3)


def test_no_half_of_an_oscillator_is_its_state():
    with pytest.raises(UnsuitableError, match="hidden"):
        make("cornn").orbit(noise(1, 4, 3), state="hidden")
