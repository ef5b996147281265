"""Settings of every test: one torch thread, no ambient configuration, quiet libraries."""

import os
import warnings

import pytest
import torch
from hypothesis import settings

# Read by MLflow when it is imported, so before any test can set them.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"

# Machines that run tests are often busy: a slow example is no fault.
settings.register_profile("lyapsweep", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("lyapsweep")


@pytest.fixture(autouse=True)
def _calm(monkeypatch):
    """A user's environment decides no test; torch threads change timing and, rarely, bits."""
    torch.set_num_threads(1)
    for name in (
        "LYAPSWEEP_STORE",
        "LYAPSWEEP_HOME",
        "LYAPSWEEP_OPTUNA",
        "LYAPSWEEP_ARTIFACTS",
        "MLFLOW_TRACKING_URI",
        "RAY_ADDRESS",
    ):
        monkeypatch.delenv(name, raising=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*experimental.*")
        yield
