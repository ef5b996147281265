"""Spectra against systems with known answers, laws, and the mistakes others made."""

import math

import numpy as np
import pytest
import torch
from scipy.special import polygamma, psi

from pipeline.dynamics import propagate
from pipeline.dynamics.orthonormal import orthonormalise
from pipeline.dynamics.propagate import carry
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import UnsuitableError, generator_for
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP

F64 = torch.float64


def lstm(count=2, *, units=6, layers=1, scale=1.0, inputs=3, name="lstm", **settings):
    configs = [
        LSTM.Config(units=units, layers=layers, init_scale=scale + 0.5 * n, **settings)
        for n in range(count)
    ]
    generators = [generator_for(name, n) for n in range(count)]
    return LSTM(configs, input_size=inputs, output_size=2, generators=generators, dtype=F64)


def sequences(num_sequences, num_steps, inputs=3):
    shape = (num_sequences, num_steps, inputs)
    return torch.randn(shape, generator=generator_for("x"), dtype=F64)


def scalar_cell():
    network = LSTM(
        [LSTM.Config(units=1)],
        input_size=1,
        output_size=1,
        generators=[generator_for(0)],
        dtype=F64,
    )
    with torch.no_grad():
        for name, values in (
            ("weight_in_0", [0.5, -0.3, 0.8, 0.2]),
            ("weight_rec_0", [0.4, 0.6, -0.7, 0.9]),
            ("bias_0", [0.1, 1.0, 0.0, -0.2]),
        ):
            weight = network.get_parameter(name)
            weight.copy_(torch.tensor(values, dtype=F64).reshape(weight.shape))
    return network


def chaotic_jacobians(num_units=8, gain=3.0, num_steps=3000, seed=0):
    """J_t of h' = tanh(W h), W_ij ~ N(0, gain²/N)."""
    g = generator_for("chaos", seed)
    W = gain / math.sqrt(num_units) * torch.randn(num_units, num_units, generator=g, dtype=F64)
    h = torch.randn(num_units, generator=g, dtype=F64)
    jacobians = []
    for _ in range(num_steps):
        a = W @ h
        jacobians.append(torch.cosh(a).pow(-2).unsqueeze(-1) * W)
        h = torch.tanh(a)
    return torch.stack(jacobians)


def test_constant_matrix_has_the_logs_of_its_eigenvalues():
    A = torch.randn(5, 5, generator=generator_for("A"), dtype=F64)
    A = A @ torch.diag(torch.tensor([3.0, 1.5, 1.0, 0.5, 0.1], dtype=F64)) @ torch.linalg.inv(A)
    spectrum = lyapunov_spectrum(A.expand(800, 5, 5), warmup=400)
    expected = torch.tensor([3.0, 1.5, 1.0, 0.5, 0.1], dtype=F64).log()
    # With the frame relaxed, what is left of the O(1/T) error has decayed like exp(−gap·T).
    torch.testing.assert_close(spectrum.exponents, expected, atol=1e-9, rtol=0)
    assert not spectrum.at_floor.any()


@pytest.mark.parametrize("t_on", [1, 7, "auto"])
def test_scaled_orthogonal_maps_have_equal_exponents(t_on):
    g = generator_for("O")
    J = torch.stack(
        [torch.linalg.qr(torch.randn(6, 6, generator=g, dtype=F64)).Q for _ in range(50)]
    )
    spectrum = lyapunov_spectrum(1.3 * J, t_on=t_on)
    expected = torch.full((6,), math.log(1.3), dtype=F64)
    torch.testing.assert_close(spectrum.exponents, expected, atol=1e-14, rtol=0)
    assert spectrum.self_check["sum_rule"] < 1e-14


def test_cat_map():
    J = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=F64).expand(300, 2, 2)
    spectrum = lyapunov_spectrum(J, warmup=60)
    value = math.log((3 + math.sqrt(5)) / 2)
    expected = torch.tensor([value, -value], dtype=F64)
    torch.testing.assert_close(spectrum.exponents, expected, atol=1e-12, rtol=0)
    assert spectrum.kaplan_yorke.item() == pytest.approx(2, abs=1e-9)
    assert spectrum.entropy_bound.item() == pytest.approx(value, abs=1e-12)
    bits = spectrum.bits()
    assert bits.unit == "bits/step"
    assert bits.exponents[0].item() == pytest.approx(value / math.log(2), abs=1e-12)
    torch.testing.assert_close(bits.history[:, -1], bits.exponents)


@pytest.mark.parametrize("t_on", [1, "auto"])
def test_random_gaussian_products_are_unbiased_with_the_right_error(t_on):
    """Newman 1986: at every step R_ii² ~ σ²χ²_{N−i+1}, independently."""
    N, T = 8, 10_000
    J = torch.randn(T, N, N, generator=generator_for("newman"), dtype=F64) / math.sqrt(N)
    spectrum = lyapunov_spectrum(J, warmup=0, t_on=t_on)
    half = (N - np.arange(1, N + 1) + 1) / 2
    expected = 0.5 * (math.log(2) + psi(half)) - 0.5 * math.log(N)
    exact_error = 0.5 * np.sqrt(polygamma(1, half) / T)
    assert expected[0] == pytest.approx(-0.0650883463, abs=1e-9)
    assert expected[-1] == pytest.approx(-1.6749021936, abs=1e-9)
    z = (spectrum.exponents.cpu().numpy() - expected) / exact_error
    assert np.abs(z).max() < 3.5
    # Spread of ~600 blocks, less where some are joined by chance.
    ratio = spectrum.standard_error.cpu().numpy() / exact_error
    assert (np.abs(ratio - 1) < 0.3).all(), ratio
    assert len(spectrum.block_steps) <= propagate.MOST_BLOCKS
    assert spectrum.block_steps.sum() == T


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("inputs", [3, None])
def test_sum_rule_of_the_lstm(layers, inputs):
    network = lstm(layers=layers, units=4)
    x = sequences(3, 80) if inputs else torch.randint(3, (3, 80), generator=generator_for("t"))
    spectrum = lyapunov_spectrum(network, x, warmup=10, t_on=1)
    orbit = list(network.orbit(x).maps())[10:]
    log_det = torch.stack([J.log_abs_det() for J in orbit]).mean(0)
    total = spectrum.per_sequence.sum(-1)
    torch.testing.assert_close(total, log_det, atol=1e-10, rtol=0)
    assert (spectrum.self_check["sum_rule"] < 1e-10).all()
    assert (spectrum.self_check["autodiff"] < 1e-13).all()
    assert spectrum.self_check_passed.all()


def test_a_wrong_tangent_fails_the_self_check(monkeypatch):
    from tasks.networks.lstm_tangent import LSTMStep

    network, x = lstm(), sequences(2, 20)
    right = LSTMStep.__call__
    monkeypatch.setattr(LSTMStep, "__call__", lambda self, Q: 1.001 * right(self, Q))
    spectrum = lyapunov_spectrum(network, x)
    assert not spectrum.self_check_passed.any()
    assert (spectrum.self_check["autodiff"] > 1e-4).all()
    assert (spectrum.self_check["sum_rule"] > 1e-4).all()


def test_worked_fixed_point_of_one_unit():
    """λ = (−0.5125…, −1.7829…) by autograd at (h, c) = (0.3507…, 0.7288…)."""
    x = torch.full((1, 1500, 1), 0.7, dtype=F64)
    spectrum = lyapunov_spectrum(scalar_cell(), x, warmup=1000)
    expected = torch.tensor([[-0.512539928688, -1.782852535947]], dtype=F64)
    torch.testing.assert_close(spectrum.exponents, expected, atol=1e-11, rtol=0)


def test_full_and_hidden_state_are_different_systems():
    network, x = lstm(count=1, units=16, forget_bias=1.0, scale=0.25), sequences(4, 300)
    full = lyapunov_spectrum(network, x, warmup=50)
    hidden = lyapunov_spectrum(network, x, warmup=50, state="hidden")
    assert (full.tangent_size, hidden.tangent_size) == (32, 16)
    assert (full.state, hidden.state) == ("full", "hidden")
    # The cell remembers; with it held fixed the block alone seems to forget at once.
    assert full.exponents[0, 0] > hidden.exponents[0, 0] + 1


def test_without_recurrent_weights_half_of_the_lstm_is_dead():
    """The top H are ⟨ln f_i⟩, the others −inf and must be flagged."""
    network = lstm(count=1, units=4)
    with torch.no_grad():
        network.weight_rec_0.zero_()
    x = sequences(2, 120)
    spectrum = lyapunov_spectrum(network, x, warmup=20, t_on=1)
    log_f = torch.stack([J.gains[0].f.log() for J in network.orbit(x).maps()])[20:].mean(0)
    expected = log_f.sort(dim=-1, descending=True).values
    # No coupling: the frame relaxes like exp(−gap·T), and gaps are small here.
    total = spectrum.per_sequence[..., :4].sum(-1)
    torch.testing.assert_close(total, expected.sum(-1), atol=2e-2, rtol=0)
    assert not spectrum.at_floor[:, :4].any()
    assert spectrum.at_floor[:, 4:].all()
    assert not spectrum.converged[:, 4:].any()


def test_a_map_that_annihilates_shows_as_minus_infinity_and_its_count():
    J = torch.eye(3, dtype=F64).expand(20, 3, 3).clone()
    J[7] = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=F64))
    spectrum = lyapunov_spectrum(J, warmup=0, t_on=1, tangents=torch.eye(3, dtype=F64))
    assert spectrum.exponents.tolist() == [0.0, 0.0, -math.inf]
    assert spectrum.minus_infinity.tolist() == [False, False, True]
    assert spectrum.num_zeros.tolist() == [0, 0, 1]
    assert math.isnan(spectrum.standard_error[2])
    Q = orthonormalise(J[7].expand(1, 1, 3, 3))[0]
    torch.testing.assert_close(Q.mT @ Q, torch.eye(3, dtype=F64).expand(1, 1, 3, 3))


def test_strong_contraction_is_a_number_and_not_clamped():
    J = torch.diag(torch.tensor([1.0, 1e-30], dtype=F64)).expand(10, 2, 2)
    spectrum = lyapunov_spectrum(J, warmup=0, t_on=1, tangents=torch.eye(2, dtype=F64))
    assert spectrum.exponents[1].item() == pytest.approx(math.log(1e-30), rel=1e-12)


def test_time_order_matters():
    """The transpose needs reversed time; forward it gives something else."""
    J = chaotic_jacobians()
    options = {"warmup": 200, "t_on": 1}
    right = lyapunov_spectrum(J, **options).exponents
    adjoint = lyapunov_spectrum(J.mT.flip(0), **options).exponents
    mistaken = lyapunov_spectrum(J.mT, **options).exponents
    # Different transients at both ends of the run: O(1/T).
    torch.testing.assert_close(adjoint, right, atol=0.05, rtol=0)
    assert (mistaken - right).abs().max() > 0.2
    torch.testing.assert_close(mistaken.sum(), right.sum(), atol=1e-9, rtol=0)


def test_singular_values_of_the_whole_product():
    """Against the slow obvious way: from V_1, the QR of J_T … J_1 V = U Σ gives Σ."""
    J = chaotic_jacobians(num_steps=6, gain=1.5)
    product = torch.eye(8, dtype=F64)
    for step in J:
        product = step @ product
    _, sigma, Vh = torch.linalg.svd(product)
    spectrum = lyapunov_spectrum(J, warmup=0, tangents=Vh.mT, t_on=1)
    torch.testing.assert_close(6 * spectrum.exponents, sigma.log(), atol=1e-8, rtol=0)


def test_t_on_does_not_change_the_exponents_within_the_law():
    network, x = lstm(units=8, scale=0.8), sequences(3, 203)  # 203: the last block is cut short
    every = lyapunov_spectrum(network, x, warmup=30, t_on=1)
    for t_on in (2, 3, "auto"):
        other = lyapunov_spectrum(network, x, warmup=30, t_on=t_on)
        torch.testing.assert_close(other.exponents, every.exponents, atol=1e-9, rtol=0)
        assert other.block_steps.sum() == 173
    few = lyapunov_spectrum(network, x, warmup=30, t_on=10, k=4)
    assert few.exponents.shape == (2, 4)
    # The same leading columns of the frame, so the same numbers.
    frame = torch.linalg.qr(torch.randn(16, 16, generator=generator_for("f"), dtype=F64)).Q
    whole = lyapunov_spectrum(network, x, warmup=30, t_on=1, tangents=frame)
    part = lyapunov_spectrum(network, x, warmup=30, t_on=10, tangents=frame[:, :4])
    torch.testing.assert_close(part.exponents, whole.exponents[:, :4], atol=1e-9, rtol=0)


def test_a_spurious_plateau_is_flagged_and_auto_avoids_it():
    """Diagonal contraction in a rotating frame: λ = 0 and −4, far apart for T_ON = 20."""
    g = generator_for("plateau")
    S = torch.randn(2, 2, generator=g, dtype=F64)
    A = S @ torch.diag(torch.tensor([1.0, math.exp(-4)], dtype=F64)) @ torch.linalg.inv(S)
    J = A.expand(400, 2, 2)
    wrong = lyapunov_spectrum(J, warmup=40, t_on=20)
    assert abs(wrong.exponents[1] + 4) > 1
    assert wrong.at_floor.tolist() == [False, True]
    assert not wrong.self_check_passed
    right = lyapunov_spectrum(J, warmup=40)
    assert right.exponents[1].item() == pytest.approx(-4, abs=1e-8)
    assert not right.at_floor.any()
    assert right.self_check_passed
    assert 1 < right.t_on[0] < 8


def test_a_member_alone_equals_itself_in_company():
    network, x = lstm(count=3, scale=0.4), sequences(2, 60)
    generators = lambda *members: [generator_for("tangents", n) for n in members]  # noqa: E731
    together = lyapunov_spectrum(network, x, generator=generators(0, 1, 2))
    assert len(set(together.t_on)) > 1  # T_ON differs, so company could matter
    for n in range(3):
        alone = LSTM(
            [LSTM.Config(units=6, init_scale=0.4 + 0.5 * n)],
            input_size=3,
            output_size=2,
            generators=[generator_for("lstm", n)],
            dtype=F64,
        )
        single = lyapunov_spectrum(alone, x, generator=generators(n))
        assert single.t_on == together.t_on[n : n + 1]
        torch.testing.assert_close(single.exponents[0], together.exponents[n], atol=1e-10, rtol=0)
        torch.testing.assert_close(
            single.standard_error[0], together.standard_error[n], atol=1e-10, rtol=0
        )


def test_nan_weights_stay_with_their_member():
    network, x = lstm(count=3), sequences(2, 40)
    healthy = lyapunov_spectrum(network, x)
    with torch.no_grad():
        network.weight_rec_0[1, 0, 0] = float("nan")
    spectrum = lyapunov_spectrum(network, x)
    assert spectrum.exponents[1].isnan().all()
    assert not spectrum.converged[1].any()
    assert not spectrum.self_check_passed[1]
    for n in (0, 2):
        assert torch.equal(spectrum.exponents[n], healthy.exponents[n])


def test_order_of_sequences_does_not_matter():
    network, x = lstm(), sequences(4, 50)
    frame = torch.linalg.qr(torch.randn(12, 12, generator=generator_for("q"), dtype=F64)).Q
    one = lyapunov_spectrum(network, x, tangents=frame)
    other = lyapunov_spectrum(network, x.flip(0), tangents=frame)
    torch.testing.assert_close(other.per_sequence.flip(1), one.per_sequence, atol=1e-9, rtol=0)


def test_warm_up_is_taken_from_the_same_inputs_once():
    J = chaotic_jacobians(num_steps=50)
    whole = lyapunov_spectrum(J, warmup=20)
    assert (whole.warmup, whole.steps) == (20, 30)
    frame = torch.linalg.qr(torch.randn(8, 8, generator=generator_for("w"), dtype=F64)).Q

    class Given:
        num_members = num_sequences = 1
        num_steps, tangent_size, dtype, device = 50, 8, F64, J[0].device

        def maps(self):
            return iter([lambda Q, A=A: A @ Q for A in J])

    relaxed = carry(Given(), frame[None, None], warmup=19, steps=1, t_on=1).frame_NBDK[0, 0]
    direct = lyapunov_spectrum(J[20:], warmup=0, tangents=relaxed, t_on=1)
    warmed = lyapunov_spectrum(J, warmup=20, tangents=frame, t_on=1)
    torch.testing.assert_close(direct.exponents, warmed.exponents, atol=1e-10, rtol=0)


def test_float32_tangents_give_the_leading_exponents():
    network, x = lstm(units=12, scale=0.5), sequences(4, 150)
    double = lyapunov_spectrum(network, x, k=4)
    single = lyapunov_spectrum(network, x, k=4, dtype=torch.float32)
    assert single.dtype == torch.float32
    assert single.exponents.dtype == F64
    # Rounding of 6e-8 a step, well below the statistical error of 1e-2.
    torch.testing.assert_close(single.exponents, double.exponents, atol=1e-5, rtol=0)
    assert single.self_check_passed.all()


def test_many_blocks_are_merged_without_losing_growth(monkeypatch):
    J = chaotic_jacobians(num_steps=203)
    whole = lyapunov_spectrum(J, warmup=0, t_on=1)
    monkeypatch.setattr(propagate, "MOST_BLOCKS", 16)
    merged = lyapunov_spectrum(J, warmup=0, t_on=1)
    assert len(merged.block_steps) <= 16
    assert merged.block_steps.sum() == 203
    torch.testing.assert_close(merged.exponents, whole.exponents, atol=1e-13, rtol=0)
    torch.testing.assert_close(merged.history[..., -1], whole.exponents, atol=1e-13, rtol=0)


def test_layers_of_a_deep_linear_network_are_maps_like_time_steps():
    network = MLP(
        [MLP.Config(width=5, depth=400, activation="identity")],
        input_size=5,
        output_size=1,
        generators=[generator_for("deep")],
        dtype=F64,
    )
    spectrum = lyapunov_spectrum(network, torch.zeros(1, 5, dtype=F64), warmup=0, t_on=1)
    half = (5 - np.arange(5)) / 2
    expected = 0.5 * (math.log(2) + psi(half)) - 0.5 * math.log(5)
    z = (spectrum.exponents[0].cpu().numpy() - expected) / (0.5 * np.sqrt(polygamma(1, half) / 400))
    assert np.abs(z).max() < 3.5


def test_random_state_grad_mode_and_precision_are_left_alone():
    network, x = lstm(), sequences(2, 20)
    before, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    network.train()
    first = lyapunov_spectrum(network, x)
    second = lyapunov_spectrum(network, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.exponents, second.exponents)
    assert torch.is_grad_enabled()
    assert network.training
    assert torch.get_float32_matmul_precision() == precision
    assert all(p.grad is None for p in network.parameters())


def test_table_has_a_row_for_every_exponent():
    table = lyapunov_spectrum(lstm(), sequences(2, 30), k=3).table()
    assert {len(column) for column in table.values()} == {6}
    assert table["member"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table["index"].tolist() == [1, 2, 3, 1, 2, 3]
    assert "member" not in lyapunov_spectrum(torch.eye(2, dtype=F64).expand(4, 2, 2)).table()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 13}, "k must be between 1 and the state's size 12, got 13"),
        ({"k": 0}, "k must be between 1"),
        ({"warmup": 20}, "warmup \\+ steps must fit"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 15, "warmup": 10}, "warmup \\+ steps must fit"),
        ({"t_on": 0}, "t_on must be at least 1"),
        ({"dtype": torch.float16}, "float32 or torch.float64"),
        ({"state": "cell"}, "'full' or 'hidden'"),
        ({"tangents": torch.eye(3)}, "tangents must be"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lyapunov_spectrum(lstm(), sequences(2, 20), **options)


def test_closed_loop_of_a_network():
    configs = [LSTM.Config(units=5)]
    network = LSTM(
        configs, input_size=3, output_size=3, generators=[generator_for("loop")], dtype=F64
    )
    x = sequences(2, 10)
    spectrum = lyapunov_spectrum(network, x, loop="closed", steps=400, warmup=200)
    assert (spectrum.loop, spectrum.steps, spectrum.warmup) == ("closed", 400, 200)
    assert spectrum.self_check_passed.all()
    assert {"autodiff", "log_det"} <= set(spectrum.self_check)
    # Left to itself this network comes to rest: eigenvalues of J there.
    J = list(network.closed_orbit(x, steps=900).maps())[-1].dense()[0, 0]
    moduli = torch.linalg.eigvals(J).abs().log().sort(descending=True).values
    torch.testing.assert_close(spectrum.exponents[0], moduli, atol=2e-2, rtol=0)
    with pytest.raises(ValueError, match="pass `steps`"):
        lyapunov_spectrum(network, x, loop="closed")
    with pytest.raises(UnsuitableError, match="outputs of the size of the inputs"):
        lyapunov_spectrum(lstm(), x, loop="closed", steps=5)
    with pytest.raises(ValueError, match="real inputs"):
        lyapunov_spectrum(network, torch.zeros(2, 5, dtype=torch.int64), loop="closed", steps=5)
    with pytest.raises(ValueError, match="needs something that turns states into inputs"):
        lyapunov_spectrum(torch.eye(2).expand(4, 2, 2), loop="closed", steps=2)


def test_inputs_and_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a network needs `inputs`"):
        lyapunov_spectrum(lstm())
    with pytest.raises(ValueError, match="none empty"):
        lyapunov_spectrum(lstm(), torch.zeros(2, 0, 3))
    with pytest.raises(ValueError, match="belong to networks"):
        lyapunov_spectrum(torch.eye(2).expand(4, 2, 2), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"\(T, D, D\)"):
        lyapunov_spectrum(torch.eye(2))
    with pytest.raises(ValueError, match="there are no maps"):
        lyapunov_spectrum([])
    tall = [torch.randn(3, 4, generator=generator_for("r")), torch.randn(5, 3)]
    with pytest.raises(ValueError, match="map 0 is 3 × 4"):
        lyapunov_spectrum(tall, k=2, warmup=0)
    assert lyapunov_spectrum(tall, k=2, warmup=0, steps=2).exponents.shape == (2,)
    with pytest.raises(ValueError, match="k must be at most the rows of every map"):
        lyapunov_spectrum(tall, warmup=0, steps=2)
