"""The structure of networks of numerical steps, on cases whose numbers are known."""

import math

import pytest
import torch

from pipeline.diagnostics.base import Moment
from pipeline.diagnostics.structure import Structure, trajectories, variations
from pipeline.dynamics.structure import log_norm, spectral_abscissa
from tasks.base import UnsuitableError, generator_for
from tasks.networks.gradient_flow import GradientFlow
from tasks.networks.hamiltonian import Hamiltonian
from tasks.networks.mlp import MLP
from tasks.networks.ode_net import ODENet
from tasks.networks.resnet import ResNet
from tasks.planar import Planar

F64 = torch.float64
MOMENT = Moment(epoch=0, update=0, probe_seed=5, tangent_seeds=(1, 2, 3))


def population(kind, count=3, **settings):
    settings = {"width": 4, "depth": 3, "step": 0.3, "bias_scale": 0.3, **settings}
    generators = [generator_for("structure", n) for n in range(count)]
    return kind(
        [kind.Config(**settings)] * count,
        input_size=2, output_size=2, generators=generators, dtype=F64,
    )  # fmt: skip


def read(network, probes=20):
    task = Planar(Planar.Config(shape="donut"), seed=3, dtype=F64)
    diagnostic = Structure(Structure.Config(probes=probes))
    diagnostic.check(network, task)
    return {r.quantity.split(".")[1]: r for r in diagnostic.measure(network, task, MOMENT)}


def test_rates_of_a_linear_network_are_those_of_its_matrices():
    network = population(ResNet, activation="identity")
    found = read(network)
    K = network.weight.detach()
    for name in ("log_norm", "log_norm_max"):
        torch.testing.assert_close(found[name].values_N, log_norm(K), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["abscissa"].values_N, spectral_abscissa(K))
    assert found["log_norm"].axes == ("layer",)
    step = torch.eye(4, dtype=F64) + 0.3 * K
    product = step[:, 2] @ step[:, 1] @ step[:, 0]
    ftle = torch.linalg.matrix_norm(product, ord=2).log() / 0.9
    torch.testing.assert_close(found["ftle_max"].values_N, ftle)
    bound = log_norm(K).mean(1)
    torch.testing.assert_close(found["bound_max"].values_N, bound)
    torch.testing.assert_close(found["excess_max"].values_N, ftle - bound)
    assert (found["step"].values_N == 0.3).all()
    assert "symplectic_defect" not in found


def test_the_bound_is_kept_within_the_limit_and_broken_without():
    kept = read(population(GradientFlow, limit="rate", init_scale=6.0))
    assert (kept["excess_max"].values_N <= 1e-9).all()
    assert (kept["ftle_max"].values_N <= 0).all()
    broken = read(population(GradientFlow, limit="none", init_scale=6.0))
    assert (broken["excess_max"].values_N > 1).all()
    assert (broken["bound_max"].values_N <= 1e-12).all()


def test_the_defect_is_that_of_networks_with_momenta():
    for integrator, is_small in (("leapfrog", True), ("explicit_euler", False)):
        found = read(population(Hamiltonian, integrator=integrator, init_scale=2.0))
        defect = found["symplectic_defect"].values_N
        assert bool((defect < 1e-12).all()) is is_small
        assert found["symplectic_defect"].unit == "1"


def test_variation_is_the_length_of_the_parameters_path():
    network = population(ResNet, count=2)
    expected = []
    for role in (network.weight, network.bias):
        steps = [(role[:, k + 1] - role[:, k]).flatten(1).norm(dim=1) for k in range(2)]
        expected.append(sum(steps))
    found = variations(network)
    torch.testing.assert_close(found, torch.stack(expected, 1).detach())
    torch.testing.assert_close(read(network)["variation"].values_N, found)
    assert "variation" not in read(population(ResNet, depth=1))


def test_the_lift_is_left_out():
    network = population(ResNet)
    along = trajectories(network, torch.randn(5, 2, dtype=F64, generator=generator_for("x")))
    assert along.maps.shape == along.fields.shape == (3, 5, 3, 4, 4)


def test_a_step_backward_has_no_rate():
    network = population(ODENet)
    with torch.no_grad():
        network.steps[1, 0] = -0.1
    found = read(network)
    assert found["ftle_max"].flags == [(), ("step_not_positive",), ()]
    for name in ("ftle_max", "bound_max", "excess_max"):
        assert found[name].values_N.isnan().tolist() == [False, True, False]
    assert found["log_norm"].values_N.isfinite().all()


def test_nan_stays_with_its_member():
    network = population(Hamiltonian)
    expected = read(network)
    with torch.no_grad():
        network.weight_z[1, 0, 0, 0] = math.nan
    for name, reading in read(network).items():
        assert reading.flags == [(), ("not_a_number",), ()]
        if name != "step":
            assert reading.values_N[1].isnan().any(), name
        rows = [0, 2]
        assert torch.equal(reading.values_N[rows], expected[name].values_N[rows])


def test_networks_without_a_field_are_refused():
    task = Planar(Planar.Config(shape="donut"), seed=3)
    mlp = MLP([MLP.Config()], input_size=2, output_size=2, generators=[generator_for(0)])
    with pytest.raises(UnsuitableError, match="structure needs layers that are steps"):
        Structure(Structure.Config()).check(mlp, task)
    with pytest.raises(UnsuitableError, match="at most 100"):
        Structure(Structure.Config(probes=101)).check(population(ResNet), task)
