"""Determinants and inverses of batches, whatever the number of threads."""

import subprocess
import sys

import torch

from pipeline.dynamics.arithmetic import inverse, log_abs_det
from tasks.base import generator_for

F64 = torch.float64
ON_TWO_THREADS = """
import torch
from pipeline.dynamics.arithmetic import inverse, log_abs_det
from pipeline.dynamics.spectrum import lyapunov_spectrum
from tasks.base import generator_for
from tasks.networks.lstm import LSTM

torch.set_num_threads(2)
J = torch.randn(4, 300, 300, generator=generator_for("threads"), dtype=torch.float64)
by_svd = torch.linalg.svdvals(J).log().sum(-1)
assert (log_abs_det(J) - by_svd).abs().max() < 1e-9
assert (inverse(J) @ J - torch.eye(300, dtype=torch.float64)).abs().max() < 1e-9
network = LSTM(
    [LSTM.Config(units=260)] * 3,
    input_size=2,
    output_size=2,
    generators=[generator_for("threads", n) for n in range(3)],
    dtype=torch.float64,
)
x = torch.randn(3, 4, 2, generator=generator_for("threads x"), dtype=torch.float64)
for state in ("full", "hidden"):
    spectrum = lyapunov_spectrum(network, x, state=state, warmup=0)
    assert spectrum.self_check_passed.all(), (state, spectrum.self_check)
print("right")
"""


def test_batches_are_right_on_several_threads():
    """torch 2.13 with MKL: LU of batches in parallel gives wrong determinants, silently."""
    run = subprocess.run(
        [sys.executable, "-c", ON_TWO_THREADS], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.strip() == "right", run.stderr
    assert "oneMKL ERROR" not in run.stdout + run.stderr


def test_singular_matrices_and_leading_axes():
    J = torch.randn(2, 3, 4, 4, generator=generator_for("det"), dtype=F64)
    J[1, 2, 0] = 0
    logs = log_abs_det(J)
    assert logs.shape == (2, 3)
    assert logs[1, 2] == -torch.inf
    torch.testing.assert_close(logs[0, 0].exp(), torch.linalg.det(J[0, 0]).abs())
    found = inverse(J)
    assert found[1, 2].isnan().all()
    torch.testing.assert_close(found[0] @ J[0], torch.eye(4, dtype=F64).expand(3, 4, 4))
