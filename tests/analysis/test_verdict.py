import math
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pytest

from analysis import cautions
from analysis import verdict as vd
from analysis.correlations import correlations
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
    assert any("not distinguishable from none" in sentence for sentence in found.evidence)
    assert "What this test could find" in found.evidence[-1]


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


def stopped(trial: TrialRecord, epoch: int) -> TrialRecord:
    """As a pruner leaves it."""
    rows = [r for r in trial.table.to_pylist() if r["epoch"] <= epoch]
    header = replace(trial.header, state="pruned", pruned_at=epoch, epochs=epoch)
    return TrialRecord(header, trial.table.from_pylist(rows, schema=records.SCHEMA))


def test_pruned_trials_have_no_final_loss_and_the_choice_they_leave_is_named() -> None:
    whole = synthetic.sweep("null", 30)
    trials = [stopped(t, 2) if t.header.trial % 3 == 0 else t for t in whole]
    frame = frame_of(trials)
    found = vd.verdict(frame)
    assert frame.num_pruned == 10
    left = [t.header.trial for t in trials if t.header.state == "complete"]
    assert list(frame.target.index) == left
    assert frame.trials.loc[0, "pruned_at"] == 2
    (warning,) = [c for c in found.cautions if "stopped early by a pruner" in c]
    assert warning.startswith("10 trials stopped")
    assert not any("pruner" in c for c in vd.verdict(frame_of(whole)).cautions)


@pytest.mark.parametrize(("sampler", "is_named"), [("tpe", True), ("qmc", False)])
def test_a_steered_design_is_named(sampler: str, is_named: bool) -> None:
    found = vd.verdict(frame_of(synthetic.sweep("null", 24), sampler={"name": sampler}))
    assert any("steered the design" in c for c in found.cautions) is is_named


def test_early_is_the_first_half(frames: dict[str, SweepFrame]) -> None:
    assert vd.early_epochs(frames["null"]) == [0, 1, 2]


def lines_of(**columns: list[object]) -> pd.DataFrame:
    """A table of correlations with every column that a verdict reads."""
    table = pd.DataFrame(columns)
    for column in ("spearman", "given_settings", "given_settings_and_loss"):
        for end, value in (("", 0.1), ("_low", -0.1), ("_high", 0.3), ("_p", 0.5), ("_p_holm", 1)):
            if column + end not in table:
                table[column + end] = float(value)
    return table


@pytest.mark.parametrize(
    ("column", "gain", "kind"),
    [
        ("given_settings_and_loss", 0.1, "adds"),
        ("given_settings_and_loss", -0.1, "hint"),
        ("given_settings", -0.1, "redundant"),
        ("spearman", -0.1, "confounded"),
    ],
)
def test_the_chance_of_few_trials_hides_no_effect(column: str, gain: float, kind: str) -> None:
    found = {
        column: [0.5, -0.8, 0.9],
        f"{column}_p": [1e-8, 0.02, math.nan],
        f"{column}_p_holm": [1e-6, 0.4, math.nan],
    }
    spectral = lines_of(label=["λ₁", "Kaplan–Yorke dimension", "gap"], **found)
    decided, row = vd._decide(
        spectral, pd.DataFrame({"gain": [gain], "p_holm": [0.01 if gain > 0 else 0.6]})
    )
    assert decided == kind
    assert row is not None
    assert row["label"] == "λ₁"


def test_where_nothing_passes_the_least_p_is_named() -> None:
    spectral = lines_of(
        label=["few", "many"], spearman=[-0.8, 0.2], spearman_p=[0.09, 0.01],
        spearman_p_holm=[0.9, 0.2],
    )  # fmt: skip
    kind, row = vd._decide(spectral, pd.DataFrame())
    assert kind == "nothing"
    assert row is not None
    assert row["label"] == "many"


def test_no_direction_is_claimed_where_the_interval_holds_zero(
    frames: dict[str, SweepFrame],
) -> None:
    frame = frames["null"]
    table = correlations(frame)
    row = table[(table["group"] == "spectrum") & (table["spearman"].abs() < 0.05)].iloc[0]
    assert row["spearman_low"] < 0 < row["spearman_high"]
    first, second, *_ = vd._evidence(frame, "nothing", row, table, pd.DataFrame())
    assert "no direction can be told" in first
    assert "the higher" not in first + second


@pytest.mark.parametrize(
    ("plain", "kind", "column", "expected"),
    [
        ((0.5, 0.3, 0.7), "adds", "given_settings_and_loss", "with both held fixed, the higher"),
        ((0.1, -0.1, 0.3), "adds", "given_settings_and_loss", "with both held fixed, the higher"),
        ((0.5, 0.3, 0.7), "redundant", "given_settings", "with the settings held fixed, the"),
        ((-0.5, -0.7, -0.3), "adds", "given_settings_and_loss", ""),
    ],
)
def test_the_direction_is_that_of_the_claim(
    frames: dict[str, SweepFrame],
    plain: tuple[float, ...],
    kind: vd.Kind,
    column: str,
    expected: str,
) -> None:
    table = correlations(frames["planted"])
    row = table[table["feature"] == "lyapunov.max"].iloc[0].copy()
    for end, x, y in zip(("", "_low", "_high"), plain, (-0.4, -0.6, -0.2), strict=True):
        row[f"spearman{end}"], row[f"{column}{end}"] = x, y
    _, sentence, *_ = vd._evidence(frames["planted"], kind, row, table, pd.DataFrame())
    if expected:
        assert expected in sentence
        assert sentence.endswith("before training, the lower the final loss.")
    else:
        assert "the higher" not in sentence


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({"state_size": 128}, "state_size 12 or 128"),
        ({"state": "hidden"}, "state full or hidden"),
    ],
)
def test_spectra_of_several_kinds_are_named(details: dict[str, object], words: str) -> None:
    trials = synthetic.sweep("null", 24)
    mixed = [synthetic.described_as(t, **details) if i % 2 else t for i, t in enumerate(trials)]
    (caution,) = [c for c in vd.verdict(frame_of(mixed)).cautions if "not of one kind" in c]
    assert words in caution
    assert "are not one feature" in caution
    assert not any("not of one kind" in c for c in vd.verdict(frame_of(trials)).cautions)


def test_spectra_of_different_k_are_named() -> None:
    trials = synthetic.sweep("null", 12)
    trials += [
        TrialRecord(replace(t.header, trial=12 + t.header.trial), renumbered(t, 12))
        for t in synthetic.sweep("null", 12, num_exponents=6, seed=1)
    ]
    (caution,) = [c for c in vd.verdict(frame_of(trials)).cautions if "not of one kind" in c]
    assert "k 6 or 12 exponents" in caution


def renumbered(trial: TrialRecord, by: int) -> pa.Table:
    rows = [{**row, "trial": row["trial"] + by} for row in trial.table.to_pylist()]
    return trial.table.from_pylist(rows, schema=records.SCHEMA)


@pytest.mark.parametrize(
    ("low", "words"), [(0.4, "Nothing seen early on separates them"), (0.6, "a higher λ₁")]
)
def test_divergence_is_foretold_only_by_what_separates(
    low: float, words: str, frames: dict[str, SweepFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"epoch": 0, "label": "λ₁", "auc": 0.7, "auc_low": low, "auc_high": 0.9}
    table = pd.DataFrame([{**line, "auc_p": 0.03, "auc_p_holm": 0.3}])
    monkeypatch.setattr(cautions, "divergence", lambda _: table)
    (sentence,) = cautions.about_divergence(frames["planted"])
    assert words in sentence


def test_a_hint_says_in_its_headline_how_often_nothing_gives_one(
    frames: dict[str, SweepFrame],
) -> None:
    frame = frames["planted"]
    row = correlations(frame).iloc[0].copy()
    row["covariates_with_loss_lack"] = "cubes, products"
    row["given_settings_and_loss_p_holm"] = 0.01
    headline = vd._headline("hint", row, 32, pd.DataFrame())
    assert "of sweeps whose spectrum tells nothing, up to one in ten looks like this" in headline
    by_rank = row.copy()
    by_rank["given_settings_and_loss_p_holm"] = 0.01
    not_by_rank = by_rank.copy()
    not_by_rank["given_settings_and_loss_p_holm"] = 0.9
    for line, is_tested, why in (
        (by_rank, True, "prediction does not get better"),
        (by_rank, False, "could not be asked"),
        (not_by_rank, True, "no single feature passes"),
    ):
        first, second = vd._of_a_hint(line, is_tested=is_tested)
        assert why in first
        assert "under another seed" in second


@pytest.mark.parametrize(
    ("lack", "gain", "kind"),
    [
        ("cubes, products", -0.1, "hint"),
        ("cubes, products", 0.1, "adds"),
        ("squares, cubes, products", -0.1, "too_few"),
        ("squares, cubes, products", 0.1, "hint"),
    ],
)
def test_a_correlation_that_holds_no_curve_fixed_is_no_witness(
    lack: str, gain: float, kind: str
) -> None:
    spectral = lines_of(
        label=["λ₁"], given_settings_and_loss=[0.8], given_settings_and_loss_p=[1e-5],
        given_settings_and_loss_p_holm=[1e-3], covariates_with_loss_lack=[lack], epoch=[1],
    )  # fmt: skip
    gains = pd.DataFrame({"gain": [gain], "p_holm": [0.01 if gain > 0 else 0.6]})
    decided, row = vd._decide(spectral, gains)
    assert decided == kind
    assert row is not None
    headline = vd._headline(decided, row, 24, pd.DataFrame())
    assert ("one in ten" in headline) is (kind == "hint")
    assert ("24 trials are too few to say" in headline) is (kind == "too_few")


def test_what_was_not_tested_is_not_said_to_have_failed() -> None:
    found = vd.verdict(frame_of(synthetic.sweep("planted", 24)))
    assert any("was not tested: 24 trials, 30 are needed" in line for line in found.evidence)
    assert not any("does not get better" in line for line in found.evidence)
    # Three settings leave no room for squares among 24 trials.
    assert found.evidence[1].count("; straight effects held fixed only)") == 2
    assert any("squares, cubes and products of settings" in c for c in found.cautions)
