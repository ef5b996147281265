"""The recorded spectrum: what is read, marked and flagged, and what must stay untouched."""

import json
import math

import numpy as np
import pytest
import torch

from pipeline.diagnostics.base import Mark, Moment
from pipeline.diagnostics.lyapunov_spectrum import LyapunovSpectrum
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import Batch, Task, UnsuitableError, generator_for
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP

F64 = torch.float64
MOMENT = Moment(epoch=1, update=10, probe_seed=5, tangent_seeds=(1, 2, 3))


class Words(Task):
    """Random tokens of an alphabet of four."""

    input_kind = "tokens"
    input_size = output_size = 4

    def __init__(self, *_, **__):
        pass

    def training_batches(self, epoch):
        raise AssertionError("a measurement must not look at training data")

    def batches(self, split):
        raise AssertionError("a measurement must not look at whole splits")

    def per_example(self, outputs_N, targets):
        raise AssertionError("spectra need no loss")

    def probe_inputs(self, count, steps, generator):
        tokens = torch.randint(4, (count, steps), generator=generator)
        return Batch(inputs=tokens, targets=tokens)


def network(**settings):
    configs = [LSTM.Config(units=4, init_scale=0.5 + n, dropout=0.4, **settings) for n in range(3)]
    generators = [generator_for("diagnostic", n) for n in range(3)]
    return LSTM(configs, input_size=4, output_size=4, generators=generators)


def measure(lstm=None, **settings):
    settings = {"sequences": 3, "steps": 60, "warmup": 10, **settings}
    diagnostic = LyapunovSpectrum(LyapunovSpectrum.Config(**settings))
    found = diagnostic.measure(lstm or network(), Words(), MOMENT)
    for reading in found:
        shape = reading.values_N.shape
        assert shape[0] == 3
        assert len(shape) == 1 + len(reading.axes)
        assert reading.values_N.dtype == F64
        assert reading.error_N is None or reading.error_N.shape == shape
        assert reading.marks_N.shape == shape
        assert len(reading.flags) == 3
        json.dumps(reading.details, allow_nan=False)
    return {reading.quantity: reading for reading in found}


def test_scalars_are_read_off_the_spectrum():
    readings = measure(near_zero=0.3)
    spectrum = readings["lyapunov.spectrum"]
    values = spectrum.values_N.numpy()
    assert spectrum.axes == ("exponent",)
    assert spectrum.unit == "nats/step"
    assert values.shape == (3, 8)
    np.testing.assert_allclose(readings["lyapunov.max"].values_N, values.max(1))
    np.testing.assert_allclose(readings["lyapunov.mean"].values_N, values.mean(1))
    np.testing.assert_allclose(readings["lyapunov.sum"].values_N, values.sum(1))
    np.testing.assert_allclose(
        readings["lyapunov.near_zero"].values_N, (np.abs(values) <= 0.3).sum(1)
    )
    assert readings["lyapunov.sum"].details["over"] == "all exponents"
    np.testing.assert_allclose(
        readings["lyapunov.sum"].error_N, 8 * readings["lyapunov.mean"].error_N
    )
    assert {"lyapunov.self_check.autodiff", "lyapunov.self_check.sum_rule"} <= set(readings)
    details = spectrum.details
    assert (details["state"], details["loop"], details["steps"]) == ("full", "open", 60)
    assert (details["k"], details["state_size"], details["sequences"]) == (8, 8, 3)
    assert all(words == () for words in spectrum.flags)


def test_equals_the_engine_called_directly():
    lstm = network()
    tokens = Words().probe_inputs(3, 70, generator_for(5, "lyapunov_spectrum")).inputs
    generators = [torch.Generator().manual_seed(seed) for seed in MOMENT.tangent_seeds]
    direct = lyapunov_spectrum(
        lstm, tokens, warmup=10, steps=60, state="hidden", generator=generators
    )
    readings = measure(lstm, state="hidden")
    assert torch.equal(readings["lyapunov.spectrum"].values_N, direct.exponents)
    assert "lyapunov.self_check.sum_rule" not in readings


def test_few_exponents_say_that_they_are_few():
    readings = measure(k=2)
    assert readings["lyapunov.spectrum"].values_N.shape == (3, 2)
    assert readings["lyapunov.sum"].details["over"] == "the 2 leading exponents"


def test_the_dimension_says_when_it_needs_more_exponents():
    lstm = network()
    with torch.no_grad():
        lstm.weight_rec_0.mul_(30)
        lstm.bias_0[:, 4:8] = 6.0  # open forget gates: neutral or expanding directions
        lstm.weight_in_0.mul_(0.1)
    readings = measure(lstm, k=1)
    largest = readings["lyapunov.max"].values_N
    assert (largest > 0).any(), largest
    for value, exponent, words in zip(
        readings["lyapunov.kaplan_yorke"].values_N,
        largest,
        readings["lyapunov.kaplan_yorke"].flags,
        strict=True,
    ):
        assert math.isnan(value) == (exponent > 0) == ("needs_more_exponents" in words)


def test_dead_directions_are_marked_in_all_they_enter():
    lstm = network()
    with torch.no_grad():
        lstm.weight_rec_0[0].zero_()
    readings = measure(lstm, t_on=1)
    marks = readings["lyapunov.spectrum"].marks_N
    assert (marks[0, 4:] & int(Mark.AT_FLOOR)).all()
    assert not (marks[:, 0] & int(Mark.AT_FLOOR)).any()
    assert readings["lyapunov.sum"].marks_N[0] & int(Mark.AT_FLOOR)
    assert not readings["lyapunov.sum"].marks_N[1] & int(Mark.AT_FLOOR)
    assert not readings["lyapunov.max"].marks_N[0] & int(Mark.AT_FLOOR)


def test_nan_members_yield_nan_and_a_flag_and_leave_the_others():
    healthy, poisoned = network(), network()
    with torch.no_grad():
        poisoned.weight_rec_0[1].fill_(float("nan"))
    expected, got = measure(healthy), measure(poisoned)
    for quantity, reading in got.items():
        if quantity != "lyapunov.t_on":
            assert reading.values_N[1].isnan().all(), quantity
        assert "not_a_number" in reading.flags[1]
        for n in (0, 2):
            assert torch.equal(reading.values_N[n], expected[quantity].values_N[n])


def test_network_gradients_and_random_state_stay_as_they_were():
    lstm = network().train()
    for weight in lstm.parameters():
        weight.grad = torch.ones_like(weight)
    before = {name: value.clone() for name, value in lstm.state_dict().items()}
    random_state = torch.get_rng_state()
    first, second = measure(lstm), measure(lstm)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert lstm.training
    assert torch.is_grad_enabled()
    for name, value in lstm.state_dict().items():
        assert torch.equal(value, before[name])
    assert all((weight.grad == 1).all() for weight in lstm.parameters())
    for quantity in first:
        assert torch.equal(first[quantity].values_N, second[quantity].values_N)


def test_what_cannot_be_measured_is_refused():
    mlp = MLP([MLP.Config()], input_size=4, output_size=4, generators=[generator_for(0)])
    with pytest.raises(UnsuitableError, match="feed-forward networks have ftle"):
        LyapunovSpectrum(LyapunovSpectrum.Config()).check(mlp, Words())
    with pytest.raises(UnsuitableError, match="k must be at most 4, the size of the hidden"):
        LyapunovSpectrum(LyapunovSpectrum.Config(k=5, state="hidden")).check(network(), Words())
    LyapunovSpectrum(LyapunovSpectrum.Config(k=5)).check(network(), Words())


def fitted(monkeypatch, seconds, **settings):
    """The settings that remain of a measurement, were a step of one exponent and sequence 1 ms."""
    from pipeline.diagnostics import lyapunov_spectrum as module

    def cost(network, inputs, config, moment):
        k = config.k or 8
        return 1e-3 * k * len(inputs) * (config.warmup + config.steps)

    monkeypatch.setattr(module, "_expected_seconds", cost)
    settings = {"sequences": 8, "steps": 100, "warmup": 60, **settings}
    diagnostic = LyapunovSpectrum(LyapunovSpectrum.Config(**settings))
    return diagnostic.fit(network(), Words(), MOMENT, seconds)


def test_a_budget_cuts_exponents_then_sequences_then_steps(monkeypatch):
    monkeypatch.setattr("pipeline.diagnostics.lyapunov_spectrum.FEWEST_EXPONENTS", 2)
    whole = 8 * 8 * 160e-3
    ample = fitted(monkeypatch, 2 * whole).config
    assert (ample.k, ample.sequences, ample.steps, ample.warmup) == (None, 8, 100, 60)
    half = fitted(monkeypatch, 0.6 * whole).config
    assert (half.k, half.sequences, half.steps) == (4, 8, 100)
    eighth = fitted(monkeypatch, 0.13 * whole).config
    assert (eighth.k, eighth.sequences, eighth.steps) == (2, 4, 100)
    least = fitted(monkeypatch, 1e-6 * whole).config
    assert (least.k, least.sequences, least.steps, least.warmup) == (2, 2, 25, 15)


def test_a_cut_measurement_says_what_was_asked_and_used(monkeypatch):
    cut = fitted(monkeypatch, 1e-9, t_on=1)
    found = cut.measure(network(), Words(), MOMENT)
    details = found[0].details
    assert details["asked"] == {"k": None, "sequences": 8, "steps": 100, "warmup": 60}
    assert (details["k"], details["sequences"], details["steps"]) == (8, 2, 25)
    json.dumps(details, allow_nan=False)
    whole = fitted(monkeypatch, 1e9)
    assert "asked" not in whole.measure(network(), Words(), MOMENT)[0].details


def test_the_cost_is_measured_without_a_trace(monkeypatch):
    lstm = network().train()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in lstm.state_dict().items()}
    diagnostic = LyapunovSpectrum(LyapunovSpectrum.Config(sequences=3, steps=60, warmup=10))
    cut = diagnostic.fit(lstm, Words(), MOMENT, 1e-9)
    assert cut.config.sequences == 3  # half of three would be one
    assert cut.config.steps == 30
    generous = diagnostic.fit(lstm, Words(), MOMENT, 1e6)
    assert generous.config == diagnostic.config
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, state[k]) for k, v in lstm.state_dict().items())
