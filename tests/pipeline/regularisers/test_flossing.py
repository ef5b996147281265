"""Exponents that can be differentiated: against the whole QR chain under autograd, and laws."""

import math

import pytest
import torch

from pipeline.dynamics.propagate import random_frame
from pipeline.dynamics.steps import GivenMaps
from pipeline.regularisers.flossing import Flossing, leading_exponents
from tasks.networks.gru import GRU
from tasks.networks.lstm import LSTM
from tasks.networks.rnn import RNN

KINDS = {"rnn": RNN, "gru": GRU, "lstm": LSTM}
every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def network(kind, *, members=2, layers=2, **settings):
    return KINDS[kind](
        [KINDS[kind].Config(units=4, layers=layers, **settings) for _ in range(members)],
        input_size=3,
        output_size=2,
        generators=[torch.Generator().manual_seed(n) for n in range(members)],
        dtype=torch.float64,
    )


def inputs(B=3, T=6, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, T, 3, generator=generator, dtype=torch.float64)


def frames_for(orbit, k):
    return random_frame(orbit, k, [torch.Generator().manual_seed(n) for n in range(2)])


def by_whole_chain(orbit, Q):
    """The obvious way: every QR differentiated, every step's logarithms kept."""
    logs = 0.0
    for J in orbit.maps():
        Q, R = torch.linalg.qr(J(Q))
        sign = R.diagonal(dim1=-2, dim2=-1).sign()
        Q = Q * sign.unsqueeze(-2)
        logs = logs + R.diagonal(dim1=-2, dim2=-1).abs().log()
    return logs / orbit.num_steps


@every_kind
@pytest.mark.parametrize("k", [1, 3, 8])
def test_values_and_gradients_are_those_of_the_whole_qr_chain(kind, k):
    made, x = network(kind, init="gaussian", init_scale=1.3), inputs()
    parameters = list(made.parameters())
    found = []
    for way in (by_whole_chain, lambda *given: leading_exponents(*given)[0]):
        orbit = made.differentiable_orbit(x)
        exponents = way(orbit, frames_for(orbit, k))
        # Weights of every size and sign, so that no exponent's error hides behind another's.
        factor = torch.linspace(-2, 3, exponents.numel(), dtype=torch.float64)
        total = (exponents.flatten() * factor).sum() + exponents.square().sum()
        gradient = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        found.append((exponents.detach(), torch.cat([g.flatten() for g in gradient])))
    (slow, slow_gradient), (fast, fast_gradient) = found
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)
    assert slow_gradient.abs().max() > 0.1
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-9, atol=1e-10)


def test_exponents_of_a_constant_diagonal_map_and_their_derivatives():
    """λ_i = log a_i and dλ_i/da_i = 1/a_i, once the frame has turned into the axes."""
    sizes = torch.tensor([2.0, 0.5, 0.05], dtype=torch.float64, requires_grad=True)
    maps = [torch.diag(sizes)] * 40
    orbit = GivenMaps(maps, 1, 1, 3, torch.float64, torch.device("cpu"))
    exponents, is_left = leading_exponents(orbit, torch.eye(3, dtype=torch.float64)[None, None])
    assert is_left.all()
    torch.testing.assert_close(exponents.detach()[0, 0], sizes.detach().log(), rtol=0, atol=1e-14)
    for i in range(3):
        (slope,) = torch.autograd.grad(exponents[0, 0, i], sizes, retain_graph=True)
        expected = torch.zeros(3, dtype=torch.float64)
        expected[i] = 1 / sizes[i].item()
        torch.testing.assert_close(slope, expected, rtol=0, atol=1e-13)


def test_long_windows_of_contracting_maps_keep_their_gradient():
    """The product itself underflows: 300 steps of e^−5 and less."""
    generator = torch.Generator().manual_seed(3)
    A = torch.randn(5, 5, generator=generator, dtype=torch.float64) * 1e-3
    A.requires_grad_()
    orbit = GivenMaps([A] * 300, 1, 1, 5, torch.float64, torch.device("cpu"))
    exponents, _ = leading_exponents(orbit, torch.eye(5, dtype=torch.float64)[None, None])
    (slope,) = torch.autograd.grad(exponents.sum(), A)
    # Σ λ_i = log|det A|, whose derivative is A⁻ᵀ.
    torch.testing.assert_close(slope, torch.linalg.inv(A.detach()).mT, rtol=1e-8, atol=1e-6)


def test_directions_that_are_annihilated_are_left_out_and_the_others_are_not():
    sizes = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    orbit = GivenMaps([torch.diag(sizes)] * 3, 1, 1, 3, torch.float64, torch.device("cpu"))
    exponents, is_left = leading_exponents(orbit, torch.eye(3, dtype=torch.float64)[None, None])
    assert is_left[0, 0].tolist() == [True, False, True]
    assert exponents[0, 0, 0].item() == pytest.approx(math.log(0.5), abs=1e-14)
    assert exponents[0, 0, 2].item() == pytest.approx(math.log(2), abs=1e-14)
    (slope,) = torch.autograd.grad((exponents * is_left).square().sum(), sizes)
    assert torch.isfinite(slope).all()
    assert slope[0].item() == pytest.approx(2 * math.log(0.5) / 0.5, abs=1e-12)


def test_a_dead_relu_network_has_no_gradient_and_no_nan():
    made = network("rnn", layers=1, activation="relu")
    with torch.no_grad():
        made.bias_0[1].fill_(-100.0)
    flossing = Flossing([Flossing.Config(exponents=2, steps=6)] * 2, [1, 2])
    gradient = torch.zeros(2, sum(p[0].numel() for p in made.parameters()), dtype=torch.float64)
    flossing.add(gradient, made, inputs())
    assert torch.isfinite(gradient).all()
    assert (gradient[1] == 0).all()
    assert (gradient[0] != 0).any()


def test_the_penalty_is_the_mean_over_sequences_of_the_squared_distance():
    made, x = network("rnn"), inputs(B=5, T=9)
    flossing = Flossing(
        [Flossing.Config(exponents=3, target=0.2, steps=6, sequences=2)] * 2, [8, 9]
    )
    found = flossing.penalty(made, x)
    # The other sequences, and what comes after the window, are not looked at.
    changed = x.clone()
    changed[2:] += 1
    changed[:, 6:] += 1
    assert torch.equal(flossing.penalty(made, changed), found)
    orbit = made.differentiable_orbit(x[:2, :6])
    flossing_frames = random_frame(orbit, 3, [generator(seed, flossing) for seed in (8, 9)])
    exponents = by_whole_chain(orbit, flossing_frames)
    expected = (exponents - 0.2).square().sum(-1).mean(1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def generator(seed, flossing):
    from tasks.base import generator_for

    return generator_for(seed, "flossing", flossing._epoch)


def test_every_epoch_begins_with_other_frames_and_a_window_may_outlast_the_sequence():
    made, x = network("gru"), inputs(T=4)
    flossing = Flossing([Flossing.Config(exponents=2, steps=50)] * 2, [8, 9])
    first = flossing.penalty(made, x)
    flossing.start_epoch(2)
    assert not torch.equal(flossing.penalty(made, x), first)
    flossing.start_epoch(1)
    assert torch.equal(flossing.penalty(made, x), first)


@every_kind
def test_descending_the_penalty_brings_the_exponents_to_the_target(kind):
    made, x = network(kind, members=1, layers=1, init="gaussian", init_scale=0.4), inputs(T=12)
    flossing = Flossing([Flossing.Config(exponents=2, steps=12, sequences=3)], [8])
    optimiser = torch.optim.Adam(made.parameters(), lr=0.03)
    before = flossing.penalty(made, x).item()
    for _ in range(60):
        optimiser.zero_grad()
        flossing.penalty(made, x).sum().backward()
        optimiser.step()
    assert flossing.penalty(made, x).item() < 0.15 * before
