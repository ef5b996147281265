"""Exponents on a grid, as a measurement that is stored."""

import math

import pytest
import torch

from pipeline.diagnostics.base import Mark, Moment
from pipeline.diagnostics.ftle_field import FTLEField, plane
from pipeline.dynamics.ftle import max_ftle
from tasks.base import UnsuitableError, generator_for
from tasks.digits import Digits
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP
from tasks.planar import Planar

F64 = torch.float64
MOMENT = Moment(epoch=0, update=0, probe_seed=5, tangent_seeds=(1, 2))


def network(inputs=2, activation="tanh"):
    config = MLP.Config(width=6, depth=3, activation=activation, init_scale=1.5)
    generators = [generator_for("field", n) for n in range(2)]
    return MLP([config] * 2, input_size=inputs, output_size=1, generators=generators, dtype=F64)


def circle():
    return Planar(Planar.Config(points=40), seed=1, dtype=F64)


def measured(net, **settings):
    diagnostic = FTLEField(FTLEField.Config(points=5, half_width=2.0, **settings))
    diagnostic.check(net, circle())
    return diagnostic.measure(net, circle(), MOMENT)


def test_rows_are_heights_and_columns_are_widths():
    (reading,) = measured(network())
    assert reading.axes == ("row", "column")
    assert reading.unit == "nats/layer"
    assert reading.details == {"layer": 3, "half_width": 2.0}
    # Row 4 is y = 2, column 1 is x = -1.
    expected = max_ftle(network(), torch.tensor([[-1.0, 2.0]], dtype=F64), 3)[:, 0]
    torch.testing.assert_close(reading.values_N[:, 4, 1], expected)
    assert plane(5, 2.0)[4, 1].tolist() == [-1.0, 2.0]


def test_directions_are_those_of_the_largest_stretch():
    exponents, directions = measured(network(), directions=True)
    assert directions.axes == ("row", "column", "component")
    net, x, step = network(), plane(5, 2.0)[1, 3], 1e-5
    along = directions.values_N[:, 1, 3]
    torch.testing.assert_close(along.norm(dim=-1), torch.ones(2, dtype=F64))
    for n in range(2):

        def last(point, n=n):
            h = point
            for layer in range(3):
                W, b = net._layer(layer)
                h = torch.tanh(W[n].detach() @ h + b[n].detach())
            return h

        stretch = (last(x + step * along[n]) - last(x - step * along[n])).norm() / (2 * step)
        # The error of a central difference at this step is about 1e-10.
        assert math.log(stretch) / 3 == pytest.approx(exponents.values_N[n, 1, 3].item(), abs=1e-7)


def test_dead_layers_are_marked_and_nan_flagged():
    net = network(activation="relu")
    with torch.no_grad():
        net.bias_2[0].fill_(-1e6)
        net.weight_1[1].fill_(math.nan)
    (reading,) = measured(net)
    assert bool(torch.isneginf(reading.values_N[0]).all())
    assert bool((reading.marks_N[0] == int(Mark.MINUS_INFINITY)).all())
    assert bool(reading.values_N[1].isnan().all())
    assert reading.flags == [("minus_infinity",), ("not_a_number",)]


def test_only_planes_and_layers():
    diagnostic = FTLEField(FTLEField.Config())
    with pytest.raises(UnsuitableError, match=r"ftle_field needs .* inputs of 64"):
        diagnostic.check(network(inputs=64), Digits(Digits.Config(), seed=1))
    recurrent = LSTM(
        [LSTM.Config(units=4)], input_size=2, output_size=2, generators=[generator_for(1)]
    )
    with pytest.raises(UnsuitableError, match="ftle_field needs a feed-forward network"):
        diagnostic.check(recurrent, circle())
