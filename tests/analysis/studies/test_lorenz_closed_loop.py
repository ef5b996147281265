"""Verdicts on made-up exponents, and the whole study at tiny settings."""

import math

import pandas as pd
import pytest

from analysis.studies.lab import Lab
from analysis.studies.lorenz_closed_loop import LorenzClosedLoop
from analysis.studies.settings import Settings, load
from pipeline import config
from pipeline.folder_store import FolderStore

RIGHT = {"lambda_1": 0.92, "lambda_2": 0.01, "lambda_3": -5.6, "driven": -5.5}


def networks(*changes):
    flow = {"flow_1": 0.9056, "flow_2": 0.0, "flow_3": -14.5723}
    rows = [{"network": "gru", "seed": n, **flow, **RIGHT, **c} for n, c in enumerate(changes)]
    return {"networks": pd.DataFrame(rows)}


def verdicts(*changes):
    study = LorenzClosedLoop(LorenzClosedLoop.Config())
    return [f.verdict == "reproduced" for f in study.judge(networks(*changes))]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [True, True, True]),
        ({"lambda_1": 0.80}, [False, True, True]),
        ({"lambda_1": 1.00}, [False, True, True]),
        ({"lambda_2": -0.06}, [True, False, True]),
        ({"lambda_3": -14.0}, [True, True, False]),  # right, although it remembers too long
        ({"driven": -20.0}, [True, True, False]),
        ({"lambda_3": -14.0, "driven": -20.0}, [True, True, True]),
        (dict.fromkeys(RIGHT, math.nan), [False, False, False]),  # diverged in training
    ],
)
def test_one_network_decides(change, expected):
    assert verdicts({}, {}, change) == expected


def test_failures_are_counted_in_words():
    study = LorenzClosedLoop(LorenzClosedLoop.Config())
    found = study.judge(networks({}, {"lambda_1": -0.2}, {"lambda_1": 0.9}))[0]
    assert "2 of 3 are within 10 %" in found.found
    assert found.low == -0.2


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_settings_are_read(scale):
    settings = load("lorenz_closed_loop", scale)
    assert set(settings.config.parts) == set(settings.sweeps)


def test_runs_at_tiny_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("LYAPSWEEP_HOME", str(tmp_path / "home"))
    tree = {
        "sampler": {"name": "grid"},
        "trials": 2,
        "task": {"name": "chaotic_series", "series": 2, "length": 820, "steps": 20, "updates": 2},
        "network": {"name": "gru", "units": 4},
        "trainer": {"epochs": 1},
        "execution": {"cohort_size": 2, "executor": "inline", "keep_weights": True},
    }
    own = LorenzClosedLoop.Config(
        parts=("gru",), sequences=1, lead_in=10, warmup=5, steps=100, exponents=3, driven_steps=20
    )
    settings = Settings("lorenz_closed_loop", "small", 2, own, {"gru": config.check(tree)})
    study = settings.study()
    tables = study.measure(Lab(settings, FolderStore(tmp_path / "store")))
    assert tables["networks"]["seed"].tolist() == [0, 1]
    assert len(tables["exponents"]) == 2 * 3
    flow = tables["exponents"].groupby("exponent")["flow_nats_per_unit_time"].first()
    assert flow.tolist() == [0.9056, 0.0, -14.5723]
    assert set(tables["orbits"]["network"]) == {"flow", "gru"}
    claims = [claim.key for claim in study.claims]
    assert [finding.claim for finding in study.judge(tables)] == claims
    assert study.judge(tables)[0].verdict != "reproduced", "two updates teach nothing"
    assert study.draw(tables).axes
