"""A spectrum that failed stays missing: no other trial's stands in for it, before a split or after.

In published code NaN spectra were replaced by copies of good ones before trials were split, so
that equal rows stood on both sides and failures vanished.
"""

from typing import Any

import numpy as np
import pandas as pd

from analysis import features as ft
from analysis.frame import SweepFrame
from analysis.predictors.ridge import Ridge
from pipeline.records import TrialRecord
from tests.analysis import synthetic


def with_failed_spectra(trials: list[TrialRecord], *numbers: int) -> list[TrialRecord]:
    """All that was measured of these trials' spectra is NaN."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        if row["quantity"].startswith("lyapunov."):
            row["values"] = [float("nan")] * len(row["values"])
        return row

    return [
        synthetic.rewritten(trial, change) if n in numbers else trial
        for n, trial in enumerate(trials)
    ]


def frame_of(trials: list[TrialRecord]) -> SweepFrame:
    return SweepFrame.from_records(synthetic.info(), trials)


def test_a_failed_spectrum_is_nobodys() -> None:
    trials = synthetic.sweep("planted", 24)
    healthy = ft.features(frame_of(trials).early_view(2))
    found = ft.features(frame_of(with_failed_spectra(trials, 0, 9, 23)).early_view(2))
    spectral = ft.measured(found)
    assert spectral
    failed = [0, 9, 23]
    assert list(found.index) == list(healthy.index)
    assert found.loc[failed, spectral].isna().all(axis=None)
    rest = found.index.difference(failed)
    pd.testing.assert_frame_equal(found.loc[rest], healthy.loc[rest])
    # No row occurs twice.
    assert not found.loc[rest, spectral].duplicated().any()


def test_held_out_trials_do_not_fill_the_gaps_of_the_others() -> None:
    trials = with_failed_spectra(synthetic.sweep("planted", 24), 11, 15)
    whole, part = frame_of(trials), frame_of(trials[:16])
    target = np.log(whole.target).iloc[:16]
    settings = Ridge.Config(groups=("settings", "spectrum"))
    fits = [Ridge(settings).fit(frame.early_view(2), target) for frame in (whole, part)]
    one, two = (
        fit.predict(frame.early_view(2), target.index)
        for fit, frame in zip(fits, (whole, part), strict=True)
    )
    pd.testing.assert_series_equal(one.mean, two.mean, check_names=False)
    assert np.isfinite(one.mean).all()
