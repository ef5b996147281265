import io
import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from scipy import stats
from typer.testing import CliRunner

from analysis import models
from analysis.cli import predict as command
from analysis.forecaster import Forecast
from analysis.frame import AnalysisError, SweepFrame
from analysis.predict import Outlook, Standing, as_json, forecaster, lines, predict, threshold
from analysis.predictors.base import CannotPredictError
from pipeline.catalog import UnknownNameError
from pipeline.folder_store import FolderStore
from pipeline.records import TrialRecord
from pipeline.store import StoreError
from tests.analysis import synthetic

AT = 2
SAID = ["final_loss", "low", "high", "best_tenth", "diverges"]


def frame_of(trials: list[TrialRecord]) -> SweepFrame:
    return SweepFrame.from_records(synthetic.info(num_trials=len(trials)), trials)


def in_state(trial: TrialRecord, state: str, epoch: int | None = None) -> TrialRecord:
    """The trial as it stood after an epoch, without an end."""
    cut = trial if epoch is None else synthetic.ended_at(trial, epoch)
    header = replace(trial.header, state=state, value=None, pruned_at=epoch)  # type: ignore[arg-type]
    return TrialRecord(header, cut.table)


def said(outlook: Outlook) -> pd.DataFrame:
    return outlook.table.set_index("trial")[SAID]


def is_best(outlook: Outlook) -> pd.Series:
    """Whether a trial of a finished sweep did end among the best tenth."""
    order = outlook.table["ended_with"].fillna(np.inf).rank(method="first")
    return order <= outlook.num_best


POPULATIONS = {
    "planted": lambda seed: synthetic.sweep("planted", 160, diverged=24, seed=seed),
    "null": lambda seed: synthetic.sweep("null", 160, diverged=24, seed=seed),
    "curved": lambda seed: synthetic.curved("planted", 160, seed=seed),
    "heavy": lambda seed: synthetic.curved("null", 160, seed=seed, tails="heavy"),
}


@pytest.mark.parametrize("kind", POPULATIONS)
def test_what_is_said_is_as_sure_as_it_says(kind: str) -> None:
    """Two populations of 160 each: intervals, best tenth and divergence hold what they say."""
    found = [predict(frame_of(POPULATIONS[kind](seed)), AT) for seed in range(2)]
    table = pd.concat([o.table.assign(best=is_best(o)) for o in found])
    assert len(table) == 320
    ended = table.dropna(subset=["ended_with"])
    inside = ended["ended_with"].between(ended["low"], ended["high"])
    assert 0.85 < inside.mean() < 0.95
    for outlook in found:
        one = outlook.table.dropna(subset=["ended_with"])
        assert 0.80 <= one["ended_with"].between(one["low"], one["high"]).mean() <= 0.97
    # In the large: as many are expected in the best tenth, and to diverge, as were and did.
    for probability, truth in (
        (table["best_tenth"], table["best"]),
        (table["diverges"], table["state"] == "diverged"),
    ):
        sd = math.sqrt(float((probability * (1 - probability)).sum()))
        assert abs(float(probability.sum() - truth.sum())) < 2.6 * sd + 1.5
    # And in parts: the likely ones were among the best more often, by as much as was said.
    edges = [0, 0.02, 0.1, 0.3, 1]
    for low, high in itertools.pairwise(edges):
        part = table[(table["best_tenth"] > low) & (table["best_tenth"] <= high)]
        p, n = float(part["best_tenth"].mean()), len(part)
        if n >= 20:
            assert abs(part["best"].mean() - p) < 3.3 * math.sqrt(p * (1 - p) / n) + 0.03


def test_it_knows_something(frames: dict[str, SweepFrame]) -> None:
    outlook = predict(frame_of(POPULATIONS["planted"](0)), 4)
    best = is_best(outlook)
    p = outlook.table["best_tenth"]
    brier = float(((p - best) ** 2).mean())
    assert brier < 0.6 * 0.1 * 0.9
    assert p.is_monotonic_decreasing
    nearer = predict(frames["planted"], 1).table, predict(frames["planted"], 4).table
    widths = [(np.log(t["high"]) - np.log(t["low"])).mean() for t in nearer]
    assert widths[1] < 0.95 * widths[0]


def test_diverged_trials_are_a_class_of_their_own() -> None:
    outlook = predict(frame_of(POPULATIONS["planted"](1)), AT)
    assert (outlook.num_fitted, outlook.num_diverged) == (160, 24)
    table = outlook.table
    is_case = table["state"] == "diverged"
    ranks = stats.rankdata(table["diverges"])
    auc = (ranks[is_case].sum() - 24 * 25 / 2) / (24 * 136)
    assert auc > 0.9, "the made-up spectra give it away"
    # Whoever diverges is never among the best, however low the loss would have been.
    certain = Forecast(*(pd.Series([v]) for v in (0.0, 1.0, 1.0)), False)
    assert certain.below(1e9).tolist() == [0]
    # Once they have diverged they are no more foretold.
    later = predict(frame_of(POPULATIONS["planted"](1)), 4)
    assert set(later.table["state"]) == {"complete"}
    assert any("24 trials left out" in note for note in later.notes)
    assert later.table["diverges"].between(0.5 / 137, 0.5 / 120).all(), "not never"


def test_the_future_of_trials_on_their_way_is_invisible() -> None:
    trials = synthetic.sweep("planted", 60, seed=2)
    states = ["running", "pruned", "failed"]
    known = [in_state(t, states[i % 3]) for i, t in enumerate(trials[40:])]
    changed = synthetic.scrambled(trials, AT)[40:]
    scrambled = [in_state(t, states[i % 3]) for i, t in enumerate(changed)]
    cut = [in_state(t, states[i % 3], AT) for i, t in enumerate(trials[40:])]
    one = predict(frame_of([*trials[:40], *known]), AT)
    assert set(one.table["state"]) == {"complete", *states}
    for others in (scrambled, cut):
        other = predict(frame_of([*trials[:40], *others]), AT)
        pd.testing.assert_frame_equal(one.table, other.table, check_exact=True)


@pytest.mark.parametrize("predictor", ["ridge", "loss_spline"])
def test_no_trials_own_end_enters(predictor: str) -> None:
    trials = synthetic.sweep("planted", 50, diverged=8, seed=3)
    before = said(predict(frame_of(trials), AT, predictor))
    assert np.isfinite(before.to_numpy(float)).all()
    for victim in (0, 17, 45):
        (other,) = synthetic.scrambled([trials[victim]], AT)
        if trials[victim].header.state == "diverged":
            other = TrialRecord(replace(other.header, state="complete"), other.table)
        frame = frame_of([*trials[:victim], other, *trials[victim + 1 :]])
        after = said(predict(frame, AT, predictor))
        pd.testing.assert_series_equal(before.loc[victim], after.loc[victim], check_exact=True)
        assert not before.equals(after), "the others may and do learn from it"


def test_order_of_trials_does_not_matter() -> None:
    trials = synthetic.sweep("planted", 40, diverged=6)
    shuffled = [trials[i] for i in np.random.default_rng(0).permutation(len(trials))]
    one, two = (predict(frame_of(t), AT) for t in (trials, shuffled))
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)


def test_trials_that_left_are_foretold_as_if_they_had_stayed() -> None:
    trials = synthetic.sweep("planted", 150, seed=6)
    gone = {t.header.trial for t in trials[::3]}
    frame = frame_of([in_state(t, "pruned", AT) if t.header.trial in gone else t for t in trials])
    outlook = predict(frame, AT)
    table = outlook.table.set_index("trial")
    assert table.loc[sorted(gone), "ended_with"].isna().all()
    assert outlook.num_fitted == 100
    ends = frame_of(trials).target[sorted(gone)]
    foretold = table.loc[sorted(gone)]
    assert 0.8 <= ends.between(foretold["low"], foretold["high"]).mean() <= 0.99
    assert any("50 trials left early by a pruner" in note for note in outlook.notes)


def test_another_sweeps_predictor_uses_no_end_of_this_one() -> None:
    made = forecaster(frame_of(synthetic.sweep("planted", 120, diverged=15, seed=8)), AT)
    trials = synthetic.sweep("planted", 120, diverged=15, seed=9)
    one = predict(frame_of(trials), AT, fitted=made)
    two = predict(frame_of(synthetic.scrambled(trials, AT)), AT, fitted=made)
    pd.testing.assert_frame_equal(said(one).sort_index(), said(two).sort_index(), check_exact=True)
    ended = one.table.dropna(subset=["ended_with"])
    assert 0.8 <= ended["ended_with"].between(ended["low"], ended["high"]).mean() <= 0.97
    assert one.table["best_tenth"].sum() == pytest.approx(12, abs=1e-6)
    assert one.source == "made-up"
    with pytest.raises(AnalysisError, match=r"fitted at, 2, got --at 4"):
        predict(frame_of(trials), 4, fitted=made)


def test_another_sweeps_predictor_may_need_no_ended_trial_here() -> None:
    made = forecaster(frame_of(synthetic.sweep("planted", 60, seed=8)), AT)
    trials = [in_state(t, "running", AT) for t in synthetic.sweep("planted", 7, seed=9)]
    outlook = predict(frame_of(trials), AT, fitted=made)
    assert np.isfinite(outlook.table[SAID].to_numpy(float)).all()
    assert outlook.num_best == 1


def test_what_differs_between_the_sweeps_is_said() -> None:
    made = forecaster(frame_of(synthetic.sweep("planted", 60, seed=8)), AT)
    trials = []
    for trial in synthetic.sweep("planted", 12, seed=9):
        params = {**trial.header.params, "network.units": 128, "network.dropout": 0.9}
        trials.append(TrialRecord(replace(trial.header, params=params), trial.table))
    notes = " ".join(predict(frame_of(trials), AT, fitted=made).notes)
    assert "network.units (64, there 128)" in notes
    assert "beyond the network.dropout" in notes


def test_too_few_that_ended() -> None:
    trials = synthetic.sweep("planted", 30, diverged=4)
    some = [in_state(t, "running", 3) if t.header.trial >= 12 else t for t in trials[:28]]
    law = (
        r"needs at least 20 trials that went beyond epoch 2 and ended with a finite loss, got 12 "
        r"\(12 complete, 16 running\); wait for more .*choose an earlier --at, or .*--from OTHER"
    )
    with pytest.raises(AnalysisError, match=law):
        predict(frame_of(some), AT)
    with pytest.raises(AnalysisError, match=law):
        forecaster(frame_of(some), AT)


def test_all_diverged_or_all_the_same() -> None:
    with pytest.raises(AnalysisError, match=r"got 0 \(25 diverged\)"):
        predict(frame_of(synthetic.sweep("planted", 25, diverged=25)), AT)

    def same(row: dict[str, object]) -> dict[str, object]:
        is_end = row["quantity"] == "val_loss" and row["epoch"] == synthetic.EPOCHS
        return {**row, "values": [1.5]} if is_end else row

    trials = [synthetic.rewritten(t, same) for t in synthetic.sweep("planted", 25)]
    with pytest.raises(AnalysisError, match=r"all 25 trials that ended have 1\.5"):
        predict(frame_of(trials), AT)


def test_epochs_at_which_there_is_nothing_to_say(frames: dict[str, SweepFrame]) -> None:
    with pytest.raises(AnalysisError, match=r"on record, got 9; there are 0 to 6"):
        predict(frames["planted"], 9)
    with pytest.raises(AnalysisError, match=r"something ahead, got epoch 6.*planned end: epoch 6"):
        predict(frames["planted"], 6)


def test_predictors_by_name_and_by_words(frames: dict[str, SweepFrame]) -> None:
    assert predict(frames["planted"], AT).predictor == "ridge (settings + loss seen + spectrum)"
    words = "settings + loss seen + norms"
    assert predict(frames["planted"], AT, words).predictor == words
    with pytest.raises(
        UnknownNameError, match=r"no predictor 'rigde'; there are curve_law, .*'loss"
    ):
        predict(frames["planted"], AT, "rigde")
    with pytest.raises(CannotPredictError, match=r"'loss after one epoch .* at epoch 0: the first"):
        predict(frames["planted"], 0, "loss after one epoch (top K)")
    # Epoch 3 has no measurement, and an earlier one does not stand in for it.
    with pytest.raises(CannotPredictError, match="no spectrum or FTLE was measured at epoch 3"):
        predict(frames["planted"], 3)
    assert len(predict(frames["planted"], 3, "settings + loss seen").table) > 50


def test_threshold_counts_the_known_and_expects_the_rest() -> None:
    index = pd.RangeIndex(200)
    normal = Forecast(*(pd.Series(v, index) for v in (0.0, 1.0, 0.25)), False)
    expected = stats.norm.ppf(20 / 200 / 0.75)
    assert threshold(np.empty(0), [normal], 20) == pytest.approx(expected, abs=1e-9)
    known = np.array([5.0, 1, 3, np.inf, 2, 4])
    certain = Forecast(*(pd.Series(v, index[:0]) for v in (0.0, 1.0, 0.0)), True)
    assert threshold(known, [certain], 2) == pytest.approx(2, abs=1e-9)
    both = threshold(np.full(10, -9.0), [normal], 20)
    assert both == pytest.approx(stats.norm.ppf(10 / 200 / 0.75), abs=1e-9)
    assert threshold(np.array([1.0, np.inf]), [certain], 2) == math.inf


def test_five_hundred_trials_take_a_second_or_two() -> None:
    frame = frame_of(synthetic.sweep("planted", 500, diverged=40))
    began = time.process_time()
    outlook = predict(frame, AT)
    # About 0.7 s on an idle core; the bound leaves room for a machine at work.
    assert time.process_time() - began < 6
    assert len(outlook.table) == 500


def test_standing_is_what_was_in_training() -> None:
    trials = synthetic.sweep("planted", 12, diverged=3, failed=2)
    trials[0] = in_state(trials[0], "pruned", 1)
    trials[1] = in_state(trials[1], "pruned", AT)
    standing = Standing.of(frame_of(trials), AT)
    assert list(standing.trials) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert list(standing.outcome.index) == [2, 3, 4, 5, 6, 7, 8, 9]
    assert standing.outcome.isna().sum() == 3


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(command)
    return made


def test_command_prints_the_same_in_three_forms(app: typer.Typer, tmp_path: Path) -> None:
    trials = [*synthetic.sweep("planted", 30, diverged=3)]
    store = synthetic.stored(tmp_path, trials)
    outlook = predict(SweepFrame.from_store(store, "made-up"), AT)
    args = ["made-up", "--at", str(AT), "--store", store.uri, "--format"]
    shown, csv, tree = (CliRunner().invoke(app, [*args, form]) for form in ("table", "csv", "json"))
    assert shown.stdout.strip().splitlines() == "\n".join(lines(outlook)).strip().splitlines()
    read = pd.read_csv(io.StringIO(csv.stdout))
    pd.testing.assert_frame_equal(read, outlook.table, check_dtype=False)
    content = json.loads(tree.stdout)
    assert content == json.loads(json.dumps(as_json(outlook)))
    assert content["num_best"] == 3
    assert [t["ended_with"] for t in content["trials"] if t["state"] == "diverged"] == [None] * 3


def test_lines_are_aligned_and_explained(frames: dict[str, SweepFrame]) -> None:
    head, titles, *rest = lines(predict(frames["planted"], AT))
    assert head.startswith("made-up at epoch 2, by ridge (")
    assert "fitted on 59 ended trials, 7 of them diverged" in head
    assert titles.split() == ["trial", "state", "seen", "final", "loss", "90", "%", "interval",
                              "best", "tenth", "diverges", "ended", "with"]  # fmt: skip
    assert len({len(line) for line in rest[:59]}) == 1
    assert "among the best 6 of 59 trials" in rest[59]


def test_command_saves_and_takes_what_was_saved(app: typer.Typer, tmp_path: Path) -> None:
    import mlflow.pyfunc

    store = synthetic.stored(tmp_path, synthetic.sweep("planted", 40, diverged=6))
    base = ["made-up", "--at", str(AT), "--store", store.uri, "--format", "csv"]
    done = CliRunner().invoke(app, [*base, "--predictor", "loss_spline", "--save"])
    assert done.exit_code == 0, done.output
    (folder,) = (store.root / "made-up" / "predictors").iterdir()
    assert f"saved with sweep made-up: predictors/{folder.name}" in done.stderr
    seen = models.load(folder).seen
    served = mlflow.pyfunc.load_model(str(folder)).predict(seen.reset_index())
    taken = CliRunner().invoke(app, [*base, "--from", str(folder)])
    read = pd.read_csv(io.StringIO(taken.stdout)).set_index("trial").sort_index()
    np.testing.assert_allclose(served.set_index("trial")["final_loss"], read["final_loss"])
    # The same fit again goes to the same place and is no error.
    assert CliRunner().invoke(app, [*base, "--predictor", "loss_spline", "--save"]).exit_code == 0
    assert len(list((store.root / "made-up" / "predictors").iterdir())) == 1
    refused = CliRunner().invoke(app, [*base, "--from", str(folder), "--predictor", "ridge"])
    assert refused.exit_code == 2


def test_command_fits_on_another_sweep(app: typer.Typer, tmp_path: Path) -> None:
    store = synthetic.stored(tmp_path, synthetic.sweep("planted", 40))
    synthetic.stored(tmp_path, synthetic.sweep("planted", 8, seed=1, name="small"), "small")
    base = ["small", "--at", str(AT), "--store", store.uri]
    done = CliRunner().invoke(app, [*base, "--from", "made-up"])
    assert done.exit_code == 0, done.output
    assert "fitted on 40 ended trials of made-up." in done.stdout
    with pytest.raises(StoreError, match="no sweep 'made-pu'"):
        CliRunner().invoke(app, [*base, "--from", "made-pu"], catch_exceptions=False)


def test_command_says_what_is_still_in_training(app: typer.Typer, tmp_path: Path) -> None:
    from pipeline.store import TrialStart

    store: FolderStore = synthetic.stored(tmp_path, synthetic.sweep("planted", 30))
    store.set_state("made-up", "running")
    store.begin_trial("made-up", TrialStart(30, "0123abcd/30", 1, {}, (), 0))
    done = CliRunner().invoke(app, ["made-up", "--at", str(AT), "--store", store.uri])
    assert "1 trial is in training" in done.stderr
