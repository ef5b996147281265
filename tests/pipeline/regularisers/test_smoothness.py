"""The penalty on the change of parameters over layers, by its formula and in training."""

import pytest
import torch

from pipeline.regularisers.smoothness import Smoothness
from tasks.networks.base import LayerSequence
from tasks.networks.mlp import MLP


class Given:
    """A network that has some sequence of layers."""

    def __init__(self, sequence):
        self.sequence = sequence

    def layer_sequence(self):
        return self.sequence


def penalty_of(sequence, members=2):
    regulariser = Smoothness([Smoothness.Config()] * members, [0] * members)
    return regulariser.penalty(Given(sequence), torch.zeros(1))


def drawn(*shape):
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))
    )


STEPS = {
    "one": 1.0,
    "a number": 0.25,
    "one a member": torch.tensor([[0.5], [2.0]], dtype=torch.float64),
    "one a layer": 0.1 + drawn(2, 3).abs(),
}


@pytest.mark.parametrize("case", sorted(STEPS))
def test_it_is_the_sum_of_squared_differences_times_h(case):
    weights, biases, step = drawn(4, 2, 3, 3), drawn(4, 2, 3), STEPS[case]
    found = penalty_of(LayerSequence((list(weights), list(biases)), step))
    h = torch.as_tensor(step, dtype=torch.float64).expand(2, 3)
    for n in range(2):
        total = 0.0
        for k in range(3):
            rates = [(role[k + 1, n] - role[k, n]) / h[n, k] for role in (weights, biases)]
            total += h[n, k] * sum(rate.square().sum() for rate in rates)
        torch.testing.assert_close(found[n], total, rtol=1e-13, atol=0)


def test_layers_that_do_not_change_cost_nothing():
    same = drawn(2, 3, 3)
    assert penalty_of(LayerSequence(([same] * 5,))).tolist() == [0.0, 0.0]


def mlp(**settings):
    return MLP(
        [MLP.Config(width=4, **settings)] * 2,
        input_size=3,
        output_size=2,
        generators=[torch.Generator().manual_seed(n) for n in range(2)],
    )


def test_an_mlp_has_the_layers_after_its_first():
    network = mlp(depth=4, bias_scale=0.5)
    roles, step = network.layer_sequence()
    assert step == 1.0
    named = dict(network.named_parameters())
    for role, name in zip(roles, ("weight", "bias"), strict=True):
        assert [id(part) for part in role] == [id(named[f"{name}_{k}"]) for k in (1, 2, 3)]


@pytest.mark.parametrize("settings", [{"depth": 2}, {"depth": 4, "trained": "output"}])
def test_an_mlp_without_two_learned_equals_has_none(settings):
    assert mlp(**settings).layer_sequence() is None
