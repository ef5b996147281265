from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import features as ft
from analysis.correlations import correlations, design
from analysis.early_view import EarlyView
from analysis.frame import SweepFrame
from pipeline import records
from pipeline.records import Row, TrialHeader, TrialRecord
from tests.analysis import synthetic


def view_of(*spectra: list[float], scalars: dict[str, float] | None = None) -> EarlyView:
    trials = []
    for number, spectrum in enumerate(spectra):
        values = np.array(spectrum)
        rows = [Row(0, 0, "lyapunov.spectrum", values, axes=("exponent",), unit="nats/step")]
        rows += [Row(0, 0, name, np.array(v)) for name, v in (scalars or {}).items()]
        header = TrialHeader("s", number, f"s/{number}", 0, "complete", {}, (), 1.0)
        trials.append(TrialRecord(header, records.to_table("s", number, rows)))
    return SweepFrame.from_records(synthetic.info(), trials).early_view(0)


def test_numbers_of_a_known_spectrum() -> None:
    found = ft.features(view_of([-1.0, 0.5, -0.5, -3.0])).loc[0]
    assert found["lyapunov.max"] == 0.5
    assert found["lyapunov.abs_max"] == 0.5
    assert found["lyapunov.mean"] == -1.0
    assert found["lyapunov.std"] == pytest.approx(np.std([-1.0, 0.5, -0.5, -3.0]))
    assert found["lyapunov.gap"] == 1.0
    assert found["lyapunov.top_mean"] == 0.5


def test_recorded_scalars_outrank_what_the_spectrum_gives() -> None:
    found = ft.features(view_of([0.5, -1.0], scalars={"lyapunov.max": 0.25}))
    assert found.loc[0, "lyapunov.max"] == 0.25


def test_an_infinite_exponent_is_never_averaged() -> None:
    found = ft.features(view_of([0.1, -np.inf], [0.2, -1.0]))
    assert np.isnan(found.loc[0, "lyapunov.std"])
    assert np.isnan(found.loc[0, "lyapunov.mean"])
    assert found.loc[0, "lyapunov.max"] == 0.1
    assert found.loc[1, "lyapunov.mean"] == pytest.approx(-0.4)


def test_spectra_of_several_widths() -> None:
    found = ft.features(view_of([0.0, -1.0], [0.0, -1.0, -2.0], [0.3]))
    assert list(found["lyapunov.mean"]) == pytest.approx([-0.5, -1.0, 0.3])
    assert np.isnan(found.loc[2, "lyapunov.gap"])


def test_features_of_ftles(frames: dict[str, SweepFrame]) -> None:
    view = frames["mlp"].early_view(2)
    table = ft.features(view)
    quantiles = view.arrays("ftle.quantiles")
    assert table.loc[5, "ftle.quantile_low"] == quantiles[5].min()
    assert table.loc[5, "ftle.quantile_high"] == quantiles[5].max()
    latest = view.latest.loc[5]
    assert table.loc[5, "ftle.contrast"] == latest["ftle.low_margin"] - latest["ftle.high_margin"]
    assert ft.measured(table) == [n for n in table if n.startswith("ftle.")]


def test_the_loss_seen_is_the_last_one(frames: dict[str, SweepFrame]) -> None:
    rows = frames["null"].scalars
    seen = ft.features(frames["null"].early_view(3))["loss.seen"]
    expected = rows[(rows["quantity"] == "val_loss") & (rows["epoch"] == 3)].set_index("trial")
    pd.testing.assert_series_equal(seen, expected["value"], check_names=False)


def test_settings_as_numbers() -> None:
    trials = []
    for number, (rate, gate, depth) in enumerate([(1e-4, "a", 1), (1e-2, "b", 2), (1e-1, "c", 2)]):
        trial = synthetic.sweep("null", 1)[0]
        params = {
            "rate": rate,
            "gate": gate,
            "depth": depth,
            "same": 3,
            "mix": [1, None, 2][number],
        }
        header = replace(trial.header, trial=number, params=params, sampled=tuple(params))
        rows = [Row(0, 0, "val_loss", np.array(1.0))]
        trials.append(TrialRecord(header, records.to_table("s", number, rows)))
    view = SweepFrame.from_records(synthetic.info(), trials).early_view(0)
    found = ft.hyperparameters(view)
    assert list(found["rate"]) == pytest.approx(list(np.log([1e-4, 1e-2, 1e-1])))
    assert list(found["depth"]) == [1, 2, 2]
    assert {"gate=b", "gate=c"} <= set(found)
    assert "same" not in found
    assert any(name.startswith("mix=") for name in found)


def frame_with(k: int, **details: object) -> SweepFrame:
    trials = synthetic.sweep("null", 4, num_exponents=k)
    return SweepFrame.from_records(
        synthetic.info(), [synthetic.described_as(t, **details) for t in trials]
    )


def test_words_of_a_part_of_the_spectrum() -> None:
    frame = frame_with(16, state_size=128)
    known = ft.described(frame)
    assert known["lyapunov.mean"].label == "mean of the 16 leading exponents"
    assert known["lyapunov.std"].label == "spread of the 16 leading exponents"
    assert known["lyapunov.near_zero"].label == "number of the 16 leading exponents near 0"
    assert known["lyapunov.max"] == ft.FEATURES["lyapunov.max"]
    assert list(known) == list(ft.FEATURES)
    shown = {f.name: f.label for f in ft.headline(frame)}
    assert shown["lyapunov.mean"] == "mean of the 16 leading exponents"
    table = correlations(frame)
    assert "mean of the 16 leading exponents" in set(table["label"])
    assert "mean exponent" not in set(table["label"])
    assert "mean of the 16 leading exponents" in set(design(frame)["label"])


def test_words_of_a_whole_spectrum() -> None:
    assert ft.described(frame_with(16, state_size=16)) == ft.FEATURES


@pytest.mark.parametrize(("state_size", "num_top"), [(128, 13), (160, 16), (161, None)])
def test_the_top_tenth_is_one_of_the_state(state_size: int, num_top: int | None) -> None:
    view = frame_with(16, state_size=state_size).early_view(0)
    table = ft.features(view)
    if num_top is None:
        assert "lyapunov.top_mean" not in table
    else:
        expected = np.sort(view.arrays("lyapunov.spectrum")[2])[::-1][:num_top].mean()
        assert table.loc[2, "lyapunov.top_mean"] == pytest.approx(expected)


def test_an_earlier_epoch_does_not_stand_in_for_a_skipped_one() -> None:
    trials = synthetic.sweep("null", 4)
    trials[1] = synthetic.skipping(trials[1], 2)
    view = SweepFrame.from_records(synthetic.info(), trials).early_view(2)
    table = ft.features(view)
    spectral = [n for n in table if ft.FEATURES[n].group == "spectrum"]
    assert len(spectral) == 14
    assert table.loc[1, spectral].isna().all()
    assert table.loc[0, spectral].notna().all()
    assert table.loc[1, ["gradient_norm", "loss.seen"]].notna().all()


def test_features_measured_at_other_epochs_than_the_last_are_shown_too() -> None:
    trials = [synthetic.skipping(t, synthetic.EPOCHS) for t in synthetic.sweep("null", 4)]
    shown = ft.headline(SweepFrame.from_records(synthetic.info(), trials))
    assert "lyapunov.max" in [f.name for f in shown]
