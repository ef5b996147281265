import numpy as np
import pandas as pd
import pytest

from analysis.studies.vogt_cost import VogtCost, _kept

KINDS = {
    "all exponents, hidden state": 0.02,
    "16 leading, hidden state": 0.01,
    "all exponents, full state": 0.03,
    "16 leading, full state": 0.012,
}


def tables(*, factor=1.0, leading=1.0, kept=1.0, lifted=2.0):
    costs = [
        {
            "network": network,
            "measured": kind,
            "seconds": share * 10 * (1 + 0.01 * network) * (leading if "lead" in kind else 1),
            "seconds of training": 10.0,
            "share of the training time": share * factor * (1 + 0.01 * network),
        }
        for network in range(3)
        for kind, share in KINDS.items()
    ]
    by_t_on = [
        {
            "network": network,
            "precision": "float32",
            "T_ON [steps]": t_on,
            "exponents within 1 % of T_ON = 1": kept - 0.001 * network,
            "lowest quarter above T_ON = 1 [nats/step]": lifted + 0.01 * network,
        }
        for network in range(3)
        for t_on in (1, 5, 10, 20)
    ]
    return {"costs": pd.DataFrame(costs), "t_on": pd.DataFrame(by_t_on)}


def judge(found):
    return {f.claim: f for f in VogtCost(VogtCost.Config()).judge(found)}


def test_claims_that_hold():
    found = judge(tables())
    assert {f.verdict for f in found.values()} == {"reproduced"}
    assert found["leading"].effect == pytest.approx(0.4)


def test_claims_that_do_not():
    found = judge(tables(factor=10, leading=5, kept=0.5, lifted=-1))
    assert [f.verdict for f in found.values()] == [
        "reversed",
        "reversed",
        "reversed",
        "not reproduced",
        "reversed",
    ]


def test_a_plateau_counts_as_changed_and_as_lifted():
    truth = -np.arange(1.0, 9)
    flat = np.maximum(truth, -6.0)
    (one, two) = _kept({("float64", 1): truth, ("float32", 10): flat}, number=3)
    assert one["exponents within 1 % of T_ON = 1"] == 1
    assert two["exponents within 1 % of T_ON = 1"] == 6 / 8
    assert two["lowest quarter above T_ON = 1 [nats/step]"] == pytest.approx(7.5 - 6)
