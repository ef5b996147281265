"""How often the verdict claims something where nothing is, over many made-up sweeps."""

from collections import Counter

import pytest

from analysis import correlations, evidence
from analysis import verdict as vd
from analysis.frame import SweepFrame
from tests.analysis import synthetic


def kinds(effect: synthetic.Effect, n: int, num_sweeps: int, seed: int = 0) -> Counter[str]:
    found: Counter[str] = Counter()
    for number in range(num_sweeps):
        trials = synthetic.curved(effect, n, seed=seed + number)
        found[vd.decided(SweepFrame.from_records(synthetic.info(num_trials=n), trials))[0]] += 1
    return found


@pytest.fixture(autouse=True)
def _without_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions rest on p values, and none on the price of measuring."""
    monkeypatch.setattr(evidence, "_against", lambda *_: {})
    monkeypatch.setattr(correlations, "NUM_RESAMPLES", 0)
    monkeypatch.setattr(evidence, "NUM_REPEATS", 1)
    monkeypatch.setattr(evidence, "NUM_FOLDS", 5)
    monkeypatch.setattr(evidence, "NUM_PERMUTATIONS", 199)


def test_a_few_sweeps_without_news() -> None:
    found = kinds("null", 36, 3) + kinds("confounded", 36, 3)
    # Of six at one in ten, three or more are hints once in sixty times.
    assert found["hint"] + found["adds"] <= 2
    assert found["adds"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("n", [32, 60, 150])
@pytest.mark.parametrize("effect", ["null", "confounded"])
def test_claims_are_as_rare_as_stated(effect: synthetic.Effect, n: int) -> None:
    num = 200
    found = kinds(effect, n, num)
    # Two binomial errors of 200 above the rates that the verdict states.
    assert found["hint"] / num <= 0.1 + 0.042, found
    assert found["adds"] / num <= 0.05 + 0.031, found
