from dataclasses import replace

import pytest

from analysis import verdict as vd
from analysis.frame import SweepFrame
from pipeline import records
from pipeline.records import TrialRecord
from tests.analysis import synthetic


def frame_of(trials: list[TrialRecord], **config: object) -> SweepFrame:
    info = synthetic.info(num_trials=len(trials))
    return SweepFrame.from_records(replace(info, config={**info.config, **config}), trials)


def without(trial: TrialRecord, prefix: str) -> TrialRecord:
    rows = [r for r in trial.table.to_pylist() if not r["quantity"].startswith(prefix)]
    return TrialRecord(trial.header, trial.table.from_pylist(rows, schema=records.SCHEMA))


def test_planted(frames: dict[str, SweepFrame]) -> None:
    found = vd.verdict(frames["planted"])
    assert found.kind == "adds"
    assert "tells something" in found.headline
    assert "52 of the 150" in found.headline
    assert "rank correlation −0." in found.evidence[0]
    assert "Holm" in found.evidence[0]
    assert any("The bar" in sentence for sentence in found.evidence)
    assert any("7 diverged trials left out" in c and "AUC" in c for c in found.cautions)
    assert any("fewer than the 150 planned" in c for c in found.cautions)


def test_confounded(frames: dict[str, SweepFrame]) -> None:
    found = vd.verdict(frames["confounded"])
    assert found.kind == "confounded"
    assert "adds nothing detectable" in found.headline
    assert "settings drive both" in found.headline


def test_null(frames: dict[str, SweepFrame]) -> None:
    found = vd.verdict(frames["null"])
    assert found.kind == "nothing"
    assert "adds nothing" in found.headline
    assert "not distinguishable from none" in found.evidence[-1]


def test_reversed_signs_warn_of_simpson(frames: dict[str, SweepFrame]) -> None:
    found = vd.verdict(frames["reversed"])
    (warning,) = [c for c in found.cautions if "Simpson" in c]
    assert "trainer.learning_rate" in warning
    assert "the sign turns" in warning


def test_no_simpson_warning_without_a_reversal(frames: dict[str, SweepFrame]) -> None:
    for name in ("planted", "null"):
        assert not any("Simpson" in c for c in vd.verdict(frames[name]).cautions)


def test_feed_forward_networks(frames: dict[str, SweepFrame]) -> None:
    found = vd.verdict(frames["mlp"])
    assert found.kind == "adds"
    assert "FTLE" in found.headline


def test_too_few_trials_make_no_claim(frames: dict[str, SweepFrame]) -> None:
    found = vd.verdict(frames["few"])
    assert found.kind == "too_few"
    assert found.headline.startswith("6 finished trials are too few")
    assert not any("correlation" in sentence for sentence in found.evidence)


def test_without_a_spectrum() -> None:
    trials = [without(t, "lyapunov.") for t in synthetic.sweep("planted", 30)]
    found = vd.verdict(frame_of(trials))
    assert found.kind == "no_spectrum"
    assert "No spectrum" in found.headline


def test_all_diverged() -> None:
    found = vd.verdict(frame_of(synthetic.sweep("planted", 24, diverged=24)))
    assert found.kind == "no_target"
    assert "24 diverged" in found.evidence[0]


def test_constant_target() -> None:
    trials = []
    for trial in synthetic.sweep("planted", 24):
        rows = trial.table.to_pylist()
        for row in rows:
            if row["quantity"] == "val_loss" and row["epoch"] == synthetic.EPOCHS:
                row["values"] = [1.0]
        trials.append(
            TrialRecord(trial.header, trial.table.from_pylist(rows, schema=records.SCHEMA))
        )
    found = vd.verdict(frame_of(trials))
    assert found.kind == "no_target"
    assert "same loss" in found.headline


@pytest.mark.parametrize(("sampler", "is_named"), [("tpe", True), ("qmc", False)])
def test_a_steered_design_is_named(sampler: str, is_named: bool) -> None:
    found = vd.verdict(frame_of(synthetic.sweep("null", 24), sampler={"name": sampler}))
    assert any("steered the design" in c for c in found.cautions) is is_named


def test_early_is_the_first_half(frames: dict[str, SweepFrame]) -> None:
    assert vd.early_epochs(frames["null"]) == [0, 1, 2]
