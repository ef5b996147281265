import pandas as pd
import pytest

from analysis.studies import settings
from analysis.studies.lab import Lab
from analysis.studies.vogt_regimes import VogtRegimes
from pipeline.folder_store import FolderStore


def largest(stable, edge, chaotic, *, orthogonal=None):
    lines = []
    for matrix, at in (("gaussian", (stable, edge, chaotic)),
                       ("orthogonal", orthogonal or (stable, edge, chaotic))):  # fmt: skip
        for gain, value in zip((0.5, 2.0, 10.0), at, strict=True):
            for network, off in enumerate((-0.01, 0.0, 0.01)):
                lines.append(
                    {"matrix": matrix, "gain": gain, "network": network,
                     "largest exponent [nats/step]": value + off}
                )  # fmt: skip
    theory = [
        {"matrix": "gaussian", "gain": gain, "largest exponent [nats/step]": value}
        for gain, value in ((0.5, -1.1), (2.0, 0.05), (10.0, 0.9))
    ]
    return {"largest": pd.DataFrame(lines), "theory": pd.DataFrame(theory)}


def verdicts(tables):
    return {f.claim: f.verdict for f in VogtRegimes(VogtRegimes.Config()).judge(tables)}


def test_three_regimes_are_told_apart():
    found = VogtRegimes(VogtRegimes.Config()).judge(largest(-1.1, 0.045, 0.8))
    assert [f.verdict for f in found] == ["reproduced"] * 5
    # Student's t with two degrees of freedom, and a spread of 0.01.
    assert found[0].low == pytest.approx(-1.1 - 4.3027 * 0.01 / 3**0.5, abs=1e-5)
    # Beyond gain 2 theory is not asked: 0.8 is far from 0.9.
    assert found[3].effect == pytest.approx(-0.005)


def test_what_does_not_hold_is_said_so():
    found = verdicts(largest(0.3, 0.2, -0.4, orthogonal=(-1, 0, 0.005)))
    assert found == {
        "stable": "reversed",
        "edge": "not reproduced",
        "chaotic": "reversed",
        "theory": "not reproduced",
        "orthogonal": "not reproduced",
    }


def test_small_networks_run_through(tmp_path):
    config = VogtRegimes.Config(units=20, gains=(1.0,), sequences=1, warmup=5, steps=20)
    study, lab = (
        VogtRegimes(config),
        Lab(settings.load("vogt_regimes", seeds=2), FolderStore(tmp_path)),
    )
    tables = study.measure(lab)
    assert len(tables["largest"]) == 2 * (4 + 3)
    assert len(tables["spectra"]) == 20 * 3 * 2
    again = study.measure(lab)
    pd.testing.assert_frame_equal(tables["largest"], again["largest"])
    assert [f.claim for f in study.judge(tables)] == [c.key for c in study.claims]
    assert len(study.draw(tables).axes) == 2
