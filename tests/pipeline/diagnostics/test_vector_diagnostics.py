"""FTLE and gradient norms on a small task of vectors."""

import math

import pytest
import torch

from pipeline.diagnostics.base import Mark, Moment
from pipeline.diagnostics.ftle import FTLE, class_margin
from pipeline.diagnostics.gradient_norm import GradientNorm
from pipeline.dynamics.ftle import max_ftle
from tasks.base import Batch, Task, UnsuitableError, generator_for
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP

F64 = torch.float64
MOMENT = Moment(epoch=0, update=0, probe_seed=5, tangent_seeds=(1, 2, 3))


class Quadrants(Task):
    """Which side of the diagonal a point of the plane lies on."""

    input_kind = "vector"
    input_size = output_size = 2

    def __init__(self, *_, **__):
        pass

    def training_batches(self, epoch):
        raise AssertionError("a measurement must not look at training data")

    def batches(self, split):
        raise AssertionError("a measurement must not look at whole splits")

    def per_example(self, outputs_N, targets):
        logs = outputs_N.log_softmax(-1)
        return {"loss": -logs[..., torch.arange(len(targets)), targets]}

    def probe_inputs(self, count, steps, generator):
        x = torch.randn(count, 2, generator=generator, dtype=F64)
        return Batch(inputs=x, targets=(x[:, 0] > x[:, 1]).long())


class Words(Quadrants):
    """Next token of random tokens."""

    input_kind = "tokens"

    def per_example(self, outputs_N, targets):
        picked = outputs_N.log_softmax(-1).gather(
            -1, targets.expand(len(outputs_N), -1, -1).unsqueeze(-1)
        )
        return {"loss": -picked.flatten(1)}

    def probe_inputs(self, count, steps, generator):
        tokens = torch.randint(2, (count, steps), generator=generator)
        return Batch(inputs=tokens, targets=tokens)


def mlp(activation="tanh", outputs=2):
    config = MLP.Config(width=8, depth=3, activation=activation, init_scale=1.5, dropout=0.3)
    generators = [generator_for("vector", n) for n in range(3)]
    return MLP([config] * 3, input_size=2, output_size=outputs, generators=generators, dtype=F64)


def ftle(network, **settings):
    settings = {"probes": 50, **settings}
    found = FTLE(FTLE.Config(**settings)).measure(network, Quadrants(), MOMENT)
    for reading in found:
        assert len(reading.values_N.shape) == 1 + len(reading.axes)
        assert reading.marks_N.shape == reading.values_N.shape
    return {reading.quantity: reading for reading in found}


def test_ftle_summaries_are_those_of_the_field():
    network = mlp()
    x = Quadrants().probe_inputs(50, None, generator_for(5, "ftle")).inputs
    field = max_ftle(network, x)
    last = field[:, -1]
    readings = ftle(network, margin_share=0.2)
    value = {name: reading.values_N for name, reading in readings.items()}
    torch.testing.assert_close(value["ftle.mean"], last.mean(-1))
    torch.testing.assert_close(value["ftle.std"], last.std(-1))
    torch.testing.assert_close(value["ftle.positive_share"], (last > 0).double().mean(-1))
    torch.testing.assert_close(value["ftle.layer_mean"], field.mean(-1))
    assert readings["ftle.layer_mean"].axes == ("layer",)
    assert value["ftle.quantiles"].shape == (3, 5)
    assert readings["ftle.quantiles"].details["levels"] == [0.05, 0.25, 0.5, 0.75, 0.95]
    assert (value["ftle.quantiles"].diff(dim=-1) >= 0).all()
    margin = class_margin(network(x)[0])
    for n in range(3):
        order = margin[n].argsort()
        torch.testing.assert_close(value["ftle.low_margin"][n], last[n][order[:10]].mean())
        torch.testing.assert_close(value["ftle.high_margin"][n], last[n][order[-10:]].mean())
    assert "ftle.layer_mean" not in ftle(network, layers="last")
    torch.testing.assert_close(ftle(network, layers="last")["ftle.mean"].values_N, last.mean(-1))


def test_margin_of_one_and_of_several_outputs():
    several = class_margin(torch.tensor([[[0.2, 1.0, 0.7]]], dtype=F64))
    assert several.item() == pytest.approx(0.3)
    single = class_margin(torch.tensor([[[0.2], [-0.7]]], dtype=F64))
    assert single[0].tolist() == [0.2, 0.7]


def test_dead_units_are_marked_and_nan_flagged():
    network = mlp("relu")
    healthy = ftle(mlp("relu"))
    with torch.no_grad():
        network.bias_2[0].fill_(-1e6)
        network.weight_1[1].fill_(float("nan"))
    readings = ftle(network)
    assert readings["ftle.mean"].values_N[0] == -math.inf
    assert readings["ftle.mean"].marks_N[0] == int(Mark.MINUS_INFINITY)
    assert readings["ftle.std"].values_N[0].isnan()
    assert readings["ftle.mean"].flags[0] == ("minus_infinity",)
    assert readings["ftle.mean"].flags[1] == ("not_a_number",)
    for name in ("ftle.mean", "ftle.positive_share", "ftle.low_margin", "ftle.std"):
        assert readings[name].values_N[1].isnan(), name
        assert torch.equal(readings[name].values_N[2], healthy[name].values_N[2])


def norms(network, task):
    found = GradientNorm(GradientNorm.Config(examples=16, steps=5)).measure(network, task, MOMENT)
    return {reading.quantity: reading for reading in found}


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_gradient_norm_equals_that_of_each_member_alone(kind):
    if kind == "mlp":
        network, task = mlp(), Quadrants()
    else:
        generators = [generator_for("g", n) for n in range(3)]
        configs = [LSTM.Config(units=4, dropout=0.5)] * 3
        network, task = (
            LSTM(configs, input_size=2, output_size=2, generators=generators, dtype=F64),
            Words(),
        )
    readings = norms(network, task)
    probe = task.probe_inputs(16, 5, generator_for(5, "gradient_norm"))
    for n in range(3):
        network.zero_grad()
        loss = task.per_example(network(probe.inputs)[0], probe.targets)["loss"].mean(-1)[n]
        loss.backward()
        gradient = torch.cat([p.grad[n].flatten() for p in network.parameters()])
        weights = torch.cat([p[n].flatten() for p in network.parameters()])
        assert readings["gradient_norm"].values_N[n].item() == pytest.approx(
            gradient.norm().item(), rel=1e-12
        )
        assert readings["weight_norm"].values_N[n].item() == pytest.approx(
            weights.norm().item(), rel=1e-12
        )


def test_nan_stays_with_its_member():
    network = mlp()
    expected = norms(network, Quadrants())
    with torch.no_grad():
        network.weight_1[1].fill_(float("nan"))
    got = norms(network, Quadrants())
    for name in ("gradient_norm", "weight_norm"):
        assert got[name].values_N[1].isnan()
        assert got[name].flags == [(), ("not_finite",), ()]
        assert torch.equal(got[name].values_N[[0, 2]], expected[name].values_N[[0, 2]])


@pytest.mark.parametrize("measure", [ftle, lambda network: norms(network, Quadrants())])
def test_network_gradients_and_random_state_stay_as_they_were(measure):
    network = mlp().train()
    for weight in network.parameters():
        weight.grad = torch.ones_like(weight)
    before, random_state = network.weight_1.clone(), torch.get_rng_state()
    measure(network)
    with torch.no_grad():  # the caller's grad mode must not matter either
        measure(network)
    assert network.training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(network.weight_1, before)
    assert all((weight.grad == 1).all() for weight in network.parameters())


def test_recurrent_networks_have_no_layer_field():
    lstm = LSTM([LSTM.Config()], input_size=2, output_size=2, generators=[generator_for(0)])
    with pytest.raises(UnsuitableError, match="recurrent networks have lyapunov_spectrum"):
        FTLE(FTLE.Config()).check(lstm, Words())
    FTLE(FTLE.Config()).check(mlp(), Quadrants())
    GradientNorm(GradientNorm.Config()).check(lstm, Words())
