"""Boundaries and heights of networks whose boundary is known."""

import math

import pandas as pd
import pytest
import torch

from analysis.studies.storm_circle import RADIUS, by_shape, circle, learned_boundary, single
from tasks.base import generator_for
from tasks.networks.mlp import MLP

F64 = torch.float64


def shifted(shift: float, outputs: int = 1) -> MLP:
    """Two members; the output of the second is x₁ − shift, that of the first its negative."""
    config = MLP.Config(width=2, depth=1, activation="identity")
    generators = [generator_for(n) for n in range(2)]
    network = MLP([config] * 2, input_size=2, output_size=outputs, generators=generators, dtype=F64)
    with torch.no_grad():
        network.weight_0.copy_(torch.eye(2, dtype=F64).expand(2, 2, 2))
        network.weight_out.zero_()
        network.weight_out[:, -1, 0] = torch.tensor([-1.0, 1.0], dtype=F64)
        network.bias_out[:, -1] = torch.tensor([shift, -shift], dtype=F64)
    return network.requires_grad_(False)


def test_the_circle_halves_the_square():
    points = circle(16, half_width=2.0)
    radius = points.norm(dim=1)
    torch.testing.assert_close(radius, torch.full_like(radius, 2 * RADIUS))
    assert math.pi * RADIUS**2 == pytest.approx(4 / 2)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("member", [0, 1])
def test_boundary_is_the_networks_own(member, outputs):
    found = learned_boundary(shifted(0.25, outputs), member, circle(12))
    assert len(found) == 12
    torch.testing.assert_close(found[:, 0], torch.full((12,), 0.25, dtype=F64))


def test_a_boundary_far_away_is_not_one():
    assert len(learned_boundary(shifted(50.0), 1, circle(12))) == 0


def test_a_member_alone_is_that_member():
    network = shifted(0.25)
    alone = single(network, 1)
    x = circle(5)
    assert torch.equal(alone(x)[0][0], network(x)[0][1])
    assert network.num_members == 2


def test_shapes_come_in_order():
    table = pd.DataFrame({"width": [10, 5, 10], "depth": [2, 4, 2], "value": [1.0, 2.0, 3.0]})
    found = by_shape(table)
    assert list(found) == [(5, 4), (10, 2)]
    assert found[10, 2]["value"].tolist() == [1.0, 3.0]
