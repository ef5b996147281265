"""The studies that have real data in the papers, on these data, with few networks.

Data are looked for in $LYAPSWEEP_DATA, else in shared/data beside the checkout.
"""

import math
import os
from pathlib import Path

import pytest

from analysis.studies import early_readings as er
from analysis.studies import settings
from tasks import datasets
from tests.analysis.studies.shrunk import lab_of

pytestmark = pytest.mark.slow


@pytest.fixture
def needs(monkeypatch, tmp_path):
    """Skips where a set is not here."""
    beside = Path(__file__).parents[4] / "shared" / "data"
    if datasets.FOLDER_VARIABLE not in os.environ and beside.is_dir():
        monkeypatch.setenv(datasets.FOLDER_VARIABLE, str(beside))
    monkeypatch.setenv("LYAPSWEEP_HOME", str(tmp_path / "home"))

    def require(name):
        try:
            datasets.locate(name)
        except datasets.MissingDataError as error:
            pytest.skip(str(error))

    return require


def test_motion_capture_of_cmu(needs, tmp_path):
    needs("cmu_mocap")
    changes = {
        "trials": 8,
        "sampler": {"name": "qmc", "batch": 8},
        "task": {"source": "cmu", "hop": 25},
        "network": {"units": 32},
        "trainer": {"epochs": 4},
        "measure": {"lyapunov_spectrum": {
            "at": [3], "state": "hidden", "sequences": 2, "steps": 60, "warmup": 0}},
        "execution": {"cohort_size": 8, "executor": "inline"},
    }  # fmt: skip
    study = settings.load("vogt_mocap").study()
    tables = study.measure(lab_of("vogt_mocap", changes, tmp_path))
    early = tables["networks"]
    assert len(early) == 16
    # In variances of the training frames: less than who always says the mean.
    assert early[er.FINAL].min() < 0.7
    assert early[er.LARGEST].notna().all()
    assert [f.claim for f in study.judge(tables)] == [c.key for c in study.claims]


def test_war_and_peace(needs, tmp_path):
    needs("war_and_peace")
    changes = {
        "trials": 8,
        "task": {"text": "war_and_peace", "characters": 40000},
        "trainer": {"epochs": 3},
        "measure": {"lyapunov_spectrum": {
            "at": [2], "state": "hidden", "sequences": 2, "steps": 60, "warmup": 0}},
        "execution": {"cohort_size": 8, "executor": "inline"},
    }  # fmt: skip
    study = settings.load("vogt_charlm").study()
    tables = study.measure(lab_of("vogt_charlm", changes, tmp_path))
    early = tables["networks"]
    assert len(early) == 8
    # Frequencies of single characters alone bring it to 3.1, of 82 that there are.
    assert early[er.FINAL].max() < math.log(82)
    assert early[er.FINAL].min() < 3.2
    assert [f.claim for f in study.judge(tables)] == [c.key for c in study.claims]
