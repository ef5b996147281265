"""The identity of gradients at tiny settings, and its verdicts on made-up tables."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from analysis.studies.lab import Lab
from analysis.studies.settings import load
from analysis.studies.subspaces_identity import SubspacesIdentity

TINY = SubspacesIdentity.Config(
    units=(4, 8),
    gains=(1.0,),
    steps=(6, 9),
    sequences=2,
    shares_units=8,
    spread_units=(4, 16),
    spread_steps=40,
)


def tables(error=1e-15, power=-0.5):
    units = np.repeat([16, 64, 256], 5)
    noise = 1 + 0.01 * (7 * np.arange(15) % 5)
    return {
        "identity": pd.DataFrame({"relative_error": [1e-16, error]}),
        "spread": pd.DataFrame({"units": units, "deviation_nats": noise * units**power}),
    }


def verdicts(**settings):
    study = SubspacesIdentity(TINY)
    return [finding.verdict for finding in study.judge(tables(**settings))]


def test_verdicts():
    assert verdicts() == ["reproduced", "reproduced"]
    assert verdicts(error=2e-12, power=0.5) == ["not reproduced", "reversed"]
    assert verdicts(error=float("nan"), power=0.0) == ["not reproduced", "not reproduced"]


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_settings_are_read(scale):
    assert load("subspaces_identity", scale).study().config.sequences >= 1


def test_measures_at_tiny_settings():
    settings = dataclasses.replace(load("subspaces_identity", seeds=2), config=TINY)
    study = settings.study()
    found = study.measure(Lab(settings, store=None))
    assert len(found["identity"]) == 2 * 2 * 2 * 2
    assert found["identity"]["relative_error"].max() < 1e-12
    shares = found["shares"].groupby("vectors")["missing_share"].max()
    assert shares[8] < 1e-12
    assert shares[1] > 0.05
    assert [f.claim for f in study.judge(found)] == [c.key for c in study.claims]
    assert study.judge(found)[0].verdict == "reproduced"
    assert len(study.draw(found).axes) == 3
