"""Systems with known exponents, and published mistakes put back to see that they are caught."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import polygamma
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.lstm import LSTM

_PATH = Path(__file__).parents[2] / "known.py"
_SPEC = importlib.util.spec_from_file_location("known", _PATH)
known = importlib.util.module_from_spec(_SPEC)
# A dataclass looks its own module up while it is made.
sys.modules["known"] = known
_SPEC.loader.exec_module(known)

F64 = torch.float64


def tanh_network(size, gain, num_steps, *, seed=0, sequences=1, leak=1.0, transient=200):
    """Jacobians of h' = (1 − δ) h + δ J tanh h as maps Q → J Q, streamed, and the network."""
    g = generator_for("tanh", size, seed)
    W = gain / math.sqrt(size) * torch.randn(size, size, generator=g, dtype=F64)
    h = torch.randn(sequences, size, generator=g, dtype=F64)

    def stream():
        state = h
        for t in range(transient + num_steps):
            slope = torch.cosh(state).reciprocal().square()

            def push(Q, slope=slope):
                moved = (slope[..., None] * Q).mT @ W.mT
                return (leak * moved + (1 - leak) * Q.mT).mT

            if t >= transient:
                yield push
            state = (1 - leak) * state + leak * torch.tanh(state) @ W.mT

    return stream(), W


def spectrum_of_tanh(size, gain, num_steps, *, k=None, sequences=1, seed=0, leak=1.0, **options):
    maps, _ = tanh_network(size, gain, num_steps, sequences=sequences, seed=seed, leak=leak)
    g = generator_for("tanh frame")
    frame = torch.randn(1, sequences, size, k or size, generator=g, dtype=F64)
    warmup = options.pop("warmup", num_steps // 5)
    steps = num_steps - warmup
    return lyapunov_spectrum(maps, tangents=frame, warmup=warmup, steps=steps, **options)


def explicit(size, gain, num_steps, seed=0):
    """The same Jacobians as matrices (T, D, D), of h' = tanh(W h)."""
    g = generator_for("explicit", size, seed)
    W = gain / math.sqrt(size) * torch.randn(size, size, generator=g, dtype=F64)
    h = torch.randn(size, generator=g, dtype=F64)
    found = []
    for _ in range(num_steps + 100):
        a = W @ h
        found.append(torch.cosh(a).pow(-2).unsqueeze(-1) * W)
        h = torch.tanh(a)
    return torch.stack(found[100:]), W


# Exact and algebraic cases


def test_sum_rule_of_a_tanh_network():
    J, W = explicit(6, 2.0, 200)
    spectrum = lyapunov_spectrum(J, warmup=0)
    # Every row of J is φ' times that of W.
    slopes = (J[:, :, 0] / W[:, 0]).log().sum(-1)
    expected = torch.linalg.slogdet(W).logabsdet + slopes.mean()
    assert spectrum.exponents.sum().item() == pytest.approx(expected.item(), abs=1e-10)


def test_the_transpose_belongs_to_reversed_time():
    """In forward time it gives the right sum and wrong exponents."""
    J, _ = explicit(8, 3.0, 6000)
    tangent = lyapunov_spectrum(J, t_on=1)
    adjoint = lyapunov_spectrum(J.mT.flip(0), t_on=1)
    mistaken = lyapunov_spectrum(J.mT, t_on=1)
    # O(1/T): both leave out another fifth of the run.
    agreed = 5 * tangent.standard_error + 2e-2
    assert ((tangent.exponents - adjoint.exponents).abs() < agreed).all()
    assert (tangent.exponents - mistaken.exponents).abs().max() > 0.05
    assert (tangent.exponents.sum() - mistaken.exponents.sum()).abs() < 0.05


def test_circular_law_of_a_linear_network():
    """λ(i/N) = ln g + ½ ln(1 − i/N) for N → ∞ (Ginibre)."""
    N, g = 64, 0.8
    W = g / 8 * torch.randn(N, N, generator=generator_for("ginibre"), dtype=F64)
    spectrum = lyapunov_spectrum(W.expand(600, N, N), warmup=300)
    moduli = torch.linalg.eigvals(W).abs().log().sort(descending=True).values
    # Pairs of equal moduli are told apart only as 1/T.
    torch.testing.assert_close(spectrum.exponents, moduli, atol=2e-2, rtol=0)
    law = np.log(g) + 0.5 * np.log(1 - (np.arange(N) + 0.5) / N)
    # Eigenvalues of one matrix of 64 scatter around the law.
    assert np.abs(spectrum.exponents.cpu().numpy() - law)[: N * 3 // 4].max() < 0.12


def test_without_recurrence_gru_and_rnn_are_solved_by_hand():
    gru, rnn = nn.GRUCell(3, 4, dtype=F64), nn.RNNCell(3, 4, dtype=F64)
    with torch.no_grad():
        gru.weight_hh.zero_()
        rnn.weight_hh.zero_()
    x = torch.randn((1, 300, 3), generator=generator_for("no U"), dtype=F64)
    spectrum = lyapunov_spectrum(gru, x, warmup=100, t_on=1)
    z = torch.sigmoid(nn.functional.linear(x, gru.weight_ih, gru.bias_ih) + gru.bias_hh)
    log_z = z[0, 100:, 4:8].log().mean(0).sort(descending=True).values
    # Directions decouple, gaps are small: the frame relaxes like exp(−gap · T).
    assert spectrum.exponents.sum().item() == pytest.approx(log_z.sum().item(), abs=1e-10)
    torch.testing.assert_close(spectrum.exponents, log_z, atol=2e-2, rtol=0)
    dead = lyapunov_spectrum(rnn, x)
    assert dead.minus_infinity.all()
    assert dead.at_floor.all()
    assert not dead.converged.any()
    assert torch.isneginf(dead.exponents).all()


def scalar(cell, weights):
    for name, values in weights.items():
        weight = getattr(cell, name)
        with torch.no_grad():
            weight.copy_(torch.tensor(values, dtype=F64).reshape(weight.shape))
    return cell


def test_worked_scalar_cells():
    """Fixed points at x = 0.7, worked out by autograd."""
    x = torch.full((1, 900, 1), 0.7, dtype=F64)
    gru = scalar(
        nn.GRUCell(1, 1, dtype=F64),
        {
            "weight_ih": [0.5, -0.3, 0.8],
            "weight_hh": [0.4, 0.6, -0.7],
            "bias_ih": [0.1, 0.2, 0.0],
            "bias_hh": [0.0, 0.0, 0.3],
        },
    )
    start = torch.tensor([0.3], dtype=F64)
    first = lyapunov_spectrum(gru, x, start=start, steps=1, warmup=0)
    assert first.exponents.exp().item() == pytest.approx(0.365059018978, abs=1e-11)
    spectrum = lyapunov_spectrum(gru, x, warmup=500)
    assert spectrum.exponents.item() == pytest.approx(-0.871017675732, abs=1e-11)
    rnn = scalar(
        nn.RNNCell(1, 1, dtype=F64),
        {"weight_ih": [0.0], "weight_hh": [1.7], "bias_ih": [0.1], "bias_hh": [0.0]},
    )
    spectrum = lyapunov_spectrum(rnn, x, warmup=500, start=start)
    assert spectrum.exponents.item() == pytest.approx(-1.525387103617, abs=1e-11)
    lstm = scalar(
        nn.LSTMCell(1, 1, dtype=F64),
        {
            "weight_ih": [0.5, -0.3, 0.8, 0.2],
            "weight_hh": [0.4, 0.6, -0.7, 0.9],
            "bias_ih": [0.1, 1.0, 0.0, -0.2],
            "bias_hh": [0.0, 0.0, 0.0, 0.0],
        },
    )
    start = torch.tensor([0.3, -0.4], dtype=F64)
    one = lyapunov_spectrum(lstm, x, start=start, steps=1, warmup=0)
    assert one.exponents.sum().item() == pytest.approx(-4.413783836989, abs=1e-11)


@pytest.mark.parametrize("r", ["baker", "logistic", "tent"])
def test_maps_of_the_interval(r):
    if r == "baker":
        J = torch.diag(torch.tensor([2.0, 0.5], dtype=F64)).expand(50, 2, 2)
        expected = [math.log(2), -math.log(2)]
        spectrum = lyapunov_spectrum(J, warmup=30)
        assert spectrum.exponents.tolist() == pytest.approx(expected, abs=1e-12)
    elif r == "tent":
        # Slopes ±2 whatever the point; float orbits of the tent itself collapse to 0.
        sign = torch.randint(2, (200, 1, 1), generator=generator_for("tent")) * 2 - 1
        spectrum = lyapunov_spectrum(2.0 * sign.double())
        assert spectrum.exponents.item() == pytest.approx(math.log(2), abs=1e-14)
    else:
        start = torch.rand(40, 1, generator=generator_for("logistic"), dtype=F64)
        spectrum = lyapunov_spectrum(lambda s: 4 * s * (1 - s), start, steps=800, t_on=1)
        error = spectrum.standard_error.item()
        assert error < 5e-3
        assert abs(spectrum.exponents.item() - math.log(2)) < 3.5 * error + 1e-3


def test_planar_maps():
    start = 0.1 * torch.rand(60, 2, generator=generator_for("planar"), dtype=F64)
    henon = lyapunov_spectrum(known.henon, start, steps=1000)
    assert henon.exponents.sum().item() == pytest.approx(math.log(0.3), abs=1e-12)
    assert abs(henon.exponents[0].item() - 0.419229) < 4 * henon.standard_error[0].item() + 5e-4
    assert henon.kaplan_yorke.item() == pytest.approx(1.25827, abs=5e-3)
    ikeda = lyapunov_spectrum(known.ikeda, start, steps=1000)
    assert ikeda.exponents.sum().item() == pytest.approx(2 * math.log(0.9), abs=1e-11)
    assert abs(ikeda.exponents[0].item() - 0.5076) < 4 * ikeda.standard_error[0].item() + 1e-3
    chirikov = lyapunov_spectrum(known.standard_map, 6 * start, steps=500)
    assert chirikov.exponents.sum().item() == pytest.approx(0, abs=1e-10)
    # ln(K/2) up to islands and O(1/K²).
    assert chirikov.exponents[0].item() == pytest.approx(math.log(4), abs=0.03)


def test_synchronised_coupled_maps_have_exact_gaps():
    step, expected = known.coupled_logistic()
    start = torch.full((30, 6), 0.0, dtype=F64)
    start += 2 * torch.rand(30, 1, generator=generator_for("sync"), dtype=F64) - 1
    spectrum = lyapunov_spectrum(step, start, steps=500, warmup=100, t_on=1)
    gaps = spectrum.exponents[0] - spectrum.exponents[1:]
    torch.testing.assert_close(gaps, torch.full_like(gaps, -math.log(0.4)), atol=1e-10, rtol=0)
    assert abs(spectrum.exponents[0].item() - expected[0]) < 0.01


def test_exponents_lie_between_the_extreme_singular_values():
    """At every step, and so on average."""
    J, _ = explicit(12, 2.0, 400)
    spectrum = lyapunov_spectrum(J, warmup=0, t_on=1)
    each = torch.linalg.svdvals(J).log()
    assert (spectrum.block_steps == 1).all()
    assert (spectrum.block_logs[0].amax(0) <= each[:, 0] + 1e-12).all()
    assert (spectrum.block_logs[0].amin(0) >= each[:, -1] - 1e-12).all()
    sigma = each.mean(0)
    rows, columns = J.abs().sum(-1).amax(-1), J.abs().sum(-2).amax(-1)
    holder = (0.5 * (rows * columns).log()).mean()
    slack = 1e-12
    assert sigma[-1] - slack <= spectrum.exponents.min()
    assert spectrum.exponents.max() <= sigma[0] + slack
    assert sigma[0] <= holder + slack


NEWMAN = {
    4: [-0.1351814227, -0.3283286033, -0.6351814227, -1.3283286033],
    8: [-0.0650883463, -1.6749021936],
    64: [-0.0078531861, -2.7146229644],
}


@pytest.mark.parametrize(("N", "T"), [(4, 4000), (8, 4000), (64, 600)])
def test_random_products(N, T, device):
    """Newman 1986: independent R_ii² ~ σ²χ², unbiased at any T; at 64, triangular frames."""
    generator = generator_for("newman", N)
    J = torch.randn(T, N, N, generator=generator, dtype=F64) / math.sqrt(N)
    spectrum = lyapunov_spectrum(J, warmup=0)
    assert spectrum.method == ("lu" if N == 64 and device.type == "cpu" else "householder")
    expected = known.newman(N, 1 / math.sqrt(N))
    listed = expected if N == 4 else expected[[0, -1]]
    assert listed == pytest.approx(NEWMAN[N], abs=1e-9)
    half = (N - np.arange(N)) / 2
    z = (spectrum.exponents.cpu().numpy() - expected) / (0.5 * np.sqrt(polygamma(1, half) / T))
    # Of 64 normal numbers, the largest is above 3.9 once in 200 times.
    assert np.abs(z).max() < 3.9
    if N == 64:
        assert 0.8 < z.std() < 1.2


# Mean field


def mean_field(g):
    """q, λ_1 and ⟨λ⟩ of h' = J tanh h for N → ∞ (Molgedey et al. 1992)."""

    def mean(f, q):
        density = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
        return quad(lambda z: density(z) * f(math.sqrt(q) * z), -10, 10, limit=200)[0]

    q = 1.0
    for _ in range(300):
        q = g * g * mean(lambda h: math.tanh(h) ** 2, q)
    largest = math.log(g * math.sqrt(mean(lambda h: math.cosh(h) ** -4, q)))
    average = math.log(g) - 0.5 + mean(lambda h: -2 * math.log(math.cosh(h)), q)
    return q, largest, average


def test_mean_field_of_the_driven_tanh_map():
    q, largest, average = mean_field(3.0)
    assert (q, largest, average) == pytest.approx((6.305391, 0.310249, -2.272805), abs=2e-6)
    spectrum = spectrum_of_tanh(512, 3.0, 250, k=2, sequences=2)
    # Finite N: 0.3053 at N = 512, and a run of 200 steps.
    assert spectrum.exponents[0].item() == pytest.approx(largest, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("g", "largest"), [(1.5, 0.065217), (3, 0.310249), (5, 0.532428)])
def test_mean_field_at_size_1024(g, largest):
    spectrum = spectrum_of_tanh(1024, g, 600, k=2, sequences=2)
    assert spectrum.exponents[0].item() == pytest.approx(largest, abs=0.015)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "g", "largest"),
    [
        (0.5, 1.5, 0.045913),
        (0.5, 3.0, 0.216124),
        (0.5, 10.0, 0.716241),
        (0.25, 1.5, 0.046330),
        (0.25, 3.0, 0.225401),
        (0.25, 10.0, 0.680171),
    ],
)
def test_continuous_network_by_euler_steps(step, g, largest):
    """Sompolinsky et al. 1988, per unit of time, in Euler steps and for N → ∞."""
    spectrum = spectrum_of_tanh(2048, g, 600, k=1, leak=step)
    # At finite N it is lower: 0.193 at 512, g = 3 and half a unit.
    assert spectrum.exponents[0].item() / step == pytest.approx(largest, rel=0.15)


def test_float32_tangents_find_the_leading_exponents_of_a_chaotic_network():
    single, double = (
        spectrum_of_tanh(64, 1.5, 600, k=8, dtype=dtype).exponents
        for dtype in (torch.float32, torch.float64)
    )
    assert double[0] > 0
    torch.testing.assert_close(single, double, atol=1e-5, rtol=0)


# Flows


def flow_spectrum(flow, dt, steps, *, members=1, sequences=8, seed=3, **options):
    orbit = known.FlowOrbit(
        flow, members=members, sequences=sequences, steps=steps, dt=dt, seed=seed
    )
    spectrum = lyapunov_spectrum(orbit, **options)
    return spectrum.exponents / dt, spectrum.standard_error / dt, spectrum.kaplan_yorke


def test_flows_within_their_own_errors():
    for flow, truth, dt, steps, dimension in (
        (known.lorenz63(), known.LORENZ63, 0.01, 2500, 2.06215),
        (known.lorenz96(), known.LORENZ96, 0.02, 1500, 6.50),
    ):
        exponents, error, kaplan_yorke = flow_spectrum(flow, dt, steps, sequences=16)
        difference = (exponents[0] - torch.tensor(truth, dtype=F64)).abs()
        assert (difference < 4 * error[0] + 1e-2).all(), (difference, error)
        assert exponents.sum().item() == pytest.approx(sum(truth), abs=0.02)
        # The error of the positive exponents over the size of the first that does not fit.
        assert kaplan_yorke.item() == pytest.approx(dimension, abs=0.08)


def covered(flow, truth, dt, steps, sequences, runs, seed, **options):
    exponents, error, _ = flow_spectrum(
        flow, dt, steps, members=runs, sequences=sequences, seed=seed, **options
    )
    inside = (exponents - torch.tensor(truth, dtype=F64)).abs() < 1.96 * error
    return inside.double().mean(0)


def test_intervals_cover_the_truth_in_a_few_runs():
    """A coarse look; two hundred runs are slow, and `test_uncertainty` has thousands of sums that
    hardly diffuse. Three errors of a share of 0.95 in sixty runs are 0.085."""
    share = covered(known.lorenz63(), known.LORENZ63, 0.02, 3000, 4, 60, 4)
    assert share.min() >= 0.86, share
    assert share.mean() <= 0.97, share


@pytest.mark.slow
def test_intervals_cover_the_truth_of_lorenz_63():
    """Runs of 96 units of time, about 130 turns."""
    share = covered(known.lorenz63(), known.LORENZ63, 0.02, 6000, 4, 200, 1)
    assert ((share >= 0.90) & (share <= 0.98)).all(), share


@pytest.mark.slow
def test_intervals_cover_the_truth_of_lorenz_96():
    """Runs of 12 units of time, after 30 in which the frame relaxes: the third exponent is only
    0.09 above the fourth, and they trade places over hundreds of units."""
    flow, truth = known.lorenz96(), known.LORENZ96
    share = covered(flow, truth, 0.02, 2100, 8, 200, 1, warmup=1500)
    assert ((share >= 0.90) & (share <= 0.98)).all(), share


@pytest.mark.slow
def test_rossler():
    """Σ = a − c + ⟨x⟩ along the same orbit; the published values of all three."""
    dt, steps = 0.02, 20_000
    orbit = known.FlowOrbit(
        known.rossler(), members=1, sequences=20, steps=steps, dt=dt, seed=3, transient=8000
    )
    spectrum = lyapunov_spectrum(orbit, warmup=0)
    exponents, error = spectrum.exponents[0] / dt, spectrum.standard_error[0] / dt
    x, mean = orbit.start, 0.0
    for _ in range(steps):
        mean += x[..., 0, 0].mean().item() / steps
        x, _ = orbit.flow.step(x, dt)
    # ⟨x⟩ by the rectangle rule, good to its ends: dt · x / T.
    assert exponents.sum().item() == pytest.approx(0.2 - 5.7 + mean, abs=2e-3)
    published = torch.tensor(known.ROSSLER, dtype=F64)
    # The frame starts at random, which leaves O(1/T), and the published first is ±0.0003.
    assert ((exponents - published).abs() < 3 * error + 2e-3).all(), (exponents, error)
    assert (error < torch.tensor([0.005, 0.002, 0.02], dtype=F64)).all(), error


# The law of T_ON


def test_a_long_t_on_must_flag_its_plateau():
    """N = 64, g = 1.5, T_ON = 10 in float64."""
    right = spectrum_of_tanh(64, 1.5, 500, sequences=1, t_on=1)
    wrong = spectrum_of_tanh(64, 1.5, 500, sequences=1, t_on=10)
    off = (right.exponents - wrong.exponents).abs() > 1e-3
    assert off.any()
    assert (wrong.at_floor[off]).all()
    assert not right.at_floor.any()
    chosen = spectrum_of_tanh(64, 1.5, 500, sequences=1)
    assert not chosen.at_floor.any()
    # ε^0.45 per factorisation, with triangular frames.
    torch.testing.assert_close(chosen.exponents, right.exponents, atol=1e-6, rtol=0)


def test_single_precision_flags_what_it_loses_at_large_gain():
    double = spectrum_of_tanh(64, 4.0, 300, t_on=1)
    maps, _ = tanh_network(64, 4.0, 300)
    matrices = [J(torch.eye(64, dtype=F64).expand(1, 64, 64))[0] for J in maps]
    frame = torch.randn(1, 1, 64, 64, generator=generator_for("tanh frame"), dtype=F64)
    single = lyapunov_spectrum(matrices, warmup=60, tangents=frame, dtype=torch.float32)
    lost = (single.exponents - double.exponents).abs() > 0.05
    assert lost.any()
    assert single.at_floor[lost].all()
    torch.testing.assert_close(single.exponents[:8], double.exponents[:8], atol=1e-4, rtol=0)


# Mistakes


def test_a_random_frame_finds_what_the_identity_hides():
    """e_1 spans an invariant subspace that grows slower."""
    J = torch.diag(torch.tensor([0.5, 2.0], dtype=F64)).expand(200, 2, 2)
    blind = lyapunov_spectrum(J, k=1, tangents=torch.eye(2, dtype=F64)[:, :1])
    found = lyapunov_spectrum(J, k=1)
    assert blind.exponents.item() == pytest.approx(math.log(0.5))
    assert found.exponents.item() == pytest.approx(math.log(2))


def test_the_tangent_step_costs_its_products_and_nothing_more():
    """No H × H × H product of diagonal matrices."""
    H, B, k = 64, 3, 5
    network = LSTM(
        [LSTM.Config(units=H)],
        input_size=2,
        output_size=2,
        generators=[generator_for("cost")],
        dtype=F64,
    )
    J = next(network.orbit(torch.zeros(B, 1, 2, dtype=F64)).maps())
    for columns, products in ((k, 4 * H * H), (2 * H, 2 * H * H)):
        Q = torch.ones(1, B, 2 * H, columns, dtype=F64)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            J(Q)
        assert counter.get_total_flops() <= 2 * products * B * columns


def test_convergence_is_no_small_change_of_a_running_mean():
    """A drifting exponent changes little from step to step, and is flagged."""
    rates = torch.linspace(0.0, 0.5, 2000, dtype=F64)
    drifting = lyapunov_spectrum(rates.exp().reshape(-1, 1, 1), warmup=0)
    assert not drifting.converged.any()
    assert (drifting.history[..., -1] - drifting.history[..., -2]).abs().max() < 5e-3
    noise = torch.randn(2000, generator=generator_for("noise"), dtype=F64)
    steady = lyapunov_spectrum(noise.exp().reshape(-1, 1, 1), warmup=0)
    assert steady.converged.all()


def test_a_tolerance_ends_the_run_once_it_is_met():
    noise = torch.randn(4000, generator=generator_for("noise"), dtype=F64).exp().reshape(-1, 1, 1)
    loose = lyapunov_spectrum(noise, warmup=0, tolerance=0.05)
    assert loose.has_reached_tolerance
    assert (loose.standard_error < 0.05).all()
    # The truth is 1/√T, so that 400 steps are needed; looking often errs on the early side.
    assert 200 <= loose.steps <= 800
    assert len(loose.block_steps) >= 16
    tight = lyapunov_spectrum(noise, warmup=0, tolerance=1e-4)
    assert tight.has_reached_tolerance is False
    assert tight.steps == 4000
    dead = torch.diag(torch.tensor([1.0, 0.0], dtype=F64)).expand(400, 2, 2)
    assert lyapunov_spectrum(dead, tolerance=0.1).has_reached_tolerance
    with pytest.raises(ValueError, match="tolerance must be greater"):
        lyapunov_spectrum(dead, tolerance=0.0)


# Properties


@settings(max_examples=25, deadline=None)
@given(
    units=st.integers(1, 5),
    layers=st.integers(1, 3),
    batch=st.integers(1, 3),
    t_on=st.sampled_from([1, 2, 5, "auto"]),
    kind=st.sampled_from([nn.RNN, nn.GRU, nn.LSTM]),
    single=st.booleans(),
    seed=st.integers(0, 100),
)
def test_batches_are_separate_runs_and_few_are_the_first_of_many(
    units, layers, batch, t_on, kind, single, seed
):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = kind(2, units, layers, dtype=F64)
    x = torch.randn((batch, 24, 2), generator=generator_for(seed), dtype=F64)
    D = units * layers * (2 if kind is nn.LSTM else 1)
    frame = torch.randn((D, D), generator=generator_for("f", seed), dtype=F64)
    dtype = torch.float32 if single else F64
    options = {"t_on": t_on, "warmup": 4, "dtype": dtype}
    # Exponents at a floor are noise by definition and need not agree.
    whole = lyapunov_spectrum(module, x, tangents=frame, **options)
    fine = ~whole.at_floor
    tolerance = 2e-3 if single else 1e-6
    for b in range(batch):
        alone = lyapunov_spectrum(module, x[b : b + 1], tangents=frame, **options)
        both = fine & ~alone.at_floor
        torch.testing.assert_close(
            alone.exponents[both], whole.per_sequence[b][both], atol=tolerance, rtol=0
        )
    order = torch.randperm(batch, generator=generator_for("order", seed))
    shuffled = lyapunov_spectrum(module, x[order], tangents=frame, **options)
    torch.testing.assert_close(
        shuffled.exponents[fine], whole.exponents[fine], atol=tolerance, rtol=0
    )
    k = max(1, D // 2)
    few = lyapunov_spectrum(module, x, tangents=frame[:, :k], **options)
    both = fine[:k] & ~few.at_floor
    torch.testing.assert_close(
        few.exponents[both], whole.exponents[:k][both], atol=tolerance, rtol=0
    )
