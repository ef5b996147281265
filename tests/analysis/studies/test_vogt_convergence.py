import numpy as np
import pandas as pd
import pytest

from analysis.studies.vogt_convergence import VogtConvergence, _by_step, _mean_rate


def tables(power, *, off=0.001, stated=0.001, exponent=-0.2):
    steps = np.unique(np.geomspace(10, 3200, 20).astype(int))
    estimates = pd.concat(
        pd.DataFrame(
            {
                "network": network,
                "steps T": steps,
                "largest exponent [nats/step]": exponent,
                "difference of λ₁(T) and λ₁(10 T), root mean square [nats/step]": np.where(
                    10 * steps <= 3200, (1 + network) * steps.astype(float) ** power, np.nan
                ),
            }
        )
        for network in range(3)
    )
    errors = [
        {
            "network": network,
            "warm-up [steps]": warmup,
            "standard error of the run [nats/step]": stated,
            "difference from the whole run [nats/step]": off * (1 + 0.1 * network),
        }
        for network in range(3)
        for warmup in (0, 100)
    ]
    return {"estimates": estimates, "errors": pd.DataFrame(errors)}


def judge(found):
    return {f.claim: f for f in VogtConvergence(VogtConvergence.Config()).judge(found)}


def test_a_difference_that_falls_as_1_over_t_is_one():
    found = judge(tables(-1.0))
    assert {f.verdict for f in found.values()} == {"reproduced"}
    assert found["rate"].effect == pytest.approx(-1)
    # √(16/10) times the error of 16 sequences, as a share of 0.2.
    assert found["spread"].effect == pytest.approx(0.001 * 1.6**0.5 / 0.2)


def test_chance_that_falls_as_1_over_the_root_is_none():
    found = judge(tables(-0.5, off=0.2, stated=0.02))
    assert {f.verdict for f in found.values()} == {"not reproduced"}
    assert found["rate"].effect == pytest.approx(-0.5)
    assert "0.09 without a warm-up, 0.09 after" in found["error_bars"].found


def test_blocks_are_spread_over_their_steps():
    sums = _by_step(np.array([[4.0, 8.0, 3.0]]), np.array([4, 4, 2]))
    assert sums[0].tolist() == [1, 2, 3, 4, 6, 8, 10, 12, 13.5, 15]
    assert _mean_rate(sums, 0, 10) == pytest.approx([1.5])
    assert _mean_rate(sums, 4, 4) == pytest.approx([2.0])
