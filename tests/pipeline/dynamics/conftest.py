"""Every test of the engine, on every device there is.

`device` is the CPU and, where torch sees one, CUDA. The tensors and networks that a test makes are
made there; random numbers are drawn on the CPU, so that seeds mean the same. What the engine makes
stays where the engine puts it. LYAPSWEEP_TEST_DEVICES names some of them only (`cuda`). Where there
is no GPU, `test_device.py` sees to it that nothing mixes devices.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tasks.networks.mlp import MLP
from tasks.networks.recurrent import Recurrent

TESTS = str(Path(__file__).parents[2])
TORCH = str(Path(torch.__file__).parent)
AT_HAND = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DEVICES = os.environ.get("LYAPSWEEP_TEST_DEVICES", ",".join(AT_HAND)).split(",")
OF_THE_CPU = {
    "test_blas": "BLAS of the CPU",
    "test_derived": "NumPy",
    "test_device": "a device of its own",
    "test_meanfield": "numbers, not tensors",
    "test_meanfield_simulated": "numbers, not tensors",
    "test_mistakes": "runs the other tests",
}
MAKERS = {
    getattr(torch, name)
    for name in (
        *("arange", "as_tensor", "empty", "eye", "from_numpy", "full", "linspace", "ones"),
        *("rand", "randint", "randn", "randperm", "tensor", "zeros"),
    )
}


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        is_any = metafunc.module.__name__.rpartition(".")[-1] not in OF_THE_CPU
        metafunc.parametrize("device", DEVICES if is_any else ["cpu"], indirect=True)


@pytest.fixture(autouse=True)
def device(request, monkeypatch):
    """Where this test's tensors and networks are."""
    found = torch.device(request.param)
    for network_type in (MLP, Recurrent):
        monkeypatch.setitem(network_type.__init__.__kwdefaults__, "device", found)
    with MadeOn(found):
        yield found


class MadeOn(TorchFunctionMode):
    """Puts on a device what tests make, and only that."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = function(*args, **kwargs)
        is_placed = kwargs.get("device") is not None
        if function not in MAKERS or is_placed or not _is_called_by_a_test():
            return made
        return made.to(self.device)


def _is_called_by_a_test():
    """Whether the first caller outside torch and this file is a test."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith((TORCH, __file__)):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(TESTS)
