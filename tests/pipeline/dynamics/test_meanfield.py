"""Mean-field theory against published values, closed forms and another quadrature."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq

from pipeline.dynamics import quadrature
from pipeline.dynamics.meanfield import (
    GELU,
    LINEAR,
    RELU,
    SIGMOID,
    SILU,
    TANH,
    Activation,
    changed_weights_correlation,
    chi_1,
    chi_2,
    circle_geometry,
    correlation_length,
    correlation_map,
    correlation_slope,
    critical_sigma_b,
    critical_sigma_w,
    curvature_limit,
    curvature_recursion,
    fixed_correlation,
    fixed_point,
    largest_exponent,
    length_map,
    mean_exponent,
    metric_recursion,
    piecewise_linear,
    relu_direction_exponent,
)

SMOOTH = {"tanh": TANH, "sigmoid": SIGMOID, "gelu": GELU, "silu": SILU}


def by_trapezoid(f, q, dz=0.002):
    """∫Dz f(√q z) on a dense grid: the slow obvious way."""
    z = np.arange(-12, 12, dz)
    return float((f(math.sqrt(q) * z) * np.exp(-z * z / 2)).sum() * dz / math.sqrt(2 * math.pi))


@pytest.mark.parametrize(
    ("sigma_w", "sigma_b", "q", "chi", "exponent"),
    [
        (1.3, 0.3, 0.607046792, 0.939807429, -0.031040),
        (2.5, 0.3, 4.079123875, 1.585224765, 0.230363),
        (4.0, 0.3, 12.604149498, 2.367261036, 0.430867),
        (1.5, 0.0, 0.793354043, 1.139323225, 0.065217),
        (2.0, 0.5, 2.479710461, 1.272229554, 0.120385),
        (1.0, 0.05, 0.037122035, 0.934059070, 0.5 * math.log(0.934059070)),
    ],
)
def test_length_and_growth_at_the_fixed_point(sigma_w, sigma_b, q, chi, exponent):
    assert fixed_point(sigma_w, sigma_b) == pytest.approx(q, abs=6e-10)
    assert chi_1(sigma_w, sigma_b) == pytest.approx(chi, abs=6e-10)
    assert largest_exponent(sigma_w, sigma_b) == pytest.approx(exponent, abs=6e-7)


def by_iteration(sigma_w, sigma_b):
    """q* by iterating V, every integral on a dense grid: nothing of ours."""
    q = 1.0
    for _ in range(2000):
        after = sigma_w**2 * by_trapezoid(lambda x: np.tanh(x) ** 2, q, 0.01) + sigma_b**2
        if abs(after - q) < 1e-13:
            break
        q = after
    return q


@pytest.mark.parametrize("sigma_w", [1.3, 2.5, 4.0])
def test_published_networks_by_dense_integration_alone(sigma_w):
    q = by_iteration(sigma_w, 0.3)
    growth = sigma_w**2 * by_trapezoid(lambda x: np.cosh(x) ** -4.0, q, 0.01)
    assert fixed_point(sigma_w, 0.3) == pytest.approx(q, abs=1e-10)
    assert chi_1(sigma_w, 0.3) == pytest.approx(growth, abs=1e-10)


@pytest.mark.parametrize("sigma_b", [0.1, 0.3, 1.0])
def test_critical_line_by_dense_integration_alone(sigma_b):
    def excess(sigma_w):
        q = by_iteration(sigma_w, sigma_b)
        return sigma_w**2 * by_trapezoid(lambda x: np.cosh(x) ** -4.0, q, 0.01) - 1

    expected = brentq(excess, 1.0, 2.5, xtol=1e-11)
    assert critical_sigma_w(sigma_b) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("g", "q", "largest", "mean"),
    [
        (1.2, 0.249513, 0.016476, -0.543100),
        (1.5, 0.793354, 0.065217, -0.714346),
        (2.0, 2.121474, 0.154724, -1.149023),
        (3.0, 6.305391, 0.310249, -2.272805),
        (5.0, 20.699367, 0.532428, -4.906771),
        (10.0, 91.705131, 0.856435, -12.160966),
    ],
)
def test_autonomous_tanh_network(g, q, largest, mean):
    assert fixed_point(g, 0.0) == pytest.approx(q, abs=6e-7)
    assert largest_exponent(g) == pytest.approx(largest, abs=6e-7)
    assert mean_exponent(g) == pytest.approx(mean, abs=6e-7)
    assert mean_exponent(g, weights="orthogonal") == pytest.approx(mean + 0.5, abs=6e-7)


def test_tanh_network_with_white_input():
    """Vogt et al. 2022, fig. 1: silenced by input at g = 2 from σ_x = 1.279 on."""
    found = [largest_exponent(g, 1.0) for g in (0.5, 2.0, 10.0)]
    assert found == pytest.approx([-1.096, 0.046, 0.854], abs=6e-4)
    assert critical_sigma_b(2.0) == pytest.approx(1.279, abs=6e-4)
    assert largest_exponent(2.0, critical_sigma_b(2.0)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("sigma_b", "sigma_w"),
    [(0.05, 1.1225390), (0.1, 1.1934007), (0.3, 1.3955840), (0.5, 1.5496739), (1.0, 1.8555891)],
)
def test_line_between_order_and_chaos(sigma_b, sigma_w):
    assert critical_sigma_w(sigma_b) == pytest.approx(sigma_w, abs=6e-8)
    assert critical_sigma_b(critical_sigma_w(sigma_b)) == pytest.approx(sigma_b, rel=1e-9)
    assert chi_1(critical_sigma_w(sigma_b), sigma_b) == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize(
    ("sigma_w", "chi", "correlation"),
    [(1.3, 0.5435, 1.0), (2.5, 1.1960, 0.122), (4.0, 1.8572, 0.0297)],
)
def test_curvature_source_and_fixed_correlation(sigma_w, chi, correlation):
    assert chi_2(sigma_w, 0.3) == pytest.approx(chi, abs=6e-5)
    c = fixed_correlation(sigma_w, 0.3)
    assert c == pytest.approx(correlation, abs=6e-4)
    assert correlation_map(c, sigma_w, 0.3) == pytest.approx(c, abs=1e-10)


def test_gauss_hermite_would_miss_by_the_amounts_reported():
    """The trap: 101 nodes overstate χ_1 by 4.6 % and understate χ_2 by 32 % at σ_w = 4."""
    z, weight = np.polynomial.hermite_e.hermegauss(101)
    x = math.sqrt(fixed_point(4.0, 0.3)) * z
    rule_1 = 16 * (weight @ TANH.slope(x) ** 2) / math.sqrt(2 * math.pi)
    rule_2 = 16 * (weight @ TANH.curvature(x) ** 2) / math.sqrt(2 * math.pi)
    assert rule_1 / chi_1(4.0, 0.3) == pytest.approx(1.046, abs=1e-3)
    assert rule_2 / chi_2(4.0, 0.3) == pytest.approx(0.68, abs=1e-2)


@pytest.mark.parametrize("q", [1e-6, 0.1, 1.0, 30.0, 900.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_means_agree_with_a_dense_trapezoid(name, q):
    phi = SMOOTH[name]
    assert length_map(q, 1, 0, activation=phi) == pytest.approx(
        by_trapezoid(lambda x: phi.value(x) ** 2, q), rel=1e-10
    )
    assert chi_1(1, 0, q=q, activation=phi) == pytest.approx(
        by_trapezoid(lambda x: phi.slope(x) ** 2, q), rel=1e-10
    )
    assert chi_2(1, 0, q=q, activation=phi) == pytest.approx(
        by_trapezoid(lambda x: phi.curvature(x) ** 2, q), rel=1e-10
    )


def test_kinks_and_poles_that_nobody_announced_are_found():
    """∫Dz |√q z − m| and ∫Dz log|√q z − m|, against scipy told where to look."""
    for q, m in [(1.0, 0.7), (9.0, -2.3), (400.0, 31.0)]:
        kinked = Activation(lambda x, m=m: np.abs(x - m), np.ones_like, centres=())
        mean_of_square = q + m * m
        assert length_map(q, 1, 0, activation=kinked) == pytest.approx(mean_of_square, rel=1e-12)
        folded = quadrature.gaussian_mean(
            lambda x, _, m=m: np.abs(x - m), np.zeros(1), math.sqrt(q), centres=()
        )
        s = m / math.sqrt(q)
        expected = math.sqrt(2 * q / math.pi) * math.exp(-s * s / 2) + m * math.erf(s / 2**0.5)
        assert float(folded[0]) == pytest.approx(expected, rel=1e-11)
    q = 1.7
    z = 12.0
    pole = brentq(lambda x: float(GELU.slope(np.array(x))), -2, 0) / math.sqrt(q)

    def log_slope(z):
        slope = float(GELU.slope(np.array(math.sqrt(q) * z)))
        return math.log(abs(slope)) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    pieces = [(-z, pole - 1), (pole - 1, pole), (pole, pole + 1), (pole + 1, z)]
    expected = sum(quad(log_slope, a, b, epsabs=1e-12, limit=400)[0] for a, b in pieces)
    got = mean_exponent(1.0, q=q, activation=GELU) + 0.5
    assert got == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("q", [1e4, 1e8, 1e14])
def test_long_signals_see_a_step(q):
    """1 − ∫Dz tanh² = ∫Dz sech²(√q z) → 2 p(0)/√q."""
    expected = 2 / math.sqrt(2 * math.pi * q)
    assert mean_of_sech2(q) == pytest.approx(expected, rel=1 / q)
    assert 1 - float(length_map(q, 1, 0)) == pytest.approx(expected, rel=1 / q, abs=1e-14)


def mean_of_sech2(q):
    f = quadrature.gaussian_mean(lambda x, _: TANH.slope(x), np.zeros(1), math.sqrt(q))
    return float(f[0])


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_of_activations(name):
    phi = SMOOTH[name]
    x = np.linspace(-6, 6, 41)
    h = 1e-5
    slope = (phi.value(x + h) - phi.value(x - h)) / (2 * h)
    curvature = (phi.slope(x + h) - phi.slope(x - h)) / (2 * h)
    # Central differences: h² truncation and ε/h rounding are both near 1e-11 … 1e-10.
    np.testing.assert_allclose(phi.slope(x), slope, atol=1e-9)
    np.testing.assert_allclose(phi.curvature(x), curvature, atol=1e-9)
    if phi.log_slope is not None:
        np.testing.assert_allclose(phi.log_slope(x), np.log(phi.slope(x)), atol=1e-12)


def test_saturated_slopes_neither_overflow_nor_vanish_in_the_logarithm():
    assert TANH.slope(np.array([-20.0]))[0] == pytest.approx(4 * math.exp(-40), rel=1e-12, abs=0)
    assert TANH.slope(np.array([1e4]))[0] == 0
    assert TANH.log_slope(np.array([-1e4]))[0] == pytest.approx(math.log(4) - 2e4)
    assert mean_exponent(1.0, 300.0) == pytest.approx(
        -0.5 + math.log(4) - 2 * 300 * math.sqrt(2 / math.pi), rel=1e-4
    )


@settings(deadline=None, max_examples=25)
@given(
    below=st.floats(-1, 1).map(lambda x: round(x, 3)),
    c=st.floats(-1, 1),
    q=st.floats(0.01, 50),
)
def test_closed_forms_of_piecewise_linear_networks(below, c, q):
    closed = piecewise_linear(below, 1.0)
    numeric = Activation(closed.value, closed.slope)
    for function in (length_map_at, chi_1_at, correlation_at, slope_at):
        assert function(closed, q, c) == pytest.approx(function(numeric, q, c), abs=1e-8 * q + 1e-9)


def length_map_at(phi, q, c):
    return float(length_map(q, 1.3, 0.2, activation=phi))


def chi_1_at(phi, q, c):
    return chi_1(1.3, 0.2, q=q, activation=phi)


def correlation_at(phi, q, c):
    return float(correlation_map(c, 1.3, 0.2, q=q, activation=phi))


def slope_at(phi, q, c):
    return correlation_slope(c, 1.3, 0.2, q=q, activation=phi)


def test_linear_and_relu_by_hand():
    assert fixed_point(0.5, 0.3, activation=LINEAR) == pytest.approx(0.09 / 0.75, rel=1e-12)
    assert fixed_point(1.0, 0.3, activation=RELU) == pytest.approx(0.18, rel=1e-12)
    assert chi_1(1.2, 0.3, activation=RELU) == pytest.approx(0.72, rel=1e-12)
    assert critical_sigma_w(0.7, activation=RELU) == pytest.approx(math.sqrt(2), rel=1e-12)
    assert largest_exponent(math.sqrt(2), q=1.0, activation=RELU) == pytest.approx(0, abs=1e-12)
    assert correlation_map(0.0, math.sqrt(2), 0.0, q=3.0, activation=RELU) == pytest.approx(
        1 / math.pi, rel=1e-12
    )
    assert mean_exponent(1.2, 0.3, activation=RELU) == -math.inf
    assert mean_exponent(0.5, 0.3, activation=LINEAR) == pytest.approx(math.log(0.5) - 0.5)
    assert chi_2(0.5, 0.3, activation=LINEAR) == 0


@pytest.mark.parametrize("q", [0.3, 4.0, 40.0])
@pytest.mark.parametrize("c", [-0.97, -0.3, 0.0, 1e-6, 0.4, 0.99])
def test_correlation_map_agrees_with_adaptive_quadrature_over_the_plane(c, q):
    def inner(z):
        def f(y):
            u = math.sqrt(q) * (c * z + math.sqrt(1 - c * c) * y)
            return math.tanh(u) * math.exp(-y * y / 2)

        kink = -c * z / math.sqrt(1 - c * c)
        return quad(f, -12, 12, points=[min(max(kink, -12), 12), 0], epsabs=1e-13, limit=500)[0]

    z = np.linspace(-9, 9, 1201)
    weight = np.exp(-z * z / 2) / (2 * math.pi)
    mean = (np.tanh(math.sqrt(q) * z) * weight * [inner(x) for x in z]).sum() * (z[1] - z[0])
    got = float(correlation_map(c, 1.0, 0.0, q=q)) * float(length_map(q, 1.0, 0.0))
    assert got == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize(("phi", "sigma_w"), [(TANH, 1.8), (GELU, 1.3)], ids=["tanh", "gelu"])
def test_derivatives_of_the_correlation_map(phi, sigma_w):
    """C′(c) by differences, C′(1) = χ_1, and C″(1) = q* χ_2."""
    q = fixed_point(sigma_w, 0.3, activation=phi)

    def C(c):
        return float(correlation_map(c, sigma_w, 0.3, q=q, activation=phi))

    h = 1e-4
    for c in (-0.6, 0.0, 0.7):
        slope = correlation_slope(c, sigma_w, 0.3, q=q, activation=phi)
        assert (C(c + h) - C(c - h)) / (2 * h) == pytest.approx(slope, abs=1e-7)
    growth = chi_1(sigma_w, 0.3, q=q, activation=phi)
    assert correlation_slope(1.0, sigma_w, 0.3, q=q, activation=phi) == growth
    near = correlation_slope(1 - h, sigma_w, 0.3, q=q, activation=phi)
    source = q * chi_2(sigma_w, 0.3, q=q, activation=phi)
    assert (growth - near) / h == pytest.approx(source, rel=2e-3)  # one-sided: an error of order h


def test_fixed_correlation_near_the_critical_line():
    """1 − c* → 2(χ_1 − 1)/C″(1), without cancellation, and exactly 1 on the line."""
    critical = critical_sigma_w(0.3)
    assert fixed_correlation(critical, 0.3) == 1.0
    assert correlation_length(critical, 0.3) == math.inf
    for excess in (1e-4, 1e-6, 1e-8):
        sigma_w = critical + excess
        q = fixed_point(sigma_w, 0.3)
        expected = 2 * (chi_1(sigma_w, 0.3, q=q) - 1) / (q * chi_2(sigma_w, 0.3, q=q))
        # The next order is of relative size 1 − c*, a few times the excess.
        assert 1 - fixed_correlation(sigma_w, 0.3, q=q) == pytest.approx(
            expected, rel=100 * excess + 1e-6
        )


@pytest.mark.parametrize(("sigma_w", "sigma_b"), [(1.2, 0.3), (2.5, 0.3), (2.0, 0.0)])
def test_correlations_converge_at_the_rate_of_the_correlation_length(sigma_w, sigma_b):
    q = fixed_point(sigma_w, sigma_b)
    target = fixed_correlation(sigma_w, sigma_b, q=q)
    c = target + 1e-4 * (-1 if target == 1 else 1)
    before = c - target
    for _ in range(4):
        c = float(correlation_map(c, sigma_w, sigma_b, q=q))
    rate = math.exp(-4 / correlation_length(sigma_w, sigma_b, q=q))
    assert (c - target) / before == pytest.approx(rate, rel=2e-3)  # off c* by 1e-4: same order


@settings(deadline=None, max_examples=30)
@given(sigma_w=st.floats(0.1, 6), sigma_b=st.floats(0.01, 4))
def test_fixed_point_is_fixed_stable_and_on_the_right_side_of_the_line(sigma_w, sigma_b):
    q = fixed_point(sigma_w, sigma_b)
    assert float(length_map(q, sigma_w, sigma_b)) == pytest.approx(q, rel=1e-11)
    assert abs(length_map(1.01 * q, sigma_w, sigma_b) - q) < 0.01 * q
    gap = sigma_w - critical_sigma_w(sigma_b)
    assert abs(gap) < 1e-9 or (chi_1(sigma_w, sigma_b, q=q) > 1) == (gap > 0)


def test_lengths_converge_within_six_layers():
    for sigma_w in (1.3, 2.5, 4.0):
        start = np.array([0.1, 0.5, 2, 8]) * fixed_point(sigma_w, 0.3)
        q = start
        for _ in range(6):
            q = length_map(q, sigma_w, 0.3)
        # Poole et al.: 1 % in 4 to 6 layers from lengths of this order, more slowly near the line.
        np.testing.assert_allclose(q, fixed_point(sigma_w, 0.3), rtol=0.06)


@pytest.mark.parametrize("sigma_w", [0.3, 0.999, 1.0])
def test_signals_vanish_without_bias_below_the_transition(sigma_w):
    assert fixed_point(sigma_w, 0.0) == 0.0
    assert chi_1(sigma_w, 0.0) == pytest.approx(sigma_w**2)
    with pytest.raises(ValueError, match="signals vanish"):
        fixed_correlation(sigma_w, 0.0)


def test_just_above_the_transition_lengths_are_small_but_there():
    """V(q) = σ_w²(q − 2q² + …), so that q* → (σ_w² − 1)/2."""
    assert fixed_point(1 + 1e-6, 0.0) == pytest.approx(1e-6, rel=1e-5)


def test_storm_criterion_is_a_half_of_the_logarithm():
    """G N σ² = χ_1 at σ_w² = 4: half its logarithm is 0.1547, not 0.309."""
    assert largest_exponent(2.0) == pytest.approx(0.1547, abs=6e-5)
    assert relu_direction_exponent(16) == pytest.approx(-0.08820, abs=6e-6)
    assert relu_direction_exponent(64) == pytest.approx(-0.02005, abs=6e-6)


def test_recursions_reach_their_fixed_point():
    q = fixed_point(4.0, 0.3)
    growth, source = chi_1(4.0, 0.3, q=q), chi_2(4.0, 0.3, q=q)
    limit = (3 * source / growth**2) / (1 - 1 / growth)
    assert limit == pytest.approx(1.721, abs=6e-4)
    assert curvature_recursion(60, growth, source, 1 / q)[-1] == pytest.approx(limit, rel=1e-12)
    q = fixed_point(2.5, 0.3)
    growth, source = chi_1(2.5, 0.3, q=q), chi_2(2.5, 0.3, q=q)
    assert curvature_recursion(90, growth, source, 1 / q)[-1] == pytest.approx(3.868, abs=6e-4)
    assert metric_recursion(5, growth, q)[-1] == pytest.approx(q * growth**4)


def test_curvature_tends_to_its_limit_in_chaos_alone():
    for growth, source in [(1.2, 0.3), (2.0, 4.0), (5.0, 1.0)]:
        limit = curvature_limit(growth, source)
        assert curvature_recursion(400, growth, source, 0.7)[-1] == pytest.approx(limit, rel=1e-12)
    assert curvature_limit(1.0, 0.5) == curvature_limit(0.9, 0.5) == math.inf


def test_changes_of_weights_at_their_ends():
    q = fixed_point(2.5, 0.3)
    assert changed_weights_correlation(0.0, 2.5, 0.3) == pytest.approx(1.0, rel=1e-12)
    assert changed_weights_correlation(1.0, 2.5, 0.3) == pytest.approx(0.09 / q, rel=1e-12)
    unchanged = float(correlation_map(0.4, 2.5, 0.3))
    assert changed_weights_correlation(0.0, 2.5, 0.3, c=0.4) == pytest.approx(unchanged)
    assert changed_weights_correlation(0.6, 0.5, 0.3, activation=LINEAR) == pytest.approx(
        0.8 * 0.25 + 0.75  # by hand: q* = σ_b²/(1 − σ_w²), so that the bias is 3/4 of it
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed_point(-1.0, 0.3), "σ_w must be"),
        (lambda: fixed_point(1.0, math.nan), "σ_b must be"),
        (lambda: length_map([-1.0], 1.0, 0.0), "q is a mean square"),
        (lambda: chi_1(1.0, 0.0, q=math.inf), "q is a mean square"),
        (lambda: correlation_map([0.0, 1.1], 2.0, 0.1), "within −1 … 1"),
        (lambda: correlation_slope(math.nan, 2.0, 0.1), "within −1 … 1"),
        (lambda: correlation_map(0.5, 0.5, 0.0), "signals vanish"),
        (lambda: fixed_point(1.5, 0.1, activation=RELU), "grow without end"),
        (lambda: fixed_point(1.0, 0.1, activation=LINEAR), "grow without end"),
        (lambda: fixed_point(math.sqrt(2), 0.0, activation=RELU), "every length"),
        (lambda: chi_2(1.0, 0.3, activation=RELU), "gives no curvature"),
        (lambda: critical_sigma_b(0.9), "no σ_b is critical"),
        (lambda: critical_sigma_b(1.5, activation=RELU), "does not matter"),
        (lambda: critical_sigma_w(0.1, activation=piecewise_linear(0, 0)), "φ′ = 0 everywhere"),
        (lambda: piecewise_linear(math.inf, 1), "must be finite"),
        (lambda: mean_exponent(2.0, weights="uniform"), "'gaussian' or 'orthogonal'"),
        (lambda: relu_direction_exponent(0), "width must be"),
        (lambda: metric_recursion(0, 1.0, 1.0), "num_layers"),
        (lambda: curvature_recursion(3, 0.0, 1.0, 1.0), "χ_1 > 0"),
        (lambda: curvature_recursion(3, 1.0, -1.0, 1.0), "chi_2 must be"),
        (lambda: curvature_limit(0.0, 1.0), "χ_1 > 0"),
        (lambda: curvature_limit(1.0, math.inf), "chi_2 must be"),
        (lambda: changed_weights_correlation(1.1, 2.0, 0.1), "Δ must be within 0 … 1"),
        (lambda: changed_weights_correlation(0.5, 0.5, 0.0), "signals vanish"),
        (lambda: circle_geometry(3, 0.5, 0.0), "no radius"),
        (lambda: fixed_correlation(2.0, 0.0, q=1.0, activation=RELU), "must be a fixed point"),
    ],
)
def test_errors_name_the_law(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_functions_that_are_not_finite_are_refused():
    broken = Activation(lambda x: np.where(x > 3, np.nan, x), np.ones_like)
    with pytest.raises(ArithmeticError, match="not finite"):
        length_map(4.0, 1.0, 0.0, activation=broken)


def test_edges_of_the_domain():
    assert largest_exponent(0.0, 0.3) == -math.inf
    assert mean_exponent(0.0, 0.3) == -math.inf
    assert fixed_point(0.0, 0.3) == pytest.approx(0.09, rel=1e-12)
    assert critical_sigma_w(0.0) == 1.0
    assert critical_sigma_b(1.0) == 0.0
    assert correlation_length(0.0, 0.3) == 0.0
    assert length_map(np.ones((2, 3)), 1.0, 0.0).shape == (2, 3)
