import numpy as np
import pandas as pd
import pytest

from analysis.studies import early_readings as er
from analysis.studies.vogt_mocap import VogtMocap
from tests.analysis.studies.readings import correlations, networks

ONE, JOINT = "start scale alone", "three settings together"


def judge(one, joint, given, *, tie):
    scale = np.linspace(0.05, 0.5, 30)
    exponents = tie * scale + 0.2 * (1 - abs(tie)) * np.sin(40 * scale)
    correlation = [
        correlations(3, {(er.MEAN, er.PLAIN): one}).assign(design=ONE),
        correlations(3, {(er.MEAN, er.PLAIN): joint, (er.MEAN, er.GIVEN): given}).assign(
            design=JOINT
        ),
    ]
    alone = networks(3, exponents, scale, **{"start scale p": scale}).assign(design=ONE)
    tables = {"correlations": pd.concat(correlation), "networks": alone}
    return {f.claim: f for f in VogtMocap(VogtMocap.Config(epoch=3)).judge(tables)}


def test_claims_that_hold():
    below = (-0.5, -0.7, -0.3)
    found = judge(below, below, below, tie=-1.0)
    assert {f.verdict for f in found.values()} == {"reproduced"}
    # The sign of the tie does not matter, nor is it claimed.
    assert found["follows"].effect == pytest.approx(-1)


def test_one_parameter_can_show_the_opposite_of_what_is_left_of_it():
    found = judge((0.9, 0.8, 0.95), (0.4, 0.2, 0.6), (-0.1, -0.4, 0.1), tie=0.1)
    assert [f.verdict for f in found.values()] == [
        "reversed",
        "not reproduced",
        "reversed",
        "not reproduced",
    ]
    assert "+1.00" in found["follows"].found
