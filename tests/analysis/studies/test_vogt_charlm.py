import numpy as np

from analysis.studies import early_readings as er
from analysis.studies.vogt_charlm import VogtCharlm
from tests.analysis.studies.readings import correlations, networks

KEYS = [
    (er.DISTANCE, er.PLAIN),
    (er.MEAN, er.PLAIN),
    (er.DISTANCE, er.GIVEN),
    (er.MEAN, er.GIVEN),
    (er.DISTANCE, er.GIVEN_LOSS),
]


def judge(values, exponents, losses):
    tables = {
        "correlations": correlations(2, dict(zip(KEYS, values, strict=True))),
        "networks": networks(2, exponents, losses),
    }
    study = VogtCharlm(VogtCharlm.Config())
    return {f.claim: f for f in study.judge(tables)}


def test_claims_that_hold():
    rng = np.random.default_rng(1)
    below, above = np.linspace(-2, -0.4, 30), np.linspace(-0.3, -0.01, 30)
    # Losses fall towards -0.35 nats, half a bit below 0, and stay where they are beyond.
    losses = np.concatenate([-below, 0.3 + 0.01 * rng.normal(size=30)])
    found = judge([(0.4, 0.2, 0.6)] * 5, np.concatenate([below, above]), losses)
    assert {f.verdict for f in found.values()} == {"reproduced"}
    assert "+1.00" in found["saturates"].found
    assert "among 30 above" in found["saturates"].found


def test_claims_that_turn_or_have_no_networks():
    values = [(-0.4, -0.6, -0.2)] * 2 + [(0.1, -0.1, 0.3)] * 3
    found = judge(values, np.linspace(-2, -0.5, 20), np.arange(20.0))
    assert [f.verdict for f in found.values()] == [
        "reversed",
        "reversed",
        "not reproduced",
        "not reproduced",
        "not reproduced",
        "not reproduced",
    ]
    assert "20 networks lie below -0.5 bits and 0 above" in found["saturates"].found


def test_gains_that_go_on_do_not_saturate():
    exponents = np.linspace(-1.0, -0.01, 40)
    found = judge([(0.4, 0.2, 0.6)] * 5, exponents, -exponents)
    assert found["saturates"].verdict == "not reproduced"
