"""Verdicts on made-up effects, scores against their definitions, and the study at tiny settings."""

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.studies.input_scores import (
    ADJOINT,
    GRADIENT,
    LOCAL,
    NEXT,
    NEXT_FIVE,
    RANDOM,
    _ahead,
)
from analysis.studies.lab import Lab
from analysis.studies.settings import Settings, load
from analysis.studies.subspaces_perturbation import SubspacesPerturbation, _against
from pipeline import config
from pipeline.folder_store import FolderStore

PARTS = ("digits", "recall", "lorenz")


def changes(levels, seeds=6):
    """Made-up changes: `levels` of the loss increase by choice, the same everywhere."""
    rows = []
    for part in PARTS:
        for choice in (RANDOM, LOCAL, NEXT, NEXT_FIVE, ADJOINT, GRADIENT):
            for k in (4, 8):
                for seed in range(seeds):
                    wobble = 0.01 * np.sin(seed + 3 * len(choice) + k)
                    level = levels.get(choice, 0.5) + wobble
                    rows.append(
                        {
                            "data": part,
                            "choice": choice,
                            "k": k,
                            "network": seed,
                            "loss_increase": level,
                            "output_change": level,
                            "answers_changed": level,
                        }
                    )
    return pd.DataFrame(rows)


def verdicts(levels):
    table = changes(levels)
    judged = {"digits": 8, "recall": 4, "lorenz": 4}
    study = SubspacesPerturbation(SubspacesPerturbation.Config())
    effects = _against(table, RANDOM, judged)
    assert effects["holm_p"].notna().sum() == len(study.claims), "tested is what is claimed"
    found = study.judge({"effects": effects})
    assert [f.claim for f in found] == [c.key for c in study.claims]
    return {f.claim: f.verdict for f in found}


def test_verdicts():
    found = verdicts({LOCAL: 0.3, ADJOINT: 0.9, GRADIENT: 0.9})
    assert {found[f"local_{p}"] for p in PARTS} == {"reversed"}
    assert {found[f"adjoint_{p}"] for p in PARTS} == {"reproduced"}
    assert found["logits"] == "reversed"
    assert found["baseline"] == "not reproduced"
    found = verdicts({LOCAL: 0.7, ADJOINT: 0.4, GRADIENT: 0.9})
    assert {found[f"local_{p}"] for p in PARTS} == {"reproduced"}
    assert {found[f"adjoint_{p}"] for p in PARTS} == {"reversed"}
    assert found["baseline"] == "reversed"
    assert set(verdicts({}).values()) == {"not reproduced"}


def test_the_next_steps_are_those_after():
    local = torch.arange(8.0).expand(2, 8)
    assert _ahead(local, 1, 2)[0].tolist() == [1, 2, 3, 4, 5, 6, 7, -torch.inf]
    assert _ahead(local, 1, 6)[1].tolist() == [3, 4, 5, 5.5, 6, 6.5, 7, -torch.inf]


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_settings_are_read(scale):
    assert set(load("subspaces_perturbation", scale).sweeps) == set(PARTS)


def sweep(task, network):
    return config.check(
        {
            "sampler": {"name": "grid"},
            "trials": 2,
            "task": task,
            "network": network,
            "trainer": {"epochs": 1},
            "execution": {"cohort_size": 2, "executor": "inline", "keep_weights": True},
        }
    )


def test_runs_at_tiny_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("LYAPSWEEP_HOME", str(tmp_path / "home"))
    rnn = {"name": "rnn", "units": 6, "init": "orthogonal"}
    digits = {"name": "sequential_digits", "order": "row", "scaling": "unit", "train_size": 64}
    recall = {"name": "delayed_recall", "steps": 6, "updates": 2, "validation_size": 20}
    lorenz = {"name": "chaotic_series", "steps": 8, "updates": 2, "series": 5, "length": 60}
    sweeps = {
        "digits": sweep(digits, rnn),
        "recall": sweep(recall, rnn),
        "lorenz": sweep(lorenz, {"name": "gru", "units": 4}),
    }
    own = SubspacesPerturbation.Config(sequences=5, counts=(1, 2), judged=1, judged_short=1)
    study = Settings("subspaces_perturbation", "small", 2, own, sweeps)
    built = study.study()
    tables = built.measure(Lab(study, FolderStore(tmp_path / "store")))
    table = tables["changes"]
    assert len(table) == 3 * 2 * 6 * 2  # data, networks, choices, counts
    assert set(table["steps"]) == {8, 6}
    assert np.isfinite(table["loss_increase"]).all()
    assert (table["output_change"] > 0).all()
    assert len(built.judge(tables)) == len(built.claims)
    assert len(built.draw(tables).axes) == 3
