from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import features as ft
from analysis.frame import EarlyView, SweepFrame
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
