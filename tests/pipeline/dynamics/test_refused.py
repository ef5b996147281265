"""What would be answered by a wrong number, silently, is refused or answered rightly.

Shapes: B sequences, T steps, D state.
"""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from pipeline.dynamics.clv import covariant_vectors
from pipeline.dynamics.ftle import finite_time_exponents, ftle_field, max_ftle
from pipeline.dynamics.geometry import pullback_metric
from pipeline.dynamics.gradients import (
    alignment,
    back_propagated,
    back_propagated_in_frame,
    left_vectors,
)
from pipeline.dynamics.local import local_exponents
from pipeline.dynamics.spectrum import lyapunov_spectrum
from pipeline.dynamics.sweeps import leading_singular_values
from tasks.base import generator_for
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP
from tasks.networks.rnn import RNN

F64 = torch.float64
every_measurement = pytest.mark.parametrize(
    "measure", [lyapunov_spectrum, local_exponents, covariant_vectors], ids=lambda f: f.__name__
)


def henon(s):
    return torch.stack([1 - 1.4 * s[:, 0] ** 2 + s[:, 1], 0.3 * s[:, 0]], 1)


# Settings


@every_measurement
@pytest.mark.parametrize("name", ["warmup", "steps", "k"])
@pytest.mark.parametrize("value", [2.5, 1e2, "none"])
def test_counts_are_whole_numbers(measure, name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number.*got {value!r}"):
        measure(henon, torch.zeros(2), **{"steps": 40, name: value})


def test_t_on_is_a_whole_number():
    with pytest.raises(ValueError, match=r"t_on must be a whole number or 'auto', got 2\.5"):
        lyapunov_spectrum(henon, torch.zeros(2), steps=40, t_on=2.5)


@every_measurement
def test_numbers_of_numpy_are_numbers(measure):
    """A warm-up of np.int64(0) is none, not "auto"."""
    settings = {"steps": np.int64(40), "warmup": np.int64(0), "k": np.int64(1)}
    found = measure(henon, torch.zeros(2), **settings)
    expected = measure(henon, torch.zeros(2), steps=40, warmup=0, k=1)
    first = vars(expected) if hasattr(expected, "__dict__") else expected._asdict()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(found, name), value), name


def test_as_many_generators_as_members():
    generators = [generator_for("n", n) for n in range(2)]
    network = RNN([RNN.Config(units=3)] * 2, input_size=2, output_size=1, generators=generators)
    with pytest.raises(ValueError, match="one for each of the 2 members; got 3"):
        lyapunov_spectrum(network, torch.zeros(1, 9, 2), generator=[torch.Generator()] * 3)


# Functions


def test_inputs_that_a_function_would_not_get_are_not_lost():
    x = torch.ones(1, 60, 2)
    for step in (lambda s: 0.5 * s, lambda s, x=None: 0.5 * s if x is None else 2 * s):
        with pytest.raises(ValueError, match="gets no inputs, but both"):
            lyapunov_spectrum(step, x, start=torch.zeros(2), steps=20)
    driven = lyapunov_spectrum(lambda s, x: 2 * s, x, start=torch.zeros(2), steps=20)
    assert driven.exponents.tolist() == pytest.approx([math.log(2)] * 2)


def detached(s):
    return henon(s.detach())


def by_numpy(s):
    return torch.as_tensor(henon(torch.from_numpy(s.cpu().numpy())), device=s.device)


@every_measurement
@pytest.mark.parametrize("step", [detached, by_numpy, torch.no_grad()(henon)])
def test_functions_that_torch_cannot_differentiate(measure, step):
    """Their derivative would be 0, and would agree with itself."""
    with pytest.raises(ValueError, match="torch cannot differentiate this step"):
        measure(step, torch.zeros(2), steps=20)


def test_functions_that_write_into_their_state():
    def halve(s):
        s *= 0.5
        return s

    start = torch.ones(2)
    with pytest.raises(ValueError, match="writes into it"):
        lyapunov_spectrum(halve, start, steps=20)
    assert start.tolist() == [1, 1]


def test_measuring_within_inference_mode():
    inputs = torch.randn(2, 40, 2, generator=generator_for("inference"))
    module = nn.LSTM(2, 3)
    expected = lyapunov_spectrum(module, inputs)
    driven = lyapunov_spectrum(lambda s, x: torch.tanh(s + x), inputs, start=torch.zeros(2))
    with torch.inference_mode():
        copies = inputs.clone()
        found = lyapunov_spectrum(module, copies)
        again = lyapunov_spectrum(lambda s, x: torch.tanh(s + x), copies, start=torch.zeros(2))
    for one, other in ((found, expected), (again, driven)):
        assert one.self_check_passed
        assert torch.equal(one.exponents, other.exponents)


def test_a_stream_without_end_is_read_as_far_as_asked():
    spectrum = lyapunov_spectrum((2 * torch.eye(2) for _ in itertools.count()), steps=20)
    assert (spectrum.warmup, spectrum.steps) == (5, 20)
    assert spectrum.exponents.tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", ["weight_norm", "prune"])
def test_weights_that_a_module_makes_before_each_call_are_made(change):
    """After a step of the optimiser, those of the attribute are still the ones before it."""
    module = nn.RNN(2, 3)
    x = torch.randn(1, 60, 2, generator=generator_for("hooks"))
    if change == "weight_norm":
        nn.utils.weight_norm(module, "weight_hh_l0")
        changed = module.weight_hh_l0_g
    else:
        prune.l1_unstructured(module, "weight_hh_l0", amount=3)
        changed = module.weight_hh_l0_orig
    before = lyapunov_spectrum(module, x)
    with torch.no_grad():
        changed *= 3
    found = lyapunov_spectrum(module, x)
    module(x)
    assert not torch.equal(found.exponents, before.exponents)
    assert torch.equal(found.exponents, lyapunov_spectrum(module, x).exponents)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(9, 3), r"inputs must be \(B, T, 3\), got \(9, 3\)"),
        (torch.zeros(2, 9, 4), r"inputs must be \(B, T, 3\), got \(2, 9, 4\)"),
        (torch.zeros(2, 9, 3, dtype=torch.int64), r"tokens must be \(B, T\), got \(2, 9, 3\)"),
        (torch.full((2, 9), 3), r"tokens must be within 0 … 2, got 3 … 3"),
        (torch.full((2, 9), -1), r"tokens must be within 0 … 2, got -1 … -1"),
    ],
)
@pytest.mark.parametrize("network_type", [RNN, LSTM])
def test_inputs_that_do_not_fit_the_network(network_type, inputs, message):
    config = network_type.Config(units=4)
    generators = [generator_for("fit")]
    network = network_type([config], input_size=3, output_size=1, generators=generators)
    with pytest.raises(ValueError, match=message):
        lyapunov_spectrum(network, inputs)


# Flags


def test_no_number_reaches_no_tolerance():
    maps = torch.full((60, 2, 2), math.nan)
    spectrum = lyapunov_spectrum(maps, tolerance=1e-9, t_on=1)
    assert spectrum.exponents.isnan().all()
    assert spectrum.has_reached_tolerance is False


def test_determinants_say_nothing_of_singular_maps():
    """−inf beside rounding, or rounding beside rounding, is no fault of the engine."""
    module = nn.RNN(2, 4, nonlinearity="relu", dtype=F64)
    with torch.no_grad():
        module.weight_hh_l0[:, 0] = 0
    x = torch.randn(1, 60, 2, generator=generator_for("dead"), dtype=F64)
    for t_on in ("auto", 1):
        dead = lyapunov_spectrum(module, x, t_on=t_on)
        assert (dead.at_floor | dead.minus_infinity).any()
        assert dead.self_check_passed
    # A plateau that the caller's T_ON made is another matter: the numbers are wrong.
    J = torch.tensor([[4.0, 1.0], [1.0, 0.5]]).expand(400, 2, 2)
    plateau = lyapunov_spectrum(J, t_on=40)
    assert plateau.at_floor.tolist() == [False, True]
    assert not plateau.self_check_passed


# Singular values


def test_singular_values_that_cannot_be_told_from_zero():
    """A map of rank 2 leaves rounding behind, which would look like an exponent."""
    g = generator_for("rank")
    full = torch.randn(2, 1, 5, 3, 3, generator=g, dtype=F64)
    low = torch.randn(1, 5, 3, 2, generator=g, dtype=F64)
    low = low @ torch.randn(1, 5, 2, 3, generator=g, dtype=F64)
    maps = [lambda Q, J=J: J @ Q for J in (full[0], low, full[1])]
    found = leading_singular_values(maps, 3, num_rows=3, lead=(1, 5), dtype=F64, device=full.device)
    product = full[1] @ low @ full[0]
    expected = torch.linalg.svdvals(product).log()
    torch.testing.assert_close(found.log_values[..., :2], expected[..., :2], atol=1e-9, rtol=0)
    assert (found.log_values[..., 2] == -math.inf).all()
    assert found.has_settled.all()


def test_small_singular_values_of_long_products_keep_their_digits():
    """e^−60 below the largest, reached by twenty maps of full rank."""
    J = torch.diag(torch.tensor([2.0, 2.0 * math.exp(-3.0)], dtype=F64))[None, None]
    found = leading_singular_values(
        [lambda Q: J @ Q] * 20, 2, num_rows=2, lead=(1, 1), dtype=F64, device=J.device
    )
    expected = [20 * math.log(2), 20 * (math.log(2) - 3)]
    assert found.log_values.flatten().tolist() == pytest.approx(expected, abs=1e-9)


def test_exponents_of_networks_with_dead_units():
    config = MLP.Config(width=4, depth=3, activation="relu")
    network = MLP([config], input_size=4, output_size=1, generators=[generator_for("relu", 1)])
    x = torch.randn(40, 4, generator=generator_for("relu x"))
    found = 3 * finite_time_exponents(network, x, k=4)[0]
    # A single layer has entries of order 1: below e^−30 there is nothing but rounding.
    assert ((found > -30) | (found == -math.inf)).all()
    assert (found == -math.inf).any()


@pytest.mark.parametrize("inputs", [1, 2, 3, 6])
def test_squares_do_not_leave_the_range(inputs):
    config = MLP.Config(width=4, depth=2, init_scale=1.0, activation="identity")
    generators = [generator_for("tiny")]
    network = MLP([config], input_size=inputs, output_size=1, generators=generators, dtype=F64)
    x = torch.zeros(3, inputs, dtype=F64)
    before = ftle_field(network, x)
    for factor in (1e-90, 1e90):
        with torch.no_grad():
            network.get_parameter("weight_0").mul_(factor)
            network.get_parameter("weight_1").mul_(factor)
        found = ftle_field(network, x)
        expected = before.exponents + math.log(factor)
        torch.testing.assert_close(found.exponents, expected, atol=1e-9, rtol=0)
        overlap = (found.directions * before.directions).sum(-1).abs()
        torch.testing.assert_close(overlap, torch.ones_like(overlap), atol=1e-9, rtol=0)
        assert torch.equal(max_ftle(network, x), found.exponents)
        with torch.no_grad():
            network.get_parameter("weight_0").div_(factor)
            network.get_parameter("weight_1").div_(factor)


# Gradients


def test_as_many_steps_of_the_loss_as_maps():
    J = torch.eye(2)
    maps, frame = [lambda Q: J @ Q] * 2, J[None, None]
    for of in (
        lambda pushes: back_propagated(maps, pushes),
        lambda pushes: back_propagated_in_frame(maps, pushes, frame),
    ):
        for pushes in (torch.ones(1, 1, 5, 2), torch.ones(1, 2, 2)):
            with pytest.raises(ValueError, match="one step for each of the 2 maps"):
                of(pushes)


def test_vectors_that_rounding_would_choose():
    g = generator_for("rank of a gradient")
    low = torch.randn(1, 4, 2, generator=g) @ torch.randn(1, 2, 4, generator=g)
    U = left_vectors(torch.cat([low, torch.zeros(1, 4, 4)]), 3)
    assert U[0, :, :2].isfinite().all()
    assert U[0, :, 2].isnan().all()
    assert U[1].isnan().all()
    assert alignment(U[0, :, :2], U[0, :, :2]).item() == pytest.approx(1)
    e_1, e_2 = torch.eye(4)[:, :1], torch.eye(4)[:, 1:2]
    assert alignment(torch.cat([e_1, e_1], dim=1), e_2).isnan()
    with pytest.raises(ValueError, match="k must be between 1 and 4, got 5"):
        left_vectors(low, 5)


# Geometry


class Noisy(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Noisy(), "draws random numbers"),
        (lambda x: nn.functional.dropout(x, 0.5), "draws random numbers"),
        (nn.BatchNorm1d(2, track_running_stats=False).eval(), "rows of a batch depend"),
    ],
)
def test_geometry_of_what_is_no_function_of_a_row(network, message):
    with pytest.raises(ValueError, match=message):
        pullback_metric(network, torch.ones(3, 2, dtype=F64))


# Precision

SWITCHES = """
import os

import torch

from pipeline.dynamics.arithmetic import exact_arithmetic

b = torch.backends
ones = (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn)


def legacy():
    try:
        return torch.get_float32_matmul_precision(), b.cudnn.allow_tf32
    except RuntimeError:
        return None


def state():
    # "none" is what "ieee" is called before anybody has said anything.
    return [one.fp32_precision.replace("none", "ieee") for one in ones], legacy()


for switch in (
    lambda: None,
    lambda: torch.set_float32_matmul_precision("high"),
    lambda: torch.set_float32_matmul_precision("medium"),
    lambda: setattr(b.cudnn, "allow_tf32", False),
    lambda: setattr(b.cuda.matmul, "fp32_precision", "tf32"),
    lambda: setattr(b.mkldnn.matmul, "fp32_precision", "bf16"),
    lambda: setattr(b.mkldnn.conv, "fp32_precision", "bf16"),
    lambda: setattr(b.cudnn.conv, "fp32_precision", "ieee"),
    lambda: setattr(b, "fp32_precision", "tf32"),
):
    # Each in a process of its own: there is no way back from one set of switches to the other.
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1], flush=True)
        continue
    switch()
    before = state()
    with exact_arithmetic():
        inside = {one.fp32_precision for one in ones}
    os._exit(0 if inside <= {"ieee", "none"} and state() == before else 1)
"""


def test_reduced_precision_is_off_inside_and_back_afterwards():
    """torch's old and new switches: it refuses to read one where the other was used."""
    run = subprocess.run(
        [sys.executable, "-c", SWITCHES], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.split() == ["0"] * 9, run.stdout + run.stderr
