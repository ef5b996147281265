"""Series of known flows: their exponents, their integrator's order, windows, noise and probes."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tasks.base import UnsuitableError, generator_for
from tasks.chaotic_flows import SYSTEMS, integrate
from tasks.chaotic_series import ChaoticSeries


def make(seed=1, **settings):
    config = ChaoticSeries.Config(**{"series": 5, "length": 60, "steps": 20, **settings})
    return ChaoticSeries(config, seed=seed, dtype=torch.float64)


def benettin(system, *, count, every, rounds, settle):
    """Leading exponents by tiny perturbations that go through the integrator itself."""
    h, k, size = system.largest_step, len(system.exponents), 1e-7
    x = system.start(count, h, generator_for("benettin"))
    for _ in range(round(system.transient / h)):
        x = system.advance(x, h)
    frame = np.random.default_rng(0).normal(size=(count, len(x), k))
    Q = np.linalg.qr(frame)[0]
    logs = []
    for _ in range(settle + rounds):
        near = x[:, :, None] + size * Q.transpose(1, 0, 2)
        both = np.concatenate([x, near.reshape(len(x), -1)], 1)
        for _ in range(every):
            both = system.advance(both, h)
        x, near = both[:, :count], both[:, count:].reshape(len(x), count, k)
        Q, R = np.linalg.qr(((near - x[:, :, None]) / size).transpose(1, 0, 2))
        logs.append(np.log(np.abs(np.diagonal(R, axis1=1, axis2=2))))
    rates = np.mean(logs[settle:], 0) / (every * h)
    return rates.mean(0), rates.std(0) / count**0.5


@pytest.mark.parametrize(
    ("name", "run", "floor"),
    [
        ("lorenz63", {"count": 20, "every": 20, "rounds": 400, "settle": 20}, 0.002),
        ("lorenz96", {"count": 20, "every": 10, "rounds": 600, "settle": 100}, 0.005),
        ("mackey_glass", {"count": 40, "every": 100, "rounds": 200, "settle": 60}, 0.0002),
    ],
)
def test_the_exponents_are_those_of_the_integrator(name, run, floor):
    """Within four standard errors of the mean over independent series, and their own error."""
    found, error = benettin(SYSTEMS[name], **run)
    distance = np.abs(found - SYSTEMS[name].exponents)
    assert (distance < floor + 4 * error).all(), (found, error)
    assert (error[0] < 0.03 * abs(found[0])).all(), "too rough to tell"


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_the_integrator_is_of_fourth_order(name):
    system = SYSTEMS[name]
    span = 1.0 if name == "mackey_glass" else 0.2
    rest = {} if name != "mackey_glass" else {"past": True}
    errors = []
    for h in (span / 10, span / 20, span / 40):
        # A past that bends, or interpolating it would be exact; sampled alike at every step.
        if rest:
            times = np.arange(round(17 / h) + 2) * h
            state = (1 + 0.3 * np.sin((times - times[-1]) / 3))[:, None]
        else:
            state = system.start(1, h, generator_for("order"))
        for _ in range(round(span / h)):
            state = system.advance(state, h)
        errors.append(state[-system.observed :].copy())
    coarse, fine = (np.abs(a - b).max() for a, b in pairwise(errors))
    # Halving the step divides the difference by 2⁴, give or take the next order.
    assert 12 < coarse / fine < 22


def test_targets_are_the_next_inputs_of_a_normalised_series():
    task = make()
    train = task.series["train"]
    assert train.shape == (5, 61, 3)
    torch.testing.assert_close(train.mean((0, 1)), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        train.std((0, 1), correction=0), torch.ones(3).double(), atol=1e-12, rtol=0
    )
    for batch in [*task.training_batches(1), *task.batches("test")]:
        torch.testing.assert_close(batch.inputs[:, 1:], batch.targets[:, :-1], rtol=0, atol=0)


def test_the_series_is_the_flow_sampled_at_dt():
    task = make(dt=0.02, length=40)
    raw = task.series["train"].numpy() * task.scale + task.mean
    state = raw[:, 7].T
    for _ in range(8):  # finer than the task's own steps
        state = SYSTEMS["lorenz63"].advance(state, 0.02 / 8)
    np.testing.assert_allclose(state.T, raw[:, 8], atol=2e-5)
    assert task.exponents_per_step == pytest.approx([0.018112, 0, -0.291446])


def test_noise_is_on_training_inputs_alone():
    clean, noisy = make(), make(noise=0.1)
    assert clean.fingerprint == noisy.fingerprint
    differences = []
    for one, two in zip(clean.training_batches(3), noisy.training_batches(3), strict=True):
        assert torch.equal(one.targets, two.targets)
        differences.append(two.inputs - one.inputs)
    assert torch.cat(differences).std().item() == pytest.approx(0.1, rel=0.02)
    for one, two in zip(clean.batches("validation"), noisy.batches("validation"), strict=True):
        assert torch.equal(one.inputs, two.inputs)


def test_skipped_steps_count_for_nothing():
    task = make(skip=5)
    batch = next(task.batches("validation"))
    assert batch.targets.shape[1] == 15
    outputs_N = torch.zeros(1, *batch.inputs.shape, dtype=torch.float64)
    outputs_N[0, :, 5:] = batch.targets
    outputs_N[0, :, :5] = 1e6
    assert not task.per_example(outputs_N, batch.targets)["loss"].any()
    outputs_N[0, 0, 5, 1] += 3
    assert task.per_example(outputs_N, batch.targets)["loss"].max() == pytest.approx(3.0)


def test_a_probe_is_one_piece_of_validation_longer_than_a_window():
    task = make(series=10)
    probe = task.probe_inputs(2, 55, torch.Generator().manual_seed(0))
    assert probe.inputs.shape == (2, 55, 3)
    held = task.series["validation"]
    assert {any(torch.equal(p, s[:55]) for s in held) for p in probe.inputs} == {True}
    assert not torch.equal(probe.inputs[0], probe.inputs[1])
    with pytest.raises(UnsuitableError, match="at most 2 stretches of 55 steps"):
        task.probe_inputs(3, 55, torch.Generator())


def test_seeds_and_systems_make_other_series():
    assert make().fingerprint == make().fingerprint != make(seed=2).fingerprint
    assert make(system="lorenz96").input_size == 40
    assert make(system="mackey_glass").input_size == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(UnsuitableError, match="skip < steps <= length"):
        make(skip=20)
    with pytest.raises(UnsuitableError, match="skip < steps <= length"):
        make(steps=61)
    with pytest.raises(UnsuitableError, match="split the delay 17"):
        make(system="mackey_glass", dt=0.13)
    values = integrate(SYSTEMS["mackey_glass"], 0.5, 2, 3, generator_for("half"))
    assert values.shape == (3, 2, 1)
