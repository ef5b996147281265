"""Sweeps of more trials than are looked at whole: what is drawn, what is said, what stays."""

import numpy as np
import pandas as pd
import pytest

from analysis import correlations, evaluate, evidence, increment, smoothing
from analysis import features as ft
from analysis.early_view import EarlyView
from analysis.frame import SweepFrame
from analysis.predictors import gaussian_process
from analysis.predictors.gaussian_process import GaussianProcess
from analysis.predictors.ridge import Ridge, _two_values
from analysis.smoothing import Smoother
from analysis.statistics import separation
from tests.analysis import synthetic
from tests.analysis.conftest import all_variants


@pytest.fixture
def frame() -> SweepFrame:
    trials = synthetic.sweep("planted", 90, diverged=8, seed=4)
    return SweepFrame.from_records(synthetic.info(num_trials=90), trials)


def test_predictors_are_compared_on_a_draw_and_that_is_said(
    frame: SweepFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate.compare(frame).note == ""
    monkeypatch.setattr(evaluate, "MANY", 60)
    compared = evaluate.compare.__wrapped__(frame)
    assert compared.note.startswith("Of 82 trials that ended, 60 were drawn")
    known = compared.scores[compared.scores["problem"] == ""].set_index(["epoch", "predictor"])
    assert set(known["n"]) == {30}
    # One split of 60 finds what cross-validation of all finds: the spectrum shows the trait.
    assert known.loc[(2, "settings + loss seen + spectrum"), "spearman"] > 0.5
    again = evaluate.compare.__wrapped__(frame)
    pd.testing.assert_frame_equal(compared.scores, again.scores)
    divergent = evaluate.divergence_scores.__wrapped__(frame)
    assert (divergent["num_diverged"] + divergent["num_finite"] <= 60).all()


@pytest.mark.parametrize(
    ("num", "said", "unsaid"),
    [
        (320, [], ["drawn", "Fisher"]),
        (400, ["256"], ["Fisher"]),
        (401, ["Fisher", "256"], ["of the 1,000"]),
        (999, ["Fisher", "256"], ["one half"]),
        (1_000, ["one half of the 1,000 trials", "256", "Fisher"], ["Of 1,000"]),
        (9_000, ["Of 9,000 trials", "1,000 were drawn", "one half", "256", "Fisher"], []),
    ],
)
def test_all_that_is_drawn_or_simplified_is_said(
    num: int, said: list[str], unsaid: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "variants", all_variants)
    monkeypatch.setattr(evaluate, "NUM_FOLDS", 10)
    note = evaluate._note(num)
    assert all(words in note for words in said), note
    assert not any(words in note for words in unsaid), note
    if "256" in note:
        assert "Ensemble and gaussian process" in note


def test_a_draw_of_divergences_is_said(frame: SweepFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate.divergence_note(frame) == ""
    monkeypatch.setattr(evaluate, "MANY", 60)
    evaluate.divergence_scores.cache_clear()
    assert evaluate.divergence_note(frame).startswith("Of more than 60 trials 60 were drawn")
    evaluate.divergence_scores.cache_clear()


def test_no_trial_is_judged_by_a_predictor_that_saw_its_end(frame: SweepFrame) -> None:
    view, target = frame.early_view(2), np.log(frame.target)
    rest, (means, _, _) = evaluate._other_half(view, target, Ridge(Ridge.Config()))
    changed = target.copy()
    changed[rest.index] += 5.0
    _, (same, _, _) = evaluate._other_half(view, changed, Ridge(Ridge.Config()))
    np.testing.assert_array_equal(means, same)
    assert len(rest) == len(target) // 2


def test_the_increment_test_takes_a_draw_and_that_is_said(
    frame: SweepFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evidence.note(frame) == ""
    monkeypatch.setattr(increment, "MAX_TRIALS", 50)
    tested = evidence.increments.__wrapped__(frame)
    assert (tested["n"] <= 50).all()
    assert evidence.note(frame).startswith("Tested on 50 of 82 trials")


def test_intervals_of_many_are_fishers(frame: SweepFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    few = correlations.correlations(frame)
    monkeypatch.setattr(correlations, "MANY", 50)
    many = correlations.correlations.__wrapped__(frame)
    assert set(many["interval"]) == {"Fisher z"}
    pd.testing.assert_series_equal(few["spearman"], many["spearman"])
    # Both are intervals of the same thing: on average as wide, to a quarter.
    width = [float((t["spearman_high"] - t["spearman_low"]).mean()) for t in (few, many)]
    assert width[1] == pytest.approx(width[0], rel=0.25)


def test_a_view_is_a_slice_and_the_same_for_some_trials(frame: SweepFrame) -> None:
    view = frame.early_view(2)
    assert view.table.column("values").chunk(0).buffers()[1].address == (
        frame.table.column("values").chunk(0).buffers()[1].address
    )
    some = view.only(view.trials[10:40])
    assert list(some.trials) == list(view.trials[10:40])
    pd.testing.assert_frame_equal(ft.features(some), ft.features(view).loc[some.trials])
    with pytest.raises(ValueError, match="no later row"):
        EarlyView.of(frame.params, frame.sampled, frame.table, 2)


def test_the_order_of_the_rows_does_not_matter(frame: SweepFrame) -> None:
    shuffled = np.random.default_rng(0).permutation(frame.table.num_rows)
    other = SweepFrame(frame.info, frame.headers, frame.table.take(shuffled))
    pd.testing.assert_frame_equal(
        ft.features(other.early_view(4)), ft.features(frame.early_view(4))
    )
    pd.testing.assert_frame_equal(other.trials, frame.trials)


def test_parts_are_learned_among_some_trials_as_if_there_were_no_others() -> None:
    rng = np.random.default_rng(0)
    Z, y = rng.normal(size=(40, 4)), rng.normal(size=(40, 1))
    K, unit = smoothing.parts(Z, 2)
    some = np.arange(0, 40, 3)
    cut = np.ascontiguousarray(K[:, some][:, :, some])
    np.testing.assert_allclose(
        smoothing.learn(K, y[some], some), smoothing.learn(cut, y[some]), rtol=1e-9, atol=1e-12
    )
    cross, own = smoothing.between(Z, Z[some], 2, unit)
    np.testing.assert_allclose(cross, K[:, some], atol=1e-14)
    np.testing.assert_allclose(own, np.array([np.diag(k)[some] for k in K]), atol=1e-14)
    smoother = Smoother(smoothing.weighted(cut, np.ones(len(cut))))
    assert smoother.hat(1.0).sum(axis=1) == pytest.approx(np.ones(len(some)))


def test_a_process_takes_a_draw_of_many_and_its_mean_needs_no_spread(
    frame: SweepFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, target = frame.early_view(2), np.log(frame.target)
    fitted = GaussianProcess(GaussianProcess.Config()).fit(view, target)
    expected = fitted.expected(view, target.index)
    assert fitted._sd is None
    pd.testing.assert_series_equal(fitted.predict(view, target.index).mean, expected)
    monkeypatch.setattr(gaussian_process, "_BLOCK", 7)
    np.testing.assert_allclose(fitted.expected(view, target.index), expected, rtol=1e-12)
    monkeypatch.setattr(gaussian_process, "MAX_TRIALS", 40)
    drawn = GaussianProcess(GaussianProcess.Config()).fit(view, target)
    assert len(drawn._y) == 40
    # Half of the trials are not those that the other was fitted on.
    assert np.corrcoef(drawn.expected(view, target.index), expected)[0, 1] > 0.5


def test_columns_of_two_values_by_hand() -> None:
    columns = np.array([[0, 1, 5, np.nan], [1, 1, 6, 2], [np.nan, 1, 7, 2], [0, 1, 5, 3]])
    assert _two_values(columns) == [True, True, False, True]


def test_the_auc_of_ranks_is_that_of_pairs() -> None:
    rng = np.random.default_rng(1)
    x, is_case = rng.integers(0, 9, 60).astype(float), rng.uniform(size=60) < 0.3
    cases, controls = x[is_case][:, None], x[~is_case]
    wins = (cases > controls) + 0.5 * (cases == controls)
    found = separation(x, is_case)
    assert found.value == pytest.approx(wins.mean(), abs=1e-12)
    variance = wins.mean(1).var(ddof=1) / len(cases) + wins.mean(0).var(ddof=1) / len(controls)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * variance**0.5, rel=1e-6)
