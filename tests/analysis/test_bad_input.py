"""The whole report on sweeps that say nothing: a clear statement, and no numbers in its place."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.frame import AnalysisError, SweepFrame
from analysis.report import write_report
from analysis.sections import budget
from pipeline.records import TrialRecord
from tests.analysis import synthetic

Rows = list[dict[str, object]]
NUMBERS = ("correlations", "curvature", "design", "predictors", "increments", "regions")


def constant(trial: TrialRecord) -> TrialRecord:
    def change(row: dict[str, object]) -> dict[str, object]:
        is_last = row["quantity"] == "val_loss" and row["epoch"] == synthetic.EPOCHS
        return {**row, "values": [1.0]} if is_last else row

    return synthetic.rewritten(trial, change)


def unmeasured(trial: TrialRecord) -> TrialRecord:
    return synthetic.rewritten(
        trial, lambda row: None if str(row["quantity"]).startswith("lyapunov.") else row
    )


def measured_last(trial: TrialRecord) -> TrialRecord:
    return synthetic.rewritten(
        trial,
        lambda row: (
            None
            if str(row["quantity"]).startswith("lyapunov.") and row["epoch"] < synthetic.EPOCHS
            else row
        ),
    )


SWEEPS: dict[str, tuple[Callable[[], list[TrialRecord]], str]] = {
    "too few": (lambda: synthetic.sweep("planted", 12), "12 finished trials are too few"),
    "no spectra": (
        lambda: [unmeasured(t) for t in synthetic.sweep("planted", 24)],
        "No spectrum or FTLE was measured",
    ),
    "spectra at the end": (
        lambda: [measured_last(t) for t in synthetic.sweep("planted", 24)],
        "measured only when training had ended",
    ),
    "constant target": (
        lambda: [constant(t) for t in synthetic.sweep("planted", 24)],
        "All 24 finished trials end with the same loss",
    ),
    "all diverged": (
        lambda: synthetic.sweep("planted", 24, diverged=24),
        "No trial ended with a finite validation loss",
    ),
}


@pytest.mark.usefixtures("quick_pictures")
@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_statement_stands_where_numbers_would(
    sweep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "ORDERS", 2)
    monkeypatch.setattr(budget, "TRIALS", 15)
    make, statement = SWEEPS[sweep]
    trials = make()
    frame = SweepFrame.from_records(synthetic.info(num_trials=len(trials)), trials)
    page = write_report(frame, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    # On the first screen and again in each section whose numbers it replaces.
    assert text.count(statement) >= 4
    for section in ("design", "correlations", "predictors"):
        part = text.split(f'id="{section}"', 1)[1].split("<h2", 1)[0]
        assert statement in part
        assert not re.search(r"[ρp] [=<]|\[[+−]?\d|<td", part)
    shipped = {p.stem for p in (page.parent / "tables").iterdir()}
    assert not shipped & set(NUMBERS)
    assert not re.search(r">\s*(nan|None|Undefined)\s*<", text)


def test_units_that_change_are_refused() -> None:
    trials = synthetic.sweep("null", 4)
    trials[2] = synthetic.rewritten(
        trials[2],
        lambda row: {**row, "unit": "bits/step"} if row["quantity"] == "lyapunov.max" else row,
    )
    with pytest.raises(AnalysisError, match=r"lyapunov\.max came in bits/step and nats/step"):
        SweepFrame.from_records(synthetic.info(), trials)


def test_a_trial_that_comes_twice_is_refused() -> None:
    trials = synthetic.sweep("null", 4)
    twice = [*trials, TrialRecord(replace(trials[1].header, attempt=1), trials[1].table)]
    with pytest.raises(AnalysisError, match="several records of trial 1"):
        SweepFrame.from_records(synthetic.info(), twice)
