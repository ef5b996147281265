"""Local exponents against the sums that the spectrum reports, and against explicit QRs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dynamics.local import local_exponents
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.gru import GRU
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP
from tasks.networks.rnn import RNN

F64 = torch.float64


def population(network_type, count=2, **settings):
    settings.setdefault("units", 5)
    return network_type(
        [network_type.Config(**settings)] * count,
        input_size=3,
        output_size=2,
        generators=[generator_for("local", n) for n in range(count)],
        dtype=F64,
    )


def sequences(num_sequences=3, num_steps=40):
    shape = (num_sequences, num_steps, 3)
    return torch.randn(shape, generator=generator_for("x"), dtype=F64)


@pytest.mark.parametrize("state", ["full", "hidden"])
@pytest.mark.parametrize("network_type", [RNN, GRU, LSTM])
def test_mean_over_time_is_the_finite_time_spectrum(network_type, state):
    network, x = population(network_type), sequences()
    for warmup in (0, 10):
        found = local_exponents(network, x, k=3, state=state, warmup=warmup)
        spectrum = lyapunov_spectrum(network, x, k=3, state=state, warmup=warmup, t_on=1)
        assert found.exponents.shape == (2, 3, 40 - warmup, 3)
        torch.testing.assert_close(
            found.exponents.mean(2), spectrum.per_sequence, atol=1e-12, rtol=0
        )


@settings(max_examples=12)
@given(
    network_type=st.sampled_from([RNN, GRU, LSTM]),
    units=st.integers(1, 5),
    layers=st.integers(1, 3),
    batch=st.integers(1, 3),
    members=st.integers(1, 3),
    warmup=st.integers(0, 5),
    k=st.integers(1, 4),
    t_on=st.sampled_from([1, 2, "auto"]),
    single=st.booleans(),
    seed=st.integers(0, 50),
)
def test_they_add_up_whatever_the_shapes(
    network_type, units, layers, batch, members, warmup, k, t_on, single, seed
):
    """Sums are those of the spectrum; members alone, other orders and fewer k change nothing."""
    network = population(network_type, members, units=units, layers=layers)
    x = torch.randn((batch, 20, 3), generator=generator_for("local", seed), dtype=F64)
    size = units * layers * (2 if network_type is LSTM else 1)
    k = min(k, size)
    frame = torch.randn((size, size), generator=generator_for("frame", seed), dtype=F64)
    options = {"warmup": warmup, "dtype": torch.float32 if single else F64}
    # Just above the floor of 100 ε, an R_ii has two digits left.
    tolerance = {"atol": 2e-2 if single else 1e-7, "rtol": 0}
    found = local_exponents(network, x, tangents=frame, **options)
    assert found.exponents.shape == (members, batch, 20 - warmup, size)
    spectrum = lyapunov_spectrum(network, x, tangents=frame, t_on=t_on, **options)
    # At a floor numbers are rounding noise.
    fine = ~(found.at_floor.any((1, 2)) | spectrum.at_floor)
    mean = found.exponents.mean(2)
    each = fine.unsqueeze(1).expand_as(mean)
    torch.testing.assert_close(mean[each], spectrum.per_sequence[each], **tolerance)
    order = torch.randperm(batch, generator=generator_for("order", seed))
    shuffled = local_exponents(network, x[order], tangents=frame, **options).exponents.mean(2)
    torch.testing.assert_close(shuffled[each], mean[:, order][each], **tolerance)
    few = local_exponents(network, x, tangents=frame[:, :k], **options).exponents.mean(2)
    torch.testing.assert_close(few[each[..., :k]], mean[..., :k][each[..., :k]], **tolerance)
    single_member = population(network_type, 1, units=units, layers=layers)
    alone = local_exponents(single_member, x, tangents=frame, **options).exponents.mean(2)
    torch.testing.assert_close(alone[each[:1]], mean[:1][each[:1]], **tolerance)


def test_every_value_is_the_r_of_its_own_step():
    network, x = population(RNN, count=1), sequences(1, 12)
    frame = torch.linalg.qr(torch.randn(5, 5, generator=generator_for("Q"), dtype=F64)).Q
    found = local_exponents(network, x, tangents=frame)
    Q = frame
    for t, J in enumerate(network.orbit(x).maps()):
        V = J.dense()[0, 0] @ Q
        # log R_11 is the growth of the first vector, and volumes the sums.
        first = torch.linalg.vector_norm(V[:, 0]).log()
        torch.testing.assert_close(found.exponents[0, 0, t, 0], first, atol=1e-12, rtol=0)
        for k in (2, 5):
            volume = torch.linalg.svdvals(V[:, :k]).log().sum()
            total = found.exponents[0, 0, t, :k].sum()
            torch.testing.assert_close(total, volume, atol=1e-10, rtol=0)
        Q = torch.linalg.qr(V).Q


def test_layers_of_different_width_are_taken_as_they_come():
    config = MLP.Config(width=6, depth=3)
    network = MLP([config], input_size=4, output_size=1, generators=[generator_for(0)], dtype=F64)
    x = torch.randn((7, 4), generator=generator_for("x"), dtype=F64)
    found = local_exponents(network, x, k=4)
    assert found.exponents.shape == (1, 7, 3, 4)
    product = torch.eye(4, dtype=F64)
    for J in network.orbit(x).maps():
        product = J.dense() @ product
    volume = torch.linalg.svdvals(product).log().sum(-1)
    torch.testing.assert_close(found.exponents.sum((2, 3)), volume, atol=1e-10, rtol=0)
    bottleneck = [torch.ones(2, 3, dtype=F64), torch.ones(3, 2, dtype=F64)]
    with pytest.raises(ValueError, match="k must be at most the rows of every map; map 0 has 2"):
        local_exponents(bottleneck, k=3)


def test_zeros_rounding_and_nan_show():
    J = torch.eye(3, dtype=F64).repeat(6, 1, 1)
    J[2, 2, 2] = 0.0
    J[4] = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1e-20, 0.0], [0.0, 0.0, 1.0]])
    found = local_exponents(J, tangents=torch.eye(3, dtype=F64))
    assert found.exponents[0, 2].tolist() == [0.0, 0.0, -math.inf]
    assert found.at_floor[0].any(-1).tolist() == [False, False, True, False, True, False]
    assert found.at_floor[0, 4].tolist() == [False, True, False]

    network = population(GRU, count=3)
    healthy = local_exponents(network, sequences())
    with torch.no_grad():
        network.weight_rec_0[1, 0, 0] = float("nan")
    poisoned = local_exponents(network, sequences())
    assert poisoned.exponents[1, :, 1:].isnan().all()
    for n in (0, 2):
        assert torch.equal(poisoned.exponents[n], healthy.exponents[n])


def test_functions_and_modules():
    step = lambda s: torch.stack([1 - 1.4 * s[:, 0] ** 2 + s[:, 1], 0.3 * s[:, 0]], 1)  # noqa: E731
    found = local_exponents(step, start=torch.tensor([[0.1, 0.1]], dtype=F64), steps=50)
    assert found.exponents.shape == (1, 50, 2)
    total = found.exponents.sum(-1)
    torch.testing.assert_close(total, torch.full_like(total, math.log(0.3)), atol=1e-12, rtol=0)
    module = torch.nn.GRU(3, 4, batch_first=True, dtype=F64)
    assert local_exponents(module, sequences()).exponents.shape == (3, 40, 4)


def test_float32_differs_by_rounding():
    network, x = population(LSTM), sequences()
    single = local_exponents(network, x, k=2, dtype=torch.float32).exponents
    double = local_exponents(network, x, k=2).exponents
    assert single.dtype == F64
    torch.testing.assert_close(single, double, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 6}, "k must be between 1 and the state's size 5, got 6"),
        ({"warmup": 40}, r"warmup \+ steps must fit"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64"),
        ({"state": "cell"}, "state must be 'full' or 'hidden', got 'cell'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        local_exponents(population(RNN), sequences(), **settings)
