"""Measurements stay on the device of what is measured; without a GPU, on a pretended one."""

import importlib.util
from pathlib import Path

import pytest
import torch

from pipeline.dynamics.clv import covariant_vectors
from pipeline.dynamics.ftle import finite_time_exponents, ftle_field, input_ftle, max_ftle
from pipeline.dynamics.local import local_exponents
from pipeline.dynamics.spectrum import lyapunov_spectrum
from pipeline.dynamics.structure import contraction, log_norm, symplectic_defect
from tasks.base import generator_for
from tasks.networks.gru import GRU
from tasks.networks.lstm import LSTM
from tasks.networks.mlp import MLP
from tasks.networks.rnn import RNN

_SPEC = importlib.util.spec_from_file_location("elsewhere", Path(__file__).parent / "elsewhere.py")
elsewhere = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(elsewhere)

F64 = torch.float64
CPU = torch.device("cpu")
ALONG_AN_ORBIT = {
    "all": lambda n, x: lyapunov_spectrum(n, x, warmup=4, t_on=2).per_sequence,
    "few": lambda n, x: lyapunov_spectrum(n, x, k=2, state="hidden").per_sequence,
    "errors": lambda n, x: lyapunov_spectrum(n, x, k=2).standard_error,
    "history": lambda n, x: lyapunov_spectrum(n, x, k=2).history,
    "closed": lambda n, x: lyapunov_spectrum(n, x, k=2, loop="closed", steps=20).exponents,
    "local": lambda n, x: local_exponents(n, x, k=2).exponents,
    "covariant": lambda n, x: covariant_vectors(n, x, k=2).growth,
    "inputs": lambda n, x: input_ftle(n, x),
    # Frames are triangular on the CPU and orthonormal there; beyond 32, some meet rounding.
    "triangular": lambda n, x: lyapunov_spectrum(n, x[:, :12], t_on=1).per_sequence[..., :32],
}
BY_LAYER = {
    "max": max_ftle,
    "field": lambda n, x: ftle_field(n, x).exponents,
    "directions": lambda n, x: ftle_field(n, x).directions.abs(),
    "sweeps": lambda n, x: ftle_field(n, x, layer=2, method="sweeps").exponents,
    "spectrum": lambda n, x: finite_time_exponents(n, x, k=2),
}
OF_MATRICES = {
    "given": lambda J: lyapunov_spectrum(J, warmup=2).exponents,
    "local": lambda J: local_exponents(J).exponents,
    "norm": log_norm,
    "defect": symplectic_defect,
    "contraction": lambda J: contraction(J[None], J[None], 0.1).ftle,
}


def same_there(measure, *makers):
    """Both ways, and that nothing is left behind."""
    expected = measure(*(make(CPU) for make in makers))
    with elsewhere.pretended():
        found = measure(*(make(elsewhere.THERE) for make in makers))
        assert isinstance(found, elsewhere.There)
        torch.testing.assert_close(found.cpu(), expected, atol=1e-8, rtol=1e-8)


def sequences(device):
    return torch.randn((2, 40, 3), generator=generator_for("x"), dtype=F64).to(device)


@pytest.mark.parametrize("network_type", [RNN, GRU, LSTM])
@pytest.mark.parametrize("name", ALONG_AN_ORBIT)
def test_along_an_orbit(name, network_type):
    units = 64 if name == "triangular" else 4

    def network(device):
        generators = [generator_for("device", n) for n in range(2)]
        configs = [network_type.Config(units=units, init_scale=1.5)] * 2
        sizes = {"input_size": 3, "output_size": 3, "generators": generators}
        return network_type(configs, dtype=F64, device=device, **sizes)

    same_there(ALONG_AN_ORBIT[name], network, sequences)


@pytest.mark.parametrize("name", BY_LAYER)
def test_by_layer(name):
    def network(device):
        configs = [MLP.Config(width=6, depth=3, init_scale=1.5)] * 2
        sizes = {"input_size": 3, "output_size": 2}
        generators = [generator_for("device", n) for n in range(2)]
        return MLP(configs, generators=generators, dtype=F64, device=device, **sizes)

    same_there(BY_LAYER[name], network, lambda device: sequences(device)[0])


@pytest.mark.parametrize("name", OF_MATRICES)
def test_of_matrices(name):
    J = torch.randn((30, 4, 4), generator=generator_for("J"), dtype=F64)
    same_there(OF_MATRICES[name], J.to)


def test_a_tensor_of_another_device_would_be_noticed():
    with elsewhere.pretended():
        there = torch.eye(2).to(elsewhere.THERE)
        for mixed in (lambda: there @ torch.eye(2), lambda: torch.eye(2) + there):
            with pytest.raises(RuntimeError, match="and of the CPU"):
                mixed()
        with pytest.raises(TypeError, match="can't convert"):
            there.numpy()
