"""Verdicts on made-up shares, and the study at tiny settings."""

import numpy as np
import pandas as pd
import pytest

from analysis.studies.lab import Lab
from analysis.studies.settings import Settings, load
from analysis.studies.sigmas import effects
from analysis.studies.subspaces_alignment import SubspacesAlignment
from pipeline.folder_store import FolderStore
from tests.analysis.studies.shrunk import digits_and_recall

PARTS = ("digits", "recall")


def tables(*, early=0.25, late=0.2, shuffled=0.1, forward=0.8, backward=0.2, seeds=6):
    study = SubspacesAlignment(SubspacesAlignment.Config())
    spans, horizons = [], []
    for part in PARTS:
        for seed in range(seeds):
            wobble = 0.005 * np.sin(3 * seed)
            by_epoch = {0: 0.08, 5: early + wobble, 50: late - wobble}
            for epoch, share in by_epoch.items():
                common = {"data": part, "network": seed, "epoch": epoch, "vectors": 5}
                spans.append({**common, "basis": "backward", "share": share, "chance": 5 / 64})
                spans.append({**common, "basis": "backward_shuffled", "share": shuffled})
            for basis, cosine in (("forward", forward), ("backward", backward)):
                for steps in (10, 40):
                    horizons.append(
                        {
                            "data": part,
                            "network": seed,
                            "epoch": 5,
                            "basis": basis,
                            "steps_to_loss": steps,
                            "squared_cosine": (cosine if steps == 40 else 0.5) + wobble * cosine,
                        }
                    )
    found = {"spans": pd.DataFrame(spans), "horizons": pd.DataFrame(horizons)}
    each = [t.assign(data=p, question=q) for p in PARTS for q, t in study._effects(found, p)]
    found["effects"] = effects(pd.concat(each), ["data", "question"], "effect")
    return study, found


def verdicts(**levels):
    study, found = tables(**levels)
    judged = study.judge(found)
    assert [f.claim for f in judged] == [c.key for c in study.claims]
    return {f.claim.removesuffix("_digits"): f.verdict for f in judged if "digits" in f.claim}


def test_verdicts():
    assert set(verdicts().values()) == {"reproduced"}
    assert verdicts(early=0.06, late=0.05, shuffled=0.2, forward=0.1) == dict.fromkeys(
        ("early", "lasting", "labels", "adjoint"), "reversed"
    )
    found = verdicts(early=0.08, late=0.08, shuffled=0.08, forward=0.2)
    assert set(found.values()) == {"not reproduced"}


def test_the_levels_are_told():
    study, found = tables()
    assert "0.080 at epoch 0, 0.250 at epoch 5" in study.judge(found)[0].found


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_settings_are_read(scale):
    assert set(load("subspaces_alignment", scale).sweeps) == set(PARTS)


def test_runs_at_tiny_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("LYAPSWEEP_HOME", str(tmp_path / "home"))
    tree = {
        "sampler": {"name": "grid"},
        "trials": 2,
        "network": {"name": "rnn", "units": 8, "init": "orthogonal"},
        "trainer": {"epochs": 2},
        "measure": {"gradient_alignment": {"at": [0, 1, 2], "sequences": 4, "ranks": [1, 5]}},
        "execution": {"cohort_size": 2, "executor": "inline", "keep_weights": True},
    }
    own = SubspacesAlignment.Config(early=1)
    settings = Settings("subspaces_alignment", "small", 2, own, digits_and_recall(tree))
    study = settings.study()
    found = study.measure(Lab(settings, FolderStore(tmp_path / "store")))
    spans = found["spans"]
    assert set(spans["vectors"]) == {1, 5}
    assert set(spans["basis"]) >= {"backward", "forward", "backward_shuffled", "halves"}
    assert spans["share"].between(0, 1).all()
    np.testing.assert_allclose(spans["chance"], spans["vectors"] / 8)
    assert set(found["vectors"]["basis"]) == {"backward", "forward", "covariant", "adjoint"}
    assert found["horizons"]["steps_to_loss"].min() == 0
    assert set(found["norms"]["epoch"]) == {0, 1, 2}
    assert len(study.judge(found)) == 8
    assert len(study.draw(found).axes) == 6
