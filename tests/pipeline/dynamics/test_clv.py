"""Covariant vectors of maps with known answers, their laws, and the index that others got wrong."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dynamics import clv
from pipeline.dynamics.clv import covariant_vectors
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.gru import GRU
from tasks.networks.lstm import LSTM
from tasks.networks.rnn import RNN

F64 = torch.float64


def henon_jacobians(num_steps, a=1.4, b=0.3):
    x, y = 0.1, 0.1
    jacobians = []
    for _ in range(1000 + num_steps):
        jacobians.append([[-2 * a * x, 1.0], [b, 0.0]])
        x, y = 1 - a * x * x + y, b * x
    return torch.tensor(jacobians[1000:], dtype=F64)


def angle(u, v):
    """Degrees between lines, exact for small angles as well."""
    along = (u * v).sum(-1, keepdim=True)
    across = torch.linalg.vector_norm(u - along * v, dim=-1)
    return torch.rad2deg(torch.atan2(across, along.abs().squeeze(-1)))


def covariance_angle(J, vectors):
    """∠(J_t v_{t−1}, v_t) of every vector; J (…, T, D, D), vectors (…, T+1, D, K)."""
    moved = (J @ vectors[..., :-1, :, :]).mT
    moved = moved / torch.linalg.vector_norm(moved, dim=-1, keepdim=True)
    return angle(moved, vectors[..., 1:, :, :].mT)


def gram(left, right):
    return (left.mT @ right).abs()


def network(network_type, *, count=2, units=5, layers=1, scale=2.0):
    config = network_type.Config(units=units, layers=layers, init="gaussian", init_scale=scale)
    return network_type(
        [config] * count,
        input_size=3,
        output_size=2,
        generators=[generator_for("clv", n) for n in range(count)],
        dtype=F64,
    )


def sequences(num_sequences=2, num_steps=300):
    shape = (num_sequences, num_steps, 3)
    return torch.randn(shape, generator=generator_for("x"), dtype=F64)


def test_henon():
    """a = 1.4, b = 0.3: growth along the vectors is that of the exponents."""
    J = henon_jacobians(6000)
    found = covariant_vectors(J, warmup=200, cooldown=200)
    counted = J[200:-200]
    assert found.covariant.shape == (1, 5601, 2, 2)
    assert found.growth.shape == (1, 5600, 2)
    assert covariance_angle(counted, found.covariant[0]).max() < 1e-6
    spectrum = lyapunov_spectrum(counted, warmup=0, t_on=1)
    torch.testing.assert_close(found.exponents, spectrum.exponents, atol=2e-3, rtol=0)
    # Σλ = ln .3 holds for the mean growth up to the angles at both ends.
    assert found.exponents[0].item() == pytest.approx(0.419, abs=0.03)
    assert found.exponents[1].item() == pytest.approx(-1.623, abs=0.03)
    growth = torch.linalg.vector_norm(counted @ found.covariant[0, :-1], dim=-2).log()
    torch.testing.assert_close(found.growth[0], growth, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "neighbour", [lambda R: [*R[1:], R[-1]], lambda R: [R[0], *R[:-1]]], ids=["next", "previous"]
)
def test_the_neighbouring_r_gives_wrong_vectors(monkeypatch, neighbour):
    """The vectors are of no system, although the R alone still average to λ."""
    J = henon_jacobians(6000)
    right = covariant_vectors(J, warmup=200, cooldown=200, adjoint=False)
    inner = clv._back_substituted
    monkeypatch.setattr(clv, "_back_substituted", lambda R, C, *rest: inner(neighbour(R), C, *rest))
    wrong = covariant_vectors(J, warmup=200, cooldown=200, adjoint=False)
    counted = J[200:-200]
    assert covariance_angle(counted, right.covariant[0]).max() < 1e-6
    off = covariance_angle(counted, wrong.covariant[0])
    assert off[:, 0].max() < 1e-6  # the first vector is q_1 whatever R
    assert off[:, 1].mean() > 40
    assert angle(wrong.covariant[0, ..., 1], right.covariant[0, ..., 1]).mean() > 30
    growth = torch.linalg.vector_norm(counted @ wrong.covariant[0, :-1], dim=-2).log()
    assert abs(growth[:, 1].mean()) < 0.2  # not −1.62
    torch.testing.assert_close(wrong.exponents, right.exponents, atol=0.01, rtol=0)


def test_of_a_constant_matrix_they_are_its_eigenvectors():
    """And the adjoint ones those of the transpose; backward and forward ones are its flags."""
    S = torch.randn(4, 4, generator=generator_for("S"), dtype=F64)
    values = torch.tensor([2.0, 1.0, 0.6, 0.2], dtype=F64)
    J = (S @ torch.diag(values) @ torch.linalg.inv(S)).expand(240, 4, 4)
    found = covariant_vectors(J, warmup=80, cooldown=80)
    right = S / torch.linalg.vector_norm(S, dim=0)
    left = torch.linalg.inv(S).T
    left = left / torch.linalg.vector_norm(left, dim=0)
    for ours, expected in ((found.covariant, right), (found.adjoint, left)):
        assert angle(ours[0].mT, expected.T.expand(81, 4, 4)).max() < 1e-6
    torch.testing.assert_close(found.exponents, values.log(), atol=1e-10, rtol=0)
    assert angle(found.backward[0, :, :, 0], right[:, 0].expand(81, 4)).max() < 1e-6
    assert angle(found.forward[0, :, :, 0], left[:, 0].expand(81, 4)).max() < 1e-6


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("network_type", [RNN, GRU, LSTM])
def test_laws_hold_for_networks(network_type, layers):
    """Covariance, growth and biorthogonality, for all members and sequences at once."""
    population, x = network(network_type, layers=layers, scale=1.3), sequences()
    k = 3
    found = covariant_vectors(population, x, k=k, warmup=100, cooldown=100)
    J = torch.stack([step.dense() for step in population.orbit(x).maps()], dim=2)[:, :, 100:200]
    D = J.shape[-1]
    assert found.covariant.shape == (2, 2, 101, D, k)
    assert not found.at_floor.any()
    assert covariance_angle(J, found.covariant).max() < 1e-6
    growth = torch.linalg.vector_norm(J @ found.covariant[..., :-1, :, :], dim=-2).log()
    torch.testing.assert_close(found.growth, growth, atol=1e-9, rtol=0)
    overlap = gram(found.adjoint, found.covariant)
    eye = torch.eye(k, dtype=torch.bool)
    assert overlap[..., ~eye].max() < 1e-8
    assert overlap[..., eye].min() > 0
    # Adjoint covariant vectors are covariant under the transposes, backward in time.
    pulled = J.mT @ found.adjoint[..., 1:, :, :]
    pulled = pulled / torch.linalg.vector_norm(pulled, dim=-2, keepdim=True)
    assert angle(pulled.mT, found.adjoint[..., :-1, :, :].mT).max() < 1e-6
    for basis in (found.backward, found.forward):
        product = basis.mT @ basis
        torch.testing.assert_close(product, eye.to(F64).expand_as(product), atol=1e-13, rtol=0)
    # Every vector lies in the span of as many backward ones.
    outside = gram(found.backward, found.covariant).tril(-1)
    assert outside.max() < 1e-13


@settings(max_examples=12)
@given(
    network_type=st.sampled_from([RNN, GRU, LSTM]),
    units=st.integers(2, 5),
    layers=st.integers(1, 3),
    batch=st.integers(1, 3),
    members=st.integers(1, 3),
    k=st.integers(1, 4),
    every=st.integers(1, 4),
    seed=st.integers(0, 50),
)
def test_vectors_are_covariant_whatever_the_shapes(
    network_type, units, layers, batch, members, k, every, seed
):
    """Covariance by the maps' own Jacobians, alone and in company, sequences in any order."""
    k = min(k, units * layers)
    population = network(network_type, count=members, units=units, layers=layers, scale=1.2)
    x = torch.randn((batch, 60, 3), generator=generator_for("clv", seed), dtype=F64)
    size = units * layers * (2 if network_type is LSTM else 1)
    frame = torch.randn((size, k), generator=generator_for("frame", seed), dtype=F64)
    options = {"warmup": 20, "cooldown": 20, "tangents": frame}
    found = covariant_vectors(population, x, **options)
    J = torch.stack([step.dense() for step in population.orbit(x).maps()], dim=2)[:, :, 20:40]
    assert found.covariant.shape == (members, batch, 21, size, k)
    # What rounding leaves is no direction of its own; those before it are.
    fine = ~found.at_floor[:, None, None].expand(members, batch, 20, k)
    moved = J @ found.covariant[:, :, :-1]
    length = torch.linalg.vector_norm(moved, dim=-2)
    assert covariance_angle(J, found.covariant)[fine].max() < 1e-4
    torch.testing.assert_close(found.growth[fine], length.log()[fine], atol=1e-7, rtol=0)
    thinned = covariant_vectors(population, x, every=every, **options)
    assert torch.equal(thinned.covariant, found.covariant[:, :, ::every])
    # The backward vectors come from the past alone: no random coefficients are in them.
    order = torch.randperm(batch, generator=generator_for("order", seed))
    shuffled = covariant_vectors(population, x[order], **options)
    for b, origin in enumerate(order.tolist()):
        ours, theirs = shuffled.backward[:, b], found.backward[:, origin]
        overlap = (ours * theirs).sum(-2)[fine[:, b, :1].expand(-1, 21, -1)]
        torch.testing.assert_close(overlap, torch.ones_like(overlap), atol=1e-6, rtol=0)
    alone = covariant_vectors(network(network_type, count=1, units=units, layers=layers, scale=1.2),
                              x, **options)  # fmt: skip
    first = fine[:1]
    torch.testing.assert_close(alone.growth[first], found.growth[:1][first], atol=1e-6, rtol=0)


def test_growth_along_each_vector_is_its_exponent():
    population, x = network(RNN), sequences(num_steps=1200)
    found = covariant_vectors(population, x, warmup=100, cooldown=100, every=100)
    exponents = lyapunov_spectrum(population, x[:, :1100], warmup=100, t_on=1).exponents
    # Vectors at angles to the frame start and end the run with logs of O(1): O(1/T).
    torch.testing.assert_close(found.exponents, exponents, atol=1e-2, rtol=0)
    assert found.times.tolist() == list(range(0, 1001, 100))
    assert found.covariant.shape == (2, 2, 11, 5, 5)
    assert found.growth.shape == (2, 2, 1000, 5)


def test_residuals_say_what_the_cool_down_left():
    J = henon_jacobians(400)
    found = covariant_vectors(J, warmup=50, cooldown=0)
    assert found.residual.shape == (1, 351, 2)
    assert (found.residual[..., 0] == 0).all()
    settled = covariant_vectors(J, warmup=50, cooldown=100)
    error = torch.deg2rad(angle(found.covariant[0, :251, :, 1], settled.covariant[0, ..., 1]))
    # Neither is settled at the very end; there the residual is as large as the error.
    late = covariant_vectors(torch.cat([J, henon_jacobians(450)[400:]]), warmup=50, cooldown=50)
    truth = torch.deg2rad(angle(found.covariant[0, ..., 1], late.covariant[0, ..., 1]))
    assert truth[-1] > 1e-2
    assert found.residual[0, -1, 1] > 1e-3
    assert error[:200].max() < 1e-8
    assert found.residual[0, :200, 1].max() < 1e-8
    assert settled.residual[0, :, 1].max() < 1e-8


def test_functions_of_the_state():
    def step(s):
        return torch.stack([1 - 1.4 * s[:, 0] ** 2 + s[:, 1], 0.3 * s[:, 0]], dim=1)

    start = torch.tensor([[0.1, 0.1], [0.2, 0.0]], dtype=F64)
    found = covariant_vectors(step, start=start, steps=200, warmup=100, cooldown=50)
    assert found.covariant.shape == (2, 201, 2, 2)
    states = [start]
    for _ in range(300):
        states.append(step(states[-1]))
    s = torch.stack(states[100:300], dim=1)
    J = torch.zeros(2, 200, 2, 2, dtype=F64)
    J[..., 0, 0], J[..., 0, 1], J[..., 1, 0] = -2.8 * s[..., 0], 1.0, 0.3
    assert covariance_angle(J, found.covariant).max() < 1e-6
    overlap = gram(found.adjoint, found.covariant)
    assert torch.maximum(overlap[..., 0, 1], overlap[..., 1, 0]).max() < 1e-8


def test_every_only_thins_out():
    J = henon_jacobians(300)
    all_of_them = covariant_vectors(J, warmup=50, cooldown=50)
    some = covariant_vectors(J, warmup=50, cooldown=50, every=7)
    for name in ("covariant", "backward", "forward", "adjoint"):
        assert torch.equal(getattr(some, name), getattr(all_of_them, name)[:, ::7])
    assert torch.equal(some.growth, all_of_them.growth)
    # The last point is within reach of the last step even without a cool-down.
    last = covariant_vectors(J, warmup=50, cooldown=0)
    assert last.covariant.shape == (1, 251, 2, 2)


def test_without_adjoint_there_are_no_forward_vectors():
    found = covariant_vectors(henon_jacobians(100), adjoint=False)
    assert found.forward is None
    assert found.adjoint is None
    assert (found.warmup, found.cooldown, found.growth.shape[1]) == (20, 16, 64)


def test_a_member_alone_equals_itself_in_company_and_nan_stays_at_home():
    x = sequences(num_steps=120)
    generators = lambda *members: [generator_for("tangents", n) for n in members]  # noqa: E731
    population = network(RNN, count=3)
    together = covariant_vectors(population, x, generator=generators(0, 1, 2))
    with torch.no_grad():
        population.weight_rec_0[1, 0, 0] = float("nan")
    poisoned = covariant_vectors(population, x, generator=generators(0, 1, 2))
    assert poisoned.covariant[1].isnan().all()
    assert poisoned.growth[1].isnan().all()
    for n in (0, 2):
        assert torch.equal(poisoned.covariant[n], together.covariant[n])
        assert torch.equal(poisoned.adjoint[n], together.adjoint[n])
    alone = covariant_vectors(network(RNN, count=1), x, generator=generators(0))
    torch.testing.assert_close(alone.growth[0], together.growth[0], atol=1e-10, rtol=0)


def test_an_annihilated_direction_is_nan_and_flagged_and_spares_those_before():
    J = henon_jacobians(200)
    wide = torch.zeros(200, 3, 3, dtype=F64)
    wide[:, :2, :2] = J
    wide[:, 2, 2] = 0.01
    wide[150, 2, 2] = 0.0
    frame = torch.eye(3, dtype=F64)
    found = covariant_vectors(wide, warmup=50, cooldown=20, tangents=frame, adjoint=False)
    narrow = covariant_vectors(J, warmup=50, cooldown=20, tangents=frame[:2, :2], adjoint=False)
    assert found.at_floor.tolist() == [False, False, True]
    assert found.covariant[0, :101, :, 2].isnan().all()
    assert not found.covariant[0, 101:].isnan().any()
    assert found.growth[0, :101, 2].isnan().all()
    assert angle(found.covariant[0, 10:90, :2, :2].mT, narrow.covariant[0, 10:90].mT).max() < 1e-6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 3}, "k must be between 1 and the state's size 2, got 3"),
        ({"cooldown": 100}, "warmup . cooldown must leave maps to count"),
        ({"cooldown": -1}, "cooldown must be at least 0 or 'auto', got -1"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"warmup": 100}, "warmup"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        covariant_vectors(henon_jacobians(100), **settings)


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="square"):
        covariant_vectors([torch.ones(3, 2, dtype=F64), torch.ones(2, 3, dtype=F64)] * 10, k=1)
    with pytest.raises(ValueError, match="too few digits"):
        covariant_vectors(henon_jacobians(20).half())


def test_angles_of_the_henon_map_come_close_to_zero():
    """Stable and unstable directions nearly touch: the attractor is not hyperbolic."""
    found = covariant_vectors(henon_jacobians(5000), adjoint=False)
    between = angle(found.covariant[0, ..., 0], found.covariant[0, ..., 1])
    assert between.min() < 1
    assert between.median() > 10
    assert math.isfinite(found.exponents.sum().item())
