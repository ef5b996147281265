"""The studies that train, from the first network to the picture, with a few small ones."""

import pytest

from analysis.studies.vogt_convergence import VogtConvergence
from analysis.studies.vogt_cost import VogtCost
from analysis.studies.vogt_discussion import VogtDiscussion
from analysis.studies.vogt_training import VogtTraining
from tests.analysis.studies.shrunk import lab_of

SMALL = {
    "task": {"characters": 12000, "batch_size": 16, "seq_len": 20},
    "execution": {"cohort_size": 12, "executor": "inline"},
}
SPECTRUM = {"at": [0, 1, 2, 3], "state": "hidden", "sequences": 2, "steps": 20, "warmup": 0}
STUDIES = {
    "vogt_convergence": (
        VogtConvergence(VogtConvergence.Config(sequences=4, steps=400)),
        {"network": {"units": 8}, "trainer": {"epochs": 1}},
    ),
    "vogt_cost": (
        VogtCost(VogtCost.Config(sequences=2, steps=20, leading=4, every=(1, 10), repeats=1)),
        {"network": {"units": 8}, "trainer": {"epochs": 1}},
    ),
    "vogt_discussion": (
        VogtDiscussion(
            VogtDiscussion.Config(
                sizes=(20, 30), strengths=(0.5, 2.0), warmup=10, steps=20, forgetting=30
            )
        ),
        {"network": {"units": 8}, "trainer": {"epochs": 1}},
    ),
    "vogt_training": (
        VogtTraining(VogtTraining.Config()),
        {
            "network": {"units": 8, "init_scale": {"choice": [0.2, 1.0]}},
            "trials": 4,
            "trainer": {"epochs": 3},
            "measure": {"lyapunov_spectrum": SPECTRUM},
        },
    ),
}


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_from_the_first_network_to_the_picture(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LYAPSWEEP_HOME", str(tmp_path / "home"))
    study, changes = STUDIES[name]
    tables = study.measure(lab_of(name, {**SMALL, **changes}, tmp_path, seeds=2))
    assert not [key for key, table in tables.items() if table.empty]
    findings = study.judge(tables)
    assert [f.claim for f in findings] == [c.key for c in study.claims]
    assert all(f.found for f in findings)
    assert len(study.draw(tables).axes) >= 2
    networks = next(t["network"].nunique() for t in tables.values() if "network" in t)
    assert networks == (4 if name == "vogt_training" else 2)
