"""Trials and epochs counted, and what of it a person sees."""

import time

import pytest

from pipeline import accounting, progress
from pipeline.accounting import Progress
from pipeline.home import Home
from pipeline.records import TrialHeader


def header(number, state="complete", epochs=10, planned=10):
    return TrialHeader(
        "s", number, f"s/{number}", 0, state, {}, (), 1.0, epochs=epochs, epochs_planned=planned
    )


def test_every_ending_counts_once_with_its_epochs():
    done = Progress(total=6, epochs_each=10)
    for number, (state, value, epochs) in enumerate(
        [
            ("complete", 0.5, 10),
            ("complete", 0.4, 10),
            ("pruned", 0.1, 3),
            ("diverged", 7.0, 2),
            ("failed", None, 1),
        ]
    ):
        done.count(state, number, value, epochs)
    done.running = {5: 4}
    assert (done.complete, done.pruned, done.diverged, done.failed) == (2, 1, 1, 1)
    assert done.finished == 5
    assert (done.epochs_spent, done.epochs_planned) == (30, 60)
    # The loss where a trial was stopped is no final one.
    assert done.best == (0.4, 1)
    line = progress.summary(done)
    assert "5/6 done" in line
    assert "1 diverged, 1 pruned, 1 failed" in line


def test_the_time_left_goes_by_how_long_trials_turn_out_to_be():
    done = Progress(total=20, epochs_each=100, started=time.monotonic() - 50)
    assert done.eta_seconds is None
    for number in range(10):
        done.count("pruned", number, 1.0, 5)
    # Ten trials of 5 epochs in 50 s: ten more take as long, not twenty times.
    assert done.eta_seconds == pytest.approx(50, rel=0.01)
    done.running = {10: 3}
    assert done.eta_seconds == pytest.approx(50 / 53 * 47, rel=0.01)


def test_epochs_are_told_in_words():
    assert progress.epochs(30, 60, 0) == "30 of 60 epochs (50%)"
    assert progress.epochs(60, 60, 7) == (
        "60 of 60 epochs (100%), 7 more for nothing that is on record"
    )


def test_epochs_of_records_are_summed_and_those_for_nothing_kept(tmp_path):
    home = Home(tmp_path, "s")
    home.create()
    headers = [header(0), header(1, "pruned", 3), header(2, epochs=None, planned=None)]
    found = accounting.epochs_of(headers, home)
    assert found == accounting.Epochs(spent=13, planned=20, again=0, unknown=1)
    accounting.save_again(home, 4)
    assert accounting.load_again(home) == 4
    assert accounting.epochs_of(headers, home).again == 4
    (home.folder / "accounting.json").write_text("{")
    assert accounting.load_again(home) == 0
    assert home.spooled() == []
