import pytest
import torch

from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.antisymmetric_rnn import AntisymmetricRNN
from tasks.networks.dropout import DropoutStreams


def make(members=2, **settings):
    return AntisymmetricRNN(
        [AntisymmetricRNN.Config(units=6, **settings)] * members,
        input_size=3,
        output_size=2,
        generators=[generator_for("antisymmetric", m) for m in range(members)],
        dtype=torch.float64,
    )


def noise(*shape):
    return torch.randn(shape, generator=generator_for("x", shape), dtype=torch.float64)


def stepped(network, x_BTI):
    """Outputs (N, B, T, O) by the equation, one unit at a time left to torch."""
    M = network.get_parameter("weight_rec_0")
    W, b = network.get_parameter("weight_in_0"), network.get_parameter("bias_0")
    A = M - M.mT - network.friction * torch.eye(6, dtype=torch.float64)
    h = torch.zeros(len(M), len(x_BTI), 6, dtype=torch.float64)
    outputs = []
    for x in x_BTI.unbind(1):
        h = h + network.step * torch.tanh(h @ A.mT + x @ W.mT + b.unsqueeze(1))
        outputs.append(h @ network.get_parameter("weight_out").mT)
    return torch.stack(outputs, 2) + network.get_parameter("bias_out")[:, None, None]


def test_outputs_and_gradients_are_those_of_the_equation():
    network, x = make(step=0.3, friction=0.05), noise(4, 7, 3)
    weights = list(network.parameters())
    outputs, state = network(x)
    plain = stepped(network, x)
    torch.testing.assert_close(outputs, plain, rtol=1e-12, atol=1e-13)
    pull = noise(*outputs.shape)
    for ours, slow in zip(
        torch.autograd.grad((outputs * pull).sum(), weights),
        torch.autograd.grad((plain * pull).sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, slow, rtol=1e-11, atol=1e-13)
    # The state goes on where it was left.
    _, halfway = network(x[:, :4])
    on, _ = network(x[:, 4:], halfway)
    torch.testing.assert_close(on, outputs[:, :, 4:], rtol=1e-12, atol=1e-13)
    assert state[0][0].shape == (2, 4, 6)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_tangent_is_the_derivative(layers):
    network, x = make(layers=layers, step=0.4, friction=0.1), noise(3, 5, 3)
    for J in network.orbit(x).maps():
        q = noise(2, 3, 6 * layers)
        torch.testing.assert_close(
            J(q.unsqueeze(-1))[..., 0], J.autodiff(q), rtol=1e-11, atol=1e-13
        )
        p = noise(2, 3, 6 * layers, 1)
        forth = (p * J(q.unsqueeze(-1))).sum((2, 3))
        back = (J.transposed(p) * q.unsqueeze(-1)).sum((2, 3))
        torch.testing.assert_close(forth, back, rtol=1e-11, atol=1e-13)


def test_gradients_hold_with_dropout_and_two_layers():
    network, x = make(layers=2, dropout=0.4, step=0.3), noise(4, 5, 3)
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


def test_exponents_lie_near_zero_whatever_the_weights():
    """At rest J = 1 + ε A: of modulus √((1 − εγ)² + ε²ω²), ω the rotation."""
    network = make(members=1, init="gaussian", init_scale=2.0, step=0.01, friction=0.0, bias=False)
    still = torch.zeros(1, 200, 3, dtype=torch.float64)
    found = lyapunov_spectrum(network, still, warmup=0).exponents[0]
    M = network.get_parameter("weight_rec_0")[0]
    rotation = torch.linalg.eigvals(M - M.mT).imag
    exact = 0.5 * torch.log1p((0.01 * rotation) ** 2)
    # The transient of a normal matrix is only how the random frame turns into its eigenspaces.
    assert found.sum().item() == pytest.approx(exact.sum().item(), abs=1e-12)
    assert found.abs().max() < 0.002
