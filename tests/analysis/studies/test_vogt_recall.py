import math

import pandas as pd
import pytest

from analysis.frame import SweepFrame
from analysis.studies import early_readings as er
from analysis.studies.vogt_recall import VogtRecall
from tests.analysis import synthetic
from tests.analysis.studies.readings import correlations

HELD = ((er.DISTANCE, er.PLAIN), (er.DISTANCE, er.GIVEN_LOSS))


def gains(*lines):
    return pd.DataFrame(
        [
            {
                "epoch": epoch,
                "networks": 64,
                "smaller error [share]": value,
                "low": low,
                "high": high,
                "p": 0.01,
                "power against a tenth": 0.3,
                "problem": problem,
            }
            for epoch, value, low, high, problem in lines
        ]
    )


def judge(values, increments):
    tables = {
        "correlations": correlations(1, dict(zip(HELD, values, strict=True))),
        "increments": increments,
    }
    return {f.claim: f for f in VogtRecall(VogtRecall.Config()).judge(tables)}


def test_claims_that_hold():
    table = gains((1, 0.1, 0.02, 0.2, ""), (4, 0.3, 0.1, 0.4, ""))
    found = judge([(0.6, 0.4, 0.7)] * 2, table)
    assert {f.verdict for f in found.values()} == {"reproduced"}
    assert "+10.0 % [+2.0, +20.0] smaller" in found["first_increment"].found
    assert "p = 0.010, 64 networks" in found["first_increment"].found


def test_claims_that_do_not():
    nan = math.nan
    table = gains((1, -0.1, -0.2, -0.02, ""), (4, nan, nan, nan, "not computable: 12 trials"))
    found = judge([(-0.6, -0.7, -0.4), (0.1, -0.1, 0.3)], table)
    assert [f.verdict for f in found.values()] == [
        "reversed",
        "not reproduced",
        "reversed",
        "not reproduced",
    ]
    assert found["later_increment"].found == "After epoch 4: not computable: 12 trials"


def test_increments_are_those_of_a_planted_effect():
    frame = SweepFrame.from_records(synthetic.info(), synthetic.sweep("planted", n=60))
    study = VogtRecall(VogtRecall.Config(permutations=19))
    found = study._increment(frame, frame.measured_epochs[1])
    assert found["networks"] == 60
    assert found["smaller error [share]"] > 0.1
    assert found["p"] == pytest.approx(0.05)
