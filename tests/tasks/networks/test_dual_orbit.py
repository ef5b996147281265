"""Maps in the graph of the weights: against those in formulas, and against central differences."""

import pytest
import torch

from tasks.networks.gru import GRU
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP
from tasks.networks.rnn import RNN

KINDS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}
every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def network(kind, **settings):
    return KINDS[kind](
        [KINDS[kind].Config(units=4, **settings) for _ in range(2)],
        input_size=3,
        output_size=2,
        generators=[torch.Generator().manual_seed(n) for n in range(2)],
        dtype=torch.float64,
    )


def drawn(*shape):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


TOKENS = torch.tensor([[0, 2, 1, 1], [2, 2, 0, 1]])


@every_kind
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x", [TOKENS, drawn(2, 4, 3)], ids=["tokens", "sequences"])
def test_its_maps_are_those_that_measurements_take(kind, layers, bias, x):
    made = network(kind, layers=layers, bias=bias)
    orbit, measured = made.differentiable_orbit(x), made.orbit(x)
    for name in ("num_members", "num_sequences", "num_steps", "tangent_size", "dtype"):
        assert getattr(orbit, name) == getattr(measured, name)
    Q = drawn(2, 2, orbit.tangent_size, 3)
    pairs = list(zip(orbit.maps(), measured.maps(), strict=True))
    assert len(pairs) == 4
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.dense(), theirs.dense(), rtol=0, atol=1e-14)
        torch.testing.assert_close(ours(Q), theirs(Q), rtol=0, atol=1e-13)


@every_kind
def test_products_can_be_differentiated_by_every_weight_of_the_recurrence(kind):
    made, x = network(kind, layers=2), drawn(2, 5, 3)

    def total():
        Q = drawn(2, 2, 8 if kind != "lstm" else 16, 2)
        for J in made.differentiable_orbit(x).maps():
            Q = J(Q)
        return (Q * drawn(*Q.shape)).sum()

    named = {n: p for n, p in made.named_parameters() if not n.endswith("_out")}
    gradients = torch.autograd.grad(total(), list(named.values()))
    for (name, parameter), gradient in zip(named.items(), gradients, strict=True):
        direction, values = drawn(*parameter.shape), []
        for sign in (1, -2):
            with torch.no_grad():
                parameter.add_(sign * 1e-6 * direction)
            values.append(total().item())
        with torch.no_grad():
            parameter.add_(1e-6 * direction)
        slope = (gradient * direction).sum().item()
        assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-8), name


def test_an_mlp_has_its_own():
    made = MLP(
        [MLP.Config(width=4, depth=3, bias_scale=0.3)] * 2,
        input_size=3,
        output_size=2,
        generators=[torch.Generator().manual_seed(n) for n in range(2)],
        dtype=torch.float64,
    )
    x = drawn(5, 3)
    pairs = zip(made.differentiable_orbit(x).maps(), made.orbit(x).maps(), strict=True)
    for layer, (ours, theirs) in enumerate(pairs):
        assert torch.equal(ours.dense(), theirs.dense())
        assert ours.dense().requires_grad, layer
