"""Gradient alignment and input sensitivity on a small task, against their definitions."""

import json

import numpy as np
import pytest
import torch

from pipeline.diagnostics.base import Mark, Moment
from pipeline.diagnostics.gradient_alignment import GradientAlignment, gradients
from pipeline.diagnostics.input_ftle import InputFTLE
from pipeline.dynamics.clv import covariant_vectors
from pipeline.dynamics.ftle import input_ftle
from tasks.base import UnsuitableError, generator_for
from tasks.delayed_recall import DelayedRecall
from tasks.digits import Digits
from tasks.networks.gru import GRU
from tasks.networks.mlp import MLP
from tasks.networks.rnn import RNN

F64 = torch.float64
MOMENT = Moment(epoch=1, update=10, probe_seed=5, tangent_seeds=(1, 2))


def task(steps=24):
    config = DelayedRecall.Config(symbols=4, steps=steps, validation_size=40, test_size=10)
    return DelayedRecall(config, seed=1, dtype=F64)


def rnn(units=12, scale=1.2, layers=1):
    config = RNN.Config(units=units, init="gaussian", init_scale=scale, layers=layers)
    generators = [generator_for("alignment", n) for n in range(2)]
    return RNN([config] * 2, input_size=4, output_size=4, generators=generators, dtype=F64)


def measure(network=None, length=24, **settings):
    settings = {"sequences": 8, "ranks": (1, 3), **settings}
    diagnostic = GradientAlignment(GradientAlignment.Config(**settings))
    network = network or rnn()
    diagnostic.check(network, task(length))
    found = diagnostic.measure(network, task(length), MOMENT)
    for reading in found:
        json.dumps(reading.details, allow_nan=False)
    return {r.quantity.removeprefix("gradient_alignment."): r for r in found}


def test_the_gradient_is_that_of_training():
    network, batch = rnn(), task().probe_inputs(6, None, generator_for("g"))
    outputs, _ = network(batch.inputs)
    loss = task().losses(outputs, batch.targets).mean(1).sum()
    (expected,) = torch.autograd.grad(loss, network.get_parameter("weight_rec_0"))
    found = gradients(network, task(), batch)
    torch.testing.assert_close(found.each_NBDD.sum(1), expected, rtol=1e-12, atol=1e-14)
    assert found.deltas_NBTD.shape == (2, 6, 24, 12)


def test_shares_follow_their_definition():
    network, found = rnn(), measure()
    probe = task().probe_inputs(8, None, generator_for(5, "gradient_alignment"))
    generators = [torch.Generator().manual_seed(seed) for seed in MOMENT.tangent_seeds]
    vectors = covariant_vectors(
        network, probe.inputs, k=3, warmup=6, cooldown=0, generator=generators
    )
    U = torch.linalg.svd(gradients(network, task(), probe).each_NBDD.sum(1)).U
    for name, basis in (("backward", vectors.backward), ("forward", vectors.forward)):
        shares = []
        for m in (1, 3):
            B = basis[:, :, :13, :, :m]  # maps 6 to 18: a quarter off either end
            overlap = torch.einsum("nbpdm,ndk->nbpmk", B, U[..., :m])
            shares.append(overlap.square().sum((-2, -1)).mean((1, 2)) / m)
        torch.testing.assert_close(found[name].values_N, torch.stack(shares, -1))
        assert found[name].details["chance"] == [1 / 12, 3 / 12]
        assert found[name].axes == ("rank",)


def test_far_from_the_loss_delta_lies_along_the_leading_forward_vector():
    found = measure(length=100)
    horizons = np.array(found["horizon_forward"].details["horizons"])
    forward = found["horizon_forward"].values_N.numpy()
    assert forward[:, horizons.argmax()].min() > 0.8
    assert forward[:, horizons.argmax()].min() > found["horizon_backward"].values_N.max()
    # The first vectors of two pairs of bases coincide, the later ones do not.
    delta = {
        name: found[f"delta_{name}"].values_N
        for name in ("backward", "covariant", "forward", "adjoint")
    }
    torch.testing.assert_close(delta["backward"][:, 0], delta["covariant"][:, 0])
    assert (delta["backward"][:, 1] - delta["covariant"][:, 1]).abs().max() > 1e-4
    # The first misses nothing, there being no forward vector before it.
    assert (found["residual"].values_N[:, 0] == 0).all()
    assert (found["residual"].values_N[:, 1:] > 0).all()
    for name, reading in delta.items():
        assert ((reading >= 0) & (reading <= 1)).all(), name


def test_halves_of_one_and_the_same_sequence_agree_without_noise():
    class Twice(DelayedRecall):
        def probe_inputs(self, count, steps, generator):
            batch = super().probe_inputs(count // 2, steps, generator)
            return type(batch)(batch.inputs.repeat(2, 1, 1), batch.targets.repeat(2, 1))

    config = DelayedRecall.Config(symbols=4, steps=24, validation_size=40, test_size=10)
    twice = Twice(config, seed=1, dtype=F64)
    diagnostic = GradientAlignment(GradientAlignment.Config(sequences=8, ranks=(1, 3)))
    found = {r.quantity: r.values_N for r in diagnostic.measure(rnn(), twice, MOMENT)}
    same = found["gradient_alignment.halves"]
    torch.testing.assert_close(same, torch.ones_like(same), rtol=0, atol=1e-9)
    noise, norm = found["gradient_alignment.noise"], found["gradient_alignment.norm"]
    assert (noise < 1e-9 * norm).all()
    usual = measure()
    assert (usual["noise"].values_N > 0.1 * usual["norm"].values_N).all()
    assert (usual["halves"].values_N < 0.999).all()


def test_what_it_cannot_speak_of_is_refused():
    diagnostic = GradientAlignment(GradientAlignment.Config(ranks=(1, 13)))
    with pytest.raises(UnsuitableError, match="ranks must be at most 12"):
        diagnostic.check(rnn(), task())
    with pytest.raises(UnsuitableError, match="rnn of one layer"):
        diagnostic.check(rnn(layers=2), task())
    gru = GRU([GRU.Config(units=4)], input_size=4, output_size=4, generators=[generator_for(0)])
    with pytest.raises(UnsuitableError, match="got GRU"):
        diagnostic.check(gru, task())
    long = GradientAlignment(GradientAlignment.Config(ranks=(1,), warmup=12))
    with pytest.raises(UnsuitableError, match="between its two ends"):
        long.check(rnn(), task())


def test_input_ftle_is_read_off_the_engine():
    network = rnn()
    diagnostic = InputFTLE(InputFTLE.Config(sequences=5))
    found = {r.quantity: r for r in diagnostic.measure(network, task(), MOMENT)}
    inputs = task().probe_inputs(5, None, generator_for(5, "input_ftle")).inputs
    direct = input_ftle(network, inputs)
    torch.testing.assert_close(found["input_ftle.profile"].values_N, direct.mean(1))
    torch.testing.assert_close(found["input_ftle.spread"].values_N, direct.std(1))
    slope = (direct[..., -1] - direct[..., 0]).mean(1) / 23
    torch.testing.assert_close(found["input_ftle.slope"].values_N, slope)
    assert found["input_ftle.slope"].unit == "nats/step"


def test_an_input_that_cannot_matter_is_marked():
    network = rnn()
    with torch.no_grad():
        network.get_parameter("weight_rec_0")[0].zero_()
    diagnostic = InputFTLE(InputFTLE.Config(sequences=4))
    found = {r.quantity: r for r in diagnostic.measure(network, task(), MOMENT)}
    profile = found["input_ftle.profile"]
    assert torch.isneginf(profile.values_N[0, :-1]).all()
    assert (profile.marks_N[0, :-1] == int(Mark.MINUS_INFINITY)).all()
    assert torch.isfinite(profile.values_N[1]).all()
    assert not profile.marks_N[1].any()
    vectors = Digits(Digits.Config(), seed=0)
    mlp = MLP([MLP.Config()], input_size=64, output_size=10, generators=[generator_for(0)])
    with pytest.raises(UnsuitableError, match="feed-forward networks have ftle"):
        diagnostic.check(mlp, vectors)
