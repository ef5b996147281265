from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import features as ft
from analysis.early_view import EarlyView
from analysis.frame import AnalysisError, SweepFrame
from pipeline import records
from pipeline.records import TrialRecord
from tests.analysis import synthetic


def test_store_and_records_give_the_same_frame(tmp_path: Path) -> None:
    trials = synthetic.sweep("planted", 8, failed=1)
    direct = SweepFrame.from_records(synthetic.info(num_trials=8), trials)
    read = SweepFrame.from_store(synthetic.stored(tmp_path, trials), "made-up")
    pd.testing.assert_frame_equal(read.trials, direct.trials)
    pd.testing.assert_frame_equal(read.scalars, direct.scalars)
    assert read.info == direct.info


def test_trials_table(frames: dict[str, SweepFrame]) -> None:
    frame = frames["planted"]
    trials = frame.trials
    assert trials["state"].value_counts().to_dict() == {
        "complete": 52, "diverged": 7, "failed": 1,
    }  # fmt: skip
    assert trials["target"].notna().equals(trials["state"] == "complete")
    rows = frame.scalars
    last = rows[(rows["trial"] == 3) & (rows["quantity"] == "val_loss")].sort_values("epoch")
    assert trials.loc[3, "target"] == last["value"].iloc[-1]
    assert trials.loc[3, "best"] == last["value"].min()
    assert trials.loc[3, "seconds_training"] == 2.0 * synthetic.EPOCHS
    assert trials["trainer.learning_rate"].dtype == np.float64
    assert trials["network.units"].dtype == np.int64
    assert frame.score == ("bits_per_character", False)
    assert frame.ranges["trainer.learning_rate"].is_log
    assert not frame.ranges["network.dropout"].is_log
    assert frame.measured_epochs == list(synthetic.MEASURED)


def test_spectra_are_tidy(frames: dict[str, SweepFrame]) -> None:
    table = frames["few"].spectra("lyapunov.spectrum")
    assert {"trial", "epoch", "exponent", "value", "error"} <= set(table)
    assert len(table) == 6 * len(synthetic.MEASURED) * 12
    with pytest.raises(KeyError, match="clv"):
        frames["few"].spectra("clv.angles")


def test_no_trials() -> None:
    with pytest.raises(AnalysisError, match="no trial has been published"):
        SweepFrame.from_records(synthetic.info(), [])


def test_the_same_trial_twice() -> None:
    trials = synthetic.sweep("null", 4)
    with pytest.raises(AnalysisError, match="several records of trial 2"):
        SweepFrame.from_records(synthetic.info(), [*trials, trials[2]])


def test_the_same_row_twice() -> None:
    trials = synthetic.sweep("null", 3)
    rows = trials[1].table.to_pylist()
    table = trials[1].table.from_pylist([*rows, rows[0]], schema=records.SCHEMA)
    trials[1] = TrialRecord(trials[1].header, table)
    with pytest.raises(AnalysisError, match="trial 1 has 2 rows of val_loss at epoch 0"):
        SweepFrame.from_records(synthetic.info(), trials)


def test_mixed_units() -> None:
    trials = synthetic.sweep("null", 3)
    rows = trials[2].table.to_pylist()
    for row in rows:
        row["unit"] = row["unit"].replace("nats/step", "bits/step")
    table = trials[2].table.from_pylist(rows, schema=records.SCHEMA)
    trials[2] = TrialRecord(trials[2].header, table)
    with pytest.raises(AnalysisError, match=r"lyapunov\.\w+ came in bits/step and nats/step"):
        SweepFrame.from_records(synthetic.info(), trials)


def test_a_complete_trial_without_a_finite_loss_has_no_target() -> None:
    trials = synthetic.sweep("null", 3)
    rows = trials[0].table.to_pylist()
    for row in rows:
        if row["quantity"] == "val_loss" and row["epoch"] == synthetic.EPOCHS:
            row["values"] = [float("nan")]
    table = trials[0].table.from_pylist(rows, schema=records.SCHEMA)
    frame = SweepFrame.from_records(
        synthetic.info(), [TrialRecord(trials[0].header, table), *trials[1:]]
    )
    assert list(frame.target.index) == [1, 2]


@pytest.mark.parametrize("family", ["lstm", "mlp"])
@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_the_future_is_invisible(family: synthetic.Family, epoch: int) -> None:
    trials = synthetic.sweep("planted", 8, family=family)
    others = synthetic.scrambled(trials, after=epoch)
    one, other = (
        SweepFrame.from_records(synthetic.info(), t).early_view(epoch) for t in (trials, others)
    )
    assert one.table.equals(other.table)
    pd.testing.assert_frame_equal(one.params, other.params)
    pd.testing.assert_frame_equal(ft.features(one), ft.features(other))
    pd.testing.assert_frame_equal(ft.hyperparameters(one), ft.hyperparameters(other))
    later = SweepFrame.from_records(synthetic.info(), others).early_view(epoch + 1)
    assert not later.table.equals(
        SweepFrame.from_records(synthetic.info(), trials).early_view(epoch + 1).table
    )


def test_an_early_view_has_no_outcome() -> None:
    view = SweepFrame.from_records(synthetic.info(), synthetic.sweep("null", 3)).early_view(2)
    assert max(view.scalars["epoch"]) == 2
    assert set(EarlyView.__dataclass_fields__) == {"epoch", "params", "sampled", "table"}


def test_settings_that_are_not_in_all_trials() -> None:
    trials = synthetic.sweep("null", 6)
    first = trials[0].header
    params = {k: v for k, v in first.params.items() if k != "network.units"}
    trials[0] = TrialRecord(replace(first, params=params), trials[0].table)
    frame = SweepFrame.from_records(synthetic.info(), trials)
    assert pd.isna(frame.params.loc[0, "network.units"])


def test_details_are_those_of_all_trials() -> None:
    trials = synthetic.sweep("null", 3)
    trials[1] = synthetic.described_as(trials[1], state_size=128, asked={"k": 64})
    trials[2] = synthetic.described_as(trials[2], state_size=64)
    found = SweepFrame.from_records(synthetic.info(), trials).details("lyapunov.spectrum")
    assert found["state_size"] == [12, 64, 128]
    assert found["state"] == ["full"]
    assert found["asked.k"] == [64, None]


def test_a_trial_that_has_ended_has_nothing_ahead() -> None:
    trials = synthetic.sweep("null", 4)
    trials[2] = synthetic.ended_at(trials[2], 2)
    frame = SweepFrame.from_records(synthetic.info(), trials)
    assert list(frame.target_at(1).index) == [0, 1, 2, 3]
    assert list(frame.target_at(2).index) == [0, 1, 3]
    assert list(frame.target_at(4).index) == [0, 1, 3]
    assert list(frame.target_at(synthetic.EPOCHS).index) == [0, 1, 2, 3]
