"""The gradient from Q and R against automatic differentiation, and what lies in a span."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dynamics.clv import covariant_vectors
from pipeline.dynamics.gradients import (
    alignment,
    back_propagated,
    back_propagated_in_frame,
    left_vectors,
    recurrent_gradient,
)
from tasks.base import generator_for
from tasks.networks.rnn import RNN

F64 = torch.float64


def population(*, count=2, units=8, activation="tanh", init="gaussian", scale=1.0):
    config = RNN.Config(units=units, activation=activation, init=init, init_scale=scale)
    return RNN(
        [config] * count,
        input_size=3,
        output_size=4,
        generators=[generator_for("gradients", n) for n in range(count)],
        dtype=F64,
    )


def problem(network, *, sequences=3, steps=12, at_end=False):
    """Inputs, and what random weights on the outputs ask of every state."""
    g = generator_for("problem", sequences, steps)
    inputs = torch.randn(sequences, steps, 3, generator=g, dtype=F64)
    weights = torch.randn(network.num_members, sequences, steps, 4, generator=g, dtype=F64)
    if at_end:
        weights[:, :, :-1] = 0
    maps = list(network.orbit(inputs).maps())
    pushes = torch.einsum("nbto,nod->nbtd", weights, network.get_parameter("weight_out").detach())
    return inputs, weights, maps, pushes


def by_autograd(network, inputs, weights):
    """∇_V of Σ weights · outputs, by the network's own backward pass."""
    outputs, _ = network(inputs)
    (gradient,) = torch.autograd.grad(
        (outputs * weights).sum(), network.get_parameter("weight_rec_0")
    )
    return gradient


def frames(network, num_sequences, columns=None):
    D = network.units
    normal = torch.randn(
        network.num_members, num_sequences, D, D, generator=generator_for("frame"), dtype=F64
    )
    return torch.linalg.qr(normal).Q[..., :columns]


def assembled(maps, deltas):
    slopes = torch.stack([step.gains[0] for step in maps], dim=2)
    before = torch.stack([step.before[0] for step in maps], dim=2)
    return recurrent_gradient(slopes, deltas, before).sum(1)


@settings(max_examples=25)
@given(
    units=st.integers(1, 12),
    steps=st.integers(1, 30),
    scale=st.sampled_from([0.3, 1.0, 2.5]),
    init=st.sampled_from(["gaussian", "orthogonal"]),
    activation=st.sampled_from(["tanh", "relu"]),
    at_end=st.booleans(),
)
def test_q_and_r_give_the_gradient_of_back_propagation(
    units, steps, scale, init, activation, at_end
):
    """To 1e-12, relative, whatever the frame starts with."""
    network = population(units=units, activation=activation, init=init, scale=scale)
    inputs, weights, maps, pushes = problem(network, steps=steps, at_end=at_end)
    expected = by_autograd(network, inputs, weights)
    deltas = back_propagated_in_frame(maps, pushes, frames(network, 3))
    found = assembled(maps, deltas)
    size = torch.linalg.matrix_norm(expected)
    assert (torch.linalg.matrix_norm(found - expected) <= 1e-12 * size).all()
    torch.testing.assert_close(deltas, back_propagated(maps, pushes), rtol=1e-11, atol=1e-12)


def test_the_identity_holds_for_long_singular_products():
    """300 contracting steps: their product underflows, and no R is ever inverted."""
    network = population(units=16, scale=0.05)
    inputs, weights, maps, pushes = problem(network, steps=300)
    product = torch.eye(16, dtype=F64).expand(2, 3, 16, 16)
    for J in maps:
        product = J(product)
    assert not product.any()
    expected = by_autograd(network, inputs, weights)
    found = assembled(maps, back_propagated_in_frame(maps, pushes, frames(network, 3)))
    error = torch.linalg.matrix_norm(found - expected) / torch.linalg.matrix_norm(expected)
    assert error.max() < 1e-12


def test_with_one_wrong_r_it_does_not_hold():
    """The R that leads from t to t + 1 is that of map t + 1; with its neighbour it is another's."""
    network = population()
    inputs, weights, maps, pushes = problem(network)
    expected = by_autograd(network, inputs, weights)
    shifted = [maps[0], maps[2], maps[1], *maps[3:]]
    found = assembled(maps, back_propagated_in_frame(shifted, pushes, frames(network, 3)))
    error = torch.linalg.matrix_norm(found - expected) / torch.linalg.matrix_norm(expected)
    assert error.min() > 1e-3


@pytest.mark.parametrize("m", [1, 3, 8])
def test_fewer_vectors_give_the_part_in_their_span(m):
    network = population()
    _, _, maps, pushes = problem(network)
    frame = frames(network, 3)
    part = back_propagated_in_frame(maps, pushes, frame, num_vectors=m)
    whole = back_propagated(maps, pushes)
    Q = frame
    for t, J in enumerate(maps):
        Q = torch.linalg.qr(J(Q)).Q
        span = Q[..., :m]
        projected = (span @ (span.mT @ whole[:, :, t].unsqueeze(-1))).squeeze(-1)
        torch.testing.assert_close(part[:, :, t], projected, rtol=1e-10, atol=1e-12)
    narrow = back_propagated_in_frame(maps, pushes, frame[..., :m])
    torch.testing.assert_close(narrow, part, rtol=1e-10, atol=1e-12)


def test_more_vectors_than_there_are_is_refused():
    network = population()
    _, _, maps, pushes = problem(network)
    with pytest.raises(ValueError, match="between 1 and 5"):
        back_propagated_in_frame(maps, pushes, frames(network, 3, 5), num_vectors=6)


def test_deltas_turn_into_the_leading_forward_vector():
    """What is pulled back far enough points along f_1, whatever the loss; q_1 it does not."""
    network = population(units=16, scale=1.5)
    _, _, maps, pushes = problem(network, steps=120, at_end=True)
    inputs = problem(network, steps=120)[0]
    vectors = covariant_vectors(
        network, inputs, k=4, warmup=20, cooldown=0, generator=generator_for("vectors")
    )
    deltas = back_propagated(maps, pushes)
    unit = deltas / torch.linalg.vector_norm(deltas, dim=-1, keepdim=True)
    at = 30  # h_30 stands at time 10 after the warm-up, its δ in place 29
    forward = (unit[:, :, at - 1] * vectors.forward[:, :, at - 20, :, 0]).sum(-1).abs()
    backward = (unit[:, :, at - 1] * vectors.backward[:, :, at - 20, :, 0]).sum(-1).abs()
    assert forward.min() > 1 - 1e-3
    assert backward.max() < 0.9


def test_covariant_and_adjoint_vectors_are_biorthogonal_and_span_what_their_flags_do():
    """Must-show: ⟨θ_i, v_j⟩ = 0 to 1e-8 for i ≠ j, of a network as it is measured here."""
    network = population(units=16, scale=1.5)
    found = covariant_vectors(network, problem(network, steps=200)[0], k=6, warmup=50, cooldown=50)
    overlap = (found.adjoint.mT @ found.covariant).abs()
    is_other = ~torch.eye(6, dtype=torch.bool)
    assert overlap[..., is_other].max() < 1e-8
    assert overlap[..., ~is_other].min() > 1e-6
    for m in (1, 3, 6):
        same = alignment(found.covariant[..., :m], found.backward[..., :m])
        torch.testing.assert_close(same, torch.ones_like(same), rtol=0, atol=1e-12)
        # The adjoint ones lie in the forward span up to what the cool-down has left.
        same = alignment(found.adjoint[..., :m], found.forward[..., :m])
        assert (1 - same).max() < 1e-6 + found.residual.max() ** 2


def test_alignment_of_random_spans_is_chance():
    g = generator_for("chance")
    basis = torch.randn(4000, 20, 3, generator=g, dtype=F64)
    vectors = torch.linalg.qr(torch.randn(4000, 20, 5, generator=g, dtype=F64)).Q
    shares = alignment(basis, vectors)
    assert shares.mean().item() == pytest.approx(3 / 20, abs=5 * shares.std().item() / 4000**0.5)
    assert alignment(vectors[0], vectors[0]).item() == pytest.approx(1.0)


def test_nan_stays_with_its_member():
    gradient = torch.randn(2, 5, 5, generator=generator_for("nan"), dtype=F64)
    gradient[1, 2, 3] = math.nan
    U = left_vectors(gradient, 2)
    assert U[1].isnan().all()
    torch.testing.assert_close(U[0].mT @ U[0], torch.eye(2, dtype=F64))
    assert alignment(U, U).isnan().tolist() == [False, True]
