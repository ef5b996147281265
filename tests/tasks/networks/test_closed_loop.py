"""Recurrent networks fed with their own outputs: one closed step against autograd, known answers.

Shapes: N members, B sequences, D state, K tangents.
"""

import math

import pytest
import torch
from torch.autograd.functional import jacobian

from pipeline.dynamics.clv import covariant_vectors
from pipeline.dynamics.local import local_exponents
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import UnsuitableError, generator_for
from tasks.networks.gru import GRU
from tasks.networks.layers import linear
from tasks.networks.lstm import LSTM
from tasks.networks.rnn import RNN

F64 = torch.float64
KINDS = {
    "gru": (GRU, {}),
    "lstm": (LSTM, {}),
    "relu": (RNN, {"activation": "relu"}),
    "tanh": (RNN, {"activation": "tanh"}),
}
every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def population(kind, layers=1, *, units=4, inputs=3, outputs=3, count=2, scale=0.8, bias=True):
    """Every weight and bias, that of the readout too, is drawn and differs between members."""
    network_type, fixed = KINDS[kind]
    configs = [
        network_type.Config(units=units, layers=layers, bias=bias, init_scale=scale + n, **fixed)
        for n in range(count)
    ]
    network = network_type(
        configs,
        input_size=inputs,
        output_size=outputs,
        generators=[generator_for("closed", n) for n in range(count)],
        dtype=F64,
    )
    if bias:
        with torch.no_grad():
            network.bias_out.normal_(generator=generator_for("bias_out"))
    return network


def sequences(num_sequences=2, num_steps=5, inputs=3):
    shape = (num_sequences, num_steps, inputs)
    return torch.randn(shape, generator=generator_for("x"), dtype=F64)


def closed_step(network, states):
    """One step of all members by the equations they are trained with; states: h, or (h, c)."""
    x = linear(states[-1][0], network.weight_out, getattr(network, "bias_out", None))
    after = []
    for layer, parts in enumerate(states):
        W, _, b = network._layer(layer)
        after.append(network._cell(layer)(linear(x, W, b), parts))
        x = after[-1][0]
    return tuple(after)


def derivative(network, states, convention):
    """J (N, B, D, D) by autograd of the whole step; nothing may pass between members."""
    layers, num_parts = len(states), len(states[0])
    varied_parts = num_parts if convention == "full" else 1
    N, B, H = states[0][0].shape

    def step(flat_NBD):
        blocks = flat_NBD.chunk(layers * varied_parts, dim=-1)
        given = tuple(
            (*blocks[i * varied_parts : (i + 1) * varied_parts], *states[i][varied_parts:])
            for i in range(layers)
        )
        after = closed_step(network, given)
        return torch.cat([part for parts in after for part in parts[:varied_parts]], dim=-1)

    start = torch.cat([part for parts in states for part in parts[:varied_parts]], dim=-1)
    D = H * layers * varied_parts
    whole = jacobian(step, start).reshape(N * B, D, N * B, D)
    own = torch.stack([whole[i, :, i] for i in range(N * B)])
    assert whole.count_nonzero() == own.count_nonzero()
    return own.reshape(N, B, D, D)


def as_parts(before):
    return tuple(layer if isinstance(layer, tuple) else (layer,) for layer in before)


@every_kind
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("convention", ["full", "hidden"])
def test_one_closed_step_equals_autograd(kind, layers, bias, convention):
    network = population(kind, layers, bias=bias)
    x = sequences()
    tight = {"atol": 1e-12, "rtol": 1e-12}
    orbit = network.closed_orbit(x, steps=3, state=convention)
    D = orbit.tangent_size
    maps = list(orbit.maps())
    assert (orbit.loop, orbit.num_steps, len(maps)) == ("closed", 3, 3)
    with torch.no_grad():
        _, states = network(x)
    for t, J in enumerate(maps):
        for ours, theirs in zip(as_parts(J.before), states, strict=True):
            torch.testing.assert_close(ours, theirs, **tight)
        expected = derivative(network, as_parts(J.before), convention)
        Q = torch.randn((2, 2, D, 3), generator=generator_for("Q", t), dtype=F64)
        torch.testing.assert_close(J.dense(), expected, **tight)
        torch.testing.assert_close(J(Q), expected @ Q, **tight)
        torch.testing.assert_close(J.transposed(Q), expected.mT @ Q, **tight)
        torch.testing.assert_close(J.autodiff(Q[..., 0]), (expected @ Q)[..., 0], **tight)
        # The closed form is that of a block-triangular J.
        assert J.log_abs_det() is None
        with torch.no_grad():
            states = closed_step(network, states)


@every_kind
def test_many_tangents_move_like_few(kind):
    """From some number of tangents on, open loops form J; closed ones must not lose the readout."""
    network = population(kind, 2, units=40, scale=0.3)
    (J,) = network.closed_orbit(sequences(), steps=1).maps()
    D = network.closed_orbit(sequences(), steps=1).tangent_size
    Q = torch.randn((2, 2, D, 120), generator=generator_for("Q"), dtype=F64)
    few = torch.cat([J(part) for part in Q.split(20, dim=-1)], dim=-1)
    torch.testing.assert_close(J(Q), few, atol=1e-12, rtol=1e-12)


@every_kind
def test_spectrum_of_a_closed_loop_whose_jacobian_settles(kind):
    """A loop whose J comes to rest: Σλ = log|det J| there, J by autograd."""
    network = population(kind, 2, count=1, scale=0.3, bias=kind != "relu")
    if kind == "relu":
        # Without negative weights every unit stays open, the loop is linear and J constant.
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.abs_()
    x = sequences().abs()
    spectrum = lyapunov_spectrum(network, x, loop="closed", steps=40, warmup=400, t_on=1)
    assert (spectrum.loop, spectrum.steps, spectrum.warmup) == ("closed", 40, 400)
    assert spectrum.self_check_passed.all()
    assert "autodiff" in spectrum.self_check
    *_, last = network.closed_orbit(x, steps=440).maps()
    J = derivative(network, as_parts(last.before), "full")[0]
    determinant = torch.linalg.slogdet(J).logabsdet
    torch.testing.assert_close(spectrum.per_sequence[0].sum(-1), determinant, atol=1e-9, rtol=0)


@every_kind
@pytest.mark.parametrize("layers", [1, 2])
def test_covariant_vectors_of_a_closed_loop(kind, layers):
    """Covariance and growth by autograd's Jacobians of the closed step, all of them different."""
    network = population(kind, layers, scale=0.7)
    x, options = sequences(), {"loop": "closed", "warmup": 60}
    k = 2
    found = covariant_vectors(network, x, k=k, steps=30, cooldown=60, **options)
    orbit = network.closed_orbit(x, steps=150)
    steps = list(orbit.maps())[60:90]
    J = torch.stack([derivative(network, as_parts(step.before), "full") for step in steps], dim=2)
    assert found.covariant.shape == (2, 2, 31, orbit.tangent_size, k)
    # What relu units cut off cannot be followed back; it is NaN, and flagged.
    fine = ~found.at_floor[:, None, None].expand_as(found.growth)
    assert kind == "relu" or fine.all()
    moved = J @ found.covariant[:, :, :-1]
    length = torch.linalg.vector_norm(moved, dim=-2)
    torch.testing.assert_close(found.growth[fine], length.log()[fine], atol=1e-9, rtol=0)
    cosine = ((moved * found.covariant[:, :, 1:]).sum(-2) / length).abs()[fine]
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-12, rtol=0)
    pulled = J.mT @ found.adjoint[:, :, 1:]
    across = (pulled * found.adjoint[:, :, :-1]).sum(-2) / torch.linalg.vector_norm(pulled, dim=-2)
    # An adjoint vector is orthogonal to all others: it takes all of them to know one.
    across = across.abs()[fine.all(-1)]
    torch.testing.assert_close(across, torch.ones_like(across), atol=1e-9, rtol=0)


@every_kind
@pytest.mark.parametrize("convention", ["full", "hidden"])
def test_local_exponents_of_a_closed_loop(kind, convention):
    """From a given frame, log R_ii of autograd's Jacobians, step by step."""
    network = population(kind, 2)
    x = sequences()
    D = network.closed_orbit(x, steps=1, state=convention).tangent_size
    frame = torch.randn((D, 2), generator=generator_for("frame"), dtype=F64)
    options = {"loop": "closed", "steps": 6, "state": convention, "tangents": frame}
    found = local_exponents(network, x, **options)
    Q = torch.linalg.qr(frame).Q.expand(2, 2, D, 2)
    for t, step in enumerate(network.closed_orbit(x, steps=6, state=convention).maps()):
        Q, R = torch.linalg.qr(derivative(network, as_parts(step.before), convention) @ Q)
        expected = R.diagonal(dim1=-2, dim2=-1).abs().log()
        fine = ~found.at_floor[:, :, t]
        torch.testing.assert_close(
            found.exponents[:, :, t][fine], expected[fine], atol=1e-9, rtol=0
        )


def test_fixed_point_of_a_closed_rnn_of_one_unit():
    """h = tanh((u + w v) h + w d + b), where λ = ln[(1 − h²)(u + w v)]."""
    network = population("tanh", units=1, inputs=1, outputs=1, count=1)
    w, u, b, v, d = 0.5, 0.9, 0.1, 1.2, 0.2
    values = {
        "weight_in_0": w,
        "weight_rec_0": u,
        "bias_0": b,
        "weight_out": v,
        "bias_out": d,
    }
    with torch.no_grad():
        for name, value in values.items():
            getattr(network, name).fill_(value)
    h = 0.5
    for _ in range(500):
        h = math.tanh((u + w * v) * h + w * d + b)
    x = torch.zeros(1, 1, 1, dtype=F64)
    spectrum = lyapunov_spectrum(network, x, loop="closed", steps=50, warmup=500)
    expected = math.log((1 - h * h) * (u + w * v))
    assert spectrum.exponents.item() == pytest.approx(expected, abs=1e-12)


@every_kind
def test_a_loop_that_cannot_close_is_refused(kind):
    with pytest.raises(UnsuitableError, match="input_size 3 and output_size 2"):
        population(kind, outputs=2).closed_orbit(sequences(), steps=2)
    tokens = torch.zeros((2, 5), dtype=torch.int64)
    with pytest.raises(UnsuitableError, match="next token is no differentiable map"):
        population(kind).closed_orbit(tokens, steps=2)
    with pytest.raises(ValueError, match="real inputs"):
        lyapunov_spectrum(population(kind), tokens, loop="closed", steps=2)
