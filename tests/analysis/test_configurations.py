from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import configurations as cf
from analysis import statistics as st
from analysis.correlations import correlations
from analysis.evidence import increments
from analysis.frame import SweepFrame
from analysis.verdict import verdict
from pipeline.records import TrialRecord
from tests.analysis import synthetic

UNITS = np.array([0, 0, 1, 2, 2, 2, 1, 0, 3, 3, 3, 4])


def test_seeds_are_no_settings() -> None:
    params = pd.DataFrame({"a": [1, 1, 2, 2.0], "seed": [0, 1, 2, 3], "b": ["x", "x", "x", None]})
    assert cf.numbered(params).tolist() == [0, 0, 1, 2]
    assert cf.numbered(params[["seed"]]).tolist() == [0, 0, 0, 0]


def test_few_configurations_and_single_trials_stand_alone() -> None:
    for repeats, num in ((1, 30), (10, 3)):
        params = pd.DataFrame({"a": np.repeat(np.arange(num), repeats)})
        assert cf.shared(params, params.index) is None
    params = pd.DataFrame({"a": np.repeat(np.arange(10), 3)})
    assert cf.shared(params, params.index).tolist() == params["a"].tolist()


def test_folds_keep_configurations_whole() -> None:
    held = []
    for train, test in cf.folds(len(UNITS), 3, np.random.default_rng(0), UNITS):
        assert not set(UNITS[train]) & set(UNITS[test])
        held += test.tolist()
    assert sorted(held) == list(range(len(UNITS)))


def test_shuffles_move_configurations_as_one() -> None:
    for order in cf.shuffles(len(UNITS), 50, np.random.default_rng(0), UNITS):
        assert sorted(order) == list(range(len(UNITS)))
        moved = UNITS[order]
        for unit in range(5):
            assert len(set(moved[unit == UNITS])) == 1


def test_a_test_over_configurations_keeps_its_level() -> None:
    rng = np.random.default_rng(0)
    unit, num = np.repeat(np.arange(30), 4), 400
    shared, alone = [], []
    for _ in range(num):
        x, y = (np.repeat(rng.normal(size=30), 4) + 0.5 * rng.normal(size=120) for _ in range(2))
        shared.append(st.correlation(x, y, "spearman", num_resamples=0, together=unit).p)
        alone.append(st.correlation(x, y, "spearman", num_resamples=0).p)
    assert 0.02 < np.mean(np.array(shared) < 0.05) < 0.09
    assert np.mean(np.array(alone) < 0.05) > 0.15


def test_a_correlation_of_repeated_trials_is_no_surer() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=40)
    y = 0.5 * x + rng.normal(size=40)
    once = st.correlation(x, y, "spearman", num_resamples=500)
    thrice = st.correlation(
        np.repeat(x, 3), np.repeat(y, 3), "spearman", num_resamples=500,
        together=np.repeat(np.arange(40), 3),
    )  # fmt: skip
    assert thrice.value == pytest.approx(once.value, abs=0.01)
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=0.15)
    assert thrice.test == "t over configurations"
    Z = rng.normal(size=(40, 2))
    held = st.partial_correlation(x, y, Z, "spearman")
    many = st.partial_correlation(
        *(np.repeat(v, 3, axis=0) for v in (x, y, Z)), "spearman",
        together=np.repeat(np.arange(40), 3),
    )  # fmt: skip
    assert many.high - many.low == pytest.approx(held.high - held.low, rel=0.35)


def repeated(trials: list[TrialRecord], seeds: int) -> SweepFrame:
    """As if each setting had been trained under several seeds."""
    changed = [
        TrialRecord(replace(t.header, params=trials[i - i % seeds].header.params), t.table)
        for i, t in enumerate(trials)
    ]
    return SweepFrame.from_records(synthetic.info(num_trials=len(trials)), changed)


def test_a_sweep_of_several_seeds() -> None:
    frame = repeated(synthetic.sweep("null", 48), 3)
    table = correlations(frame)
    assert set(table["test"]) == {"t over configurations"}
    # Sixteen configurations leave room for three covariates, not for powers of them.
    assert table["num_covariates"].max() == 3
    tested = increments(frame)
    assert (tested["n"] == 48).all()
    assert tested["p"].notna().all()
    (said,) = [c for c in verdict(frame).cautions if "configurations" in c]
    assert said.startswith("48 finished trials share 16 configurations")
