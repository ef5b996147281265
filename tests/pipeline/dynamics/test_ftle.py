"""Largest finite-time exponents against the singular values of explicit products."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dynamics import ftle
from pipeline.dynamics.ftle import finite_time_exponents, ftle_field, max_ftle
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.mlp import MLP

F64 = torch.float64


def mlp(count=2, *, inputs=3, width=12, depth=4, dtype=F64, scale=1.5, **settings):
    config = MLP.Config(width=width, depth=depth, init_scale=scale, bias_scale=0.2, **settings)
    generators = [generator_for("ftle", n) for n in range(count)]
    return MLP(
        [config] * count, input_size=inputs, output_size=2, generators=generators, dtype=dtype
    )


def vectors(inputs, count=9):
    return torch.randn((count, inputs), generator=generator_for("v"), dtype=F64)


def explicit(network, x):
    """J_l of every layer by dense products, and their SVDs."""
    product, found = None, []
    for step in network.orbit(x).maps():
        product = step.dense() if product is None else step.dense() @ product
        found.append(torch.linalg.svd(product))
    return found


@pytest.mark.parametrize("method", ["product", "sweeps"])
@pytest.mark.parametrize(("inputs", "width"), [(1, 6), (2, 6), (3, 6), (6, 6), (40, 6), (40, 1)])
@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_equals_the_largest_singular_value(inputs, width, activation, method):
    network = mlp(inputs=inputs, width=width, activation=activation)
    x = vectors(inputs)
    every = ftle_field(network, x, method=method)
    assert every.exponents.shape == (2, 4, 9)
    assert every.directions.shape == (2, 4, 9, inputs)
    if method == "product":
        assert torch.equal(max_ftle(network, x), every.exponents)
    for layer, svd in enumerate(explicit(network, x), start=1):
        expected = svd.S[..., 0].log() / layer
        single = ftle_field(network, x, layer=layer, method=method)
        overlap = (single.directions * svd.Vh[..., 0, :]).sum(-1).abs()
        torch.testing.assert_close(single.exponents, expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(every.exponents[:, layer - 1], expected, atol=1e-10, rtol=0)
        # Directions settle like the square root of exponents, over the gap of σ_1 and σ_2.
        torch.testing.assert_close(overlap, torch.ones_like(overlap), atol=1e-7, rtol=0)
        length = torch.linalg.vector_norm(every.directions[:, layer - 1], dim=-1)
        torch.testing.assert_close(length, torch.ones_like(length), atol=1e-12, rtol=0)


@settings(max_examples=25)
@given(
    inputs=st.integers(1, 7),
    width=st.integers(1, 7),
    depth=st.integers(1, 5),
    members=st.integers(1, 3),
    count=st.integers(1, 5),
    activation=st.sampled_from(["tanh", "relu", "gelu", "silu", "sigmoid", "identity"]),
    method=st.sampled_from(["product", "sweeps"]),
    single=st.booleans(),
    seed=st.integers(0, 50),
)
def test_fields_are_those_of_explicit_products(
    inputs, width, depth, members, count, activation, method, single, seed
):
    """Any sizes, members alone or in company, inputs in any order, weights of either precision."""
    shape = {"inputs": inputs, "width": width, "depth": depth, "activation": activation}
    dtype = torch.float32 if single else F64
    network = mlp(members, dtype=dtype, **shape)
    x = torch.randn((count, inputs), generator=generator_for("field", seed), dtype=F64)
    found = ftle_field(network, x, method=method)
    assert found.exponents.dtype == F64
    for layer, svd in enumerate(explicit(network, x)):
        sigma = svd.S[..., 0]
        # Dead layers are exactly −∞ with one and rounding with the other.
        alive = sigma > 1e-300
        ours = found.exponents[:, layer]
        torch.testing.assert_close(ours[alive], sigma[alive].log() / (layer + 1), atol=1e-9, rtol=0)
        assert torch.isneginf(ours[~alive]).all()
    order = torch.randperm(count, generator=generator_for("order", seed))
    shuffled = ftle_field(network, x[order], method=method).exponents
    torch.testing.assert_close(shuffled, found.exponents[..., order], atol=1e-10, rtol=0)
    alone = ftle_field(mlp(1, dtype=dtype, **shape), x[:1], layer=depth, method=method).exponents
    torch.testing.assert_close(alone[0], found.exponents[0, -1, :1], atol=1e-10, rtol=0)


def test_sweeps_find_the_largest_of_many_directions():
    """From 256 directions on they are what "auto" takes."""
    network, x = mlp(inputs=260, width=260, depth=3), vectors(260, 2)
    found = ftle_field(network, x, layer=3)
    *_, svd = explicit(network, x)
    torch.testing.assert_close(found.exponents, svd.S[..., 0].log() / 3, atol=1e-10, rtol=0)
    overlap = (found.directions * svd.Vh[..., 0, :]).sum(-1).abs()
    # σ_1 and σ_2 of so wide a network nearly coincide.
    assert (overlap > 0.999).all()


def test_a_grid_keeps_its_shape():
    network = mlp(inputs=2)
    axis = torch.linspace(-2, 2, 7, dtype=F64)
    grid = torch.stack(torch.meshgrid(axis, axis[:5], indexing="xy"), dim=-1)
    field = ftle_field(network, grid)
    assert field.exponents.shape == (2, 4, 5, 7)
    assert field.directions.shape == (2, 4, 5, 7, 2)
    flat = ftle_field(network, grid.reshape(-1, 2), layer=3)
    torch.testing.assert_close(field.exponents[:, 2].flatten(1), flat.exponents)
    assert ftle_field(network, grid, layer=3, directions=False).directions is None
    # The direction is that of steepest stretching: no other one grows more.
    others = torch.linspace(0, math.pi, 181, dtype=F64)
    u = torch.stack([others.cos(), others.sin()])
    *_, last = explicit(network, grid.reshape(-1, 2))
    product = last.U[..., :2] @ torch.diag_embed(last.S) @ last.Vh
    largest = torch.linalg.vector_norm(product @ u, dim=-2).amax(-1).log() / 4
    assert (largest <= field.exponents[:, 3].flatten(1) + 1e-12).all()
    torch.testing.assert_close(largest, field.exponents[:, 3].flatten(1), atol=1e-4, rtol=0)


class Residual:
    """x ↦ x + tanh(W x), through a bottleneck at the end: an orbit of maps without transposes."""

    num_members = 1

    def __init__(self, x, size, depth):
        g = generator_for("residual")
        widths = [size] * depth + [2]
        self.weights = [
            torch.randn(b, a, generator=g, dtype=F64) / a**0.5
            for a, b in itertools.pairwise(widths)
        ]
        self.x, self.num_sequences, self.dtype, self.device = x, len(x), F64, x.device
        self.num_steps, self.tangent_size = depth, size

    def orbit(self, inputs, *, dtype):
        return Residual(inputs.to(dtype), self.tangent_size, self.num_steps)

    def maps(self):
        x = self.x
        for W in self.weights:
            skip = torch.eye(W.shape[1], dtype=F64) * (W.shape[0] == W.shape[1])
            slope = torch.cosh(x @ W.T).pow(-2)
            J = (slope.unsqueeze(-1) * W + (skip if skip.any() else 0)).unsqueeze(0)
            yield lambda Q, J=J: J @ Q
            x = torch.tanh(x @ W.T) + (x if W.shape[0] == W.shape[1] else 0)


@pytest.mark.parametrize("method", ["product", "sweeps"])
def test_any_feed_forward_orbit_will_do(method):
    x = vectors(5, 6)
    network = Residual(x, 5, 4)
    field = ftle_field(network, x, method=method)
    product, eye = None, torch.eye(5, dtype=F64).expand(1, 6, 5, 5)
    for layer, step in enumerate(network.orbit(x, dtype=F64).maps()):
        product = step(eye if product is None else product)
        svd = torch.linalg.svd(product)
        expected = svd.S[..., 0].log() / (layer + 1)
        torch.testing.assert_close(field.exponents[:, layer], expected, atol=1e-10, rtol=0)
        overlap = (field.directions[:, layer] * svd.Vh[..., 0, :]).sum(-1).abs()
        torch.testing.assert_close(overlap, torch.ones_like(overlap), atol=1e-7, rtol=0)


def test_small_singular_values_keep_their_digits():
    """Forty layers, σ over ninety powers of e: an SVD of the product would lose most of them."""
    network = mlp(1, inputs=6, width=6, depth=40, scale=0.7)
    x = vectors(6, 3)
    found = finite_time_exponents(network, x, k=6)
    log_det = sum(torch.linalg.slogdet(J.dense()).logabsdet for J in network.orbit(x).maps())
    assert found[..., 0].sub(found[..., 5]).min() * 40 > math.log(1e16)
    torch.testing.assert_close(40 * found.sum(-1), log_det, atol=1e-8, rtol=0)
    assert (found.diff(dim=-1) <= 1e-12).all()
    torch.testing.assert_close(found[..., 0], max_ftle(network, x, 40), atol=1e-10, rtol=0)
    few = finite_time_exponents(network, x, k=2)
    torch.testing.assert_close(few, found[..., :2], atol=1e-9, rtol=0)
    # In a product short enough for an SVD, all of them.
    *_, last = explicit(mlp(1, inputs=6, width=6, depth=3, scale=0.7), x)
    short = finite_time_exponents(mlp(1, inputs=6, width=6, depth=3, scale=0.7), x, k=6)
    torch.testing.assert_close(3 * short, last.S.log(), atol=1e-8, rtol=0)


def test_an_input_stops_on_its_own_in_sweeps():
    network, x = mlp(1, inputs=12, depth=6), vectors(12, 8)
    together = finite_time_exponents(network, x, k=2)
    for b in range(8):
        alone = finite_time_exponents(network, x[b : b + 1], k=2)
        torch.testing.assert_close(alone[:, 0], together[:, b], atol=1e-13, rtol=0)


def test_random_directions_in_a_he_relu_network():
    """λ = ½ E[ln(2χ²_K/N) | K ≥ 1], K ~ Bin(N, ½)."""
    N, depth = 16, 60
    psi = torch.digamma
    K = torch.arange(1, N + 1, dtype=F64)
    log_weight = torch.lgamma(torch.tensor(N + 1.0)) - torch.lgamma(K + 1)
    log_weight = log_weight - torch.lgamma(N - K + 1) - N * math.log(2)
    share = log_weight.exp() / log_weight.exp().sum()
    expected = 0.5 * (share * (math.log(2 / N) + psi(K / 2) + math.log(2))).sum().item()
    assert expected == pytest.approx(-0.08820, abs=1e-5)
    config = MLP.Config(width=N, depth=depth, activation="relu", init_scale=2**0.5)
    networks = MLP(
        [config] * 200,
        input_size=N,
        output_size=1,
        generators=[generator_for("he", n) for n in range(200)],
        dtype=F64,
    )
    x = vectors(N, 1)
    growth = lyapunov_spectrum(networks, x, k=1, warmup=0, t_on=1).per_sequence[:, 0, 0]
    alive = growth[torch.isfinite(growth)]
    error = alive.std() / len(alive) ** 0.5
    assert abs(alive.mean() - expected) < 3.5 * error, (alive.mean(), error)
    assert error < 0.01
    assert (max_ftle(networks, x, depth)[:, 0] >= growth - 1e-12).all()


@pytest.mark.parametrize(("depth", "largest"), [(10, 0.3436), (100, 0.1722)])
def test_mean_field_of_a_tanh_network(depth, largest):
    """With σ_w² = 4 random directions grow by ½ ln χ_1 = .1547 a layer; the
    largest singular value lies above it by O(ln N / L)."""
    config = MLP.Config(width=100, depth=depth, init_scale=2.0)
    networks = MLP(
        [config] * 12,
        input_size=100,
        output_size=1,
        generators=[generator_for("storm", n) for n in range(12)],
        dtype=F64,
    )
    # Mean square 2.1215/4 of the activations at the fixed point q* = 2.1215 of the length map.
    x = (2.121474 / 4) ** 0.5 * vectors(100, 2)
    found = max_ftle(networks, x, depth).mean()
    growth = lyapunov_spectrum(networks, x, k=1, warmup=0, t_on=1).per_sequence[..., 0].mean(1)
    error = growth.std() / 12**0.5
    # The theory is that of N → ∞; at N = 100 it is too large by about 0.01.
    assert abs(growth.mean() - 0.154724) < 0.015 + 3 * error
    # Networks differ by .007 (L = 100) to .016 (L = 10) in a standard deviation, inputs as well.
    assert found.item() == pytest.approx(largest, abs=0.016)
    assert found > growth.mean() + 0.01


def test_one_qr_sweep_does_not():
    """It gives the growth of one direction, less than the largest singular value."""
    network, x = mlp(1, inputs=32, width=32, depth=10), vectors(32, 20)
    exact = max_ftle(network, x, 10)
    sweep = lyapunov_spectrum(network, x, k=1, warmup=0, t_on=1)
    lost = exact - sweep.per_sequence[..., 0]
    assert (lost > 0).all()
    assert lost.mean() > 0.05


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_long_products_neither_overflow_nor_vanish(scale):
    network = mlp(1, depth=150, activation="identity", scale=scale)
    unscaled = mlp(1, depth=150, activation="identity", scale=1.0)
    x = vectors(3)
    expected = max_ftle(unscaled, x, 150) + math.log(scale)
    torch.testing.assert_close(max_ftle(network, x, 150), expected, atol=1e-10, rtol=0)


def test_float32_networks_are_measured_in_float64():
    x = vectors(3)
    single = mlp(dtype=torch.float32)
    double = mlp()
    double.load_state_dict({k: v.double() for k, v in single.state_dict().items()})
    torch.testing.assert_close(max_ftle(single, x), max_ftle(double, x), atol=1e-14, rtol=0)


def test_dead_units_and_nan_weights():
    network, x = mlp(3, activation="relu"), vectors(3)
    healthy = max_ftle(network, x)
    with torch.no_grad():
        network.bias_1[0].fill_(-1e6)
        network.weight_2[1, 0, 0] = float("nan")
    field = max_ftle(network, x)
    assert torch.isneginf(field[0, 1:]).all()
    assert field[1, 2:].isnan().all()
    assert torch.equal(field[2], healthy[2])
    for method in ("product", "sweeps"):
        again = ftle_field(network, x, method=method)
        assert torch.isneginf(again.exponents[0, 1:]).all()
        assert again.exponents[1, 2:].isnan().all()
        assert again.directions[:2, 2:].isnan().all()
        torch.testing.assert_close(again.exponents[2], healthy[2], atol=1e-10, rtol=0)


def test_chunks_do_not_show(monkeypatch):
    network, x = mlp(inputs=20), vectors(20, 50)
    whole = ftle_field(network, x)
    monkeypatch.setattr(ftle, "LARGEST_CHUNK", 2 * 20 * 12 * 7)
    again = ftle_field(network, x)
    torch.testing.assert_close(again.exponents, whole.exponents, atol=1e-13, rtol=0)
    overlap = (again.directions * whole.directions).sum(-1).abs()
    torch.testing.assert_close(overlap, torch.ones_like(overlap), atol=1e-12, rtol=0)


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="layer must be between 1 and 4, got 5"):
        max_ftle(mlp(), vectors(3), 5)
    with pytest.raises(ValueError, match=r"inputs must be \(B, I\)"):
        max_ftle(mlp(), torch.zeros(3))
    with pytest.raises(ValueError, match=r"not empty, got \(0, 3\)"):
        max_ftle(mlp(), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="method must be"):
        ftle_field(mlp(), vectors(3), method="svd")
    with pytest.raises(ValueError, match="k must be between 1 and the fewest rows of any map, 3"):
        finite_time_exponents(mlp(), vectors(3), k=4)
    with pytest.raises(ValueError, match="layer must be between 1 and 4, got 0"):
        finite_time_exponents(mlp(), vectors(3), k=1, layer=0)
