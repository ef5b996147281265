from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import RidgeCV

from analysis import evaluate, inputs
from analysis import features as ft
from analysis.frame import SweepFrame
from analysis.predictors import ridge
from analysis.predictors.base import CannotPredictError, Predictor, PredictorConfig
from analysis.predictors.last_seen_loss import LastSeenLoss
from analysis.predictors.ridge import Ridge
from pipeline import catalog
from pipeline.records import TrialRecord
from tests.analysis import synthetic
from tests.analysis.conftest import all_variants

VARIANTS = [
    (name, words)
    for name in catalog.entries("predictors")
    for words in catalog.load("predictors", name).variants
]


def trials_for(words: str, n: int, effect: synthetic.Effect = "planted") -> list[TrialRecord]:
    """Trials that this predictor can treat: mean-field theory has a formula for plain RNNs."""
    trials = synthetic.sweep(effect, n)
    if "mean-field" not in words:
        return trials
    return [
        TrialRecord(replace(t.header, params={**t.header.params, "network.name": "rnn"}), t.table)
        for t in trials
    ]


def predictor_of(name: str, words: str) -> Predictor:
    kind: type[Predictor] = catalog.load("predictors", name)
    return kind(kind.variants[words])


@pytest.mark.parametrize(("name", "words"), VARIANTS)
def test_conformance(name: str, words: str, frames: dict[str, SweepFrame]) -> None:
    kind = catalog.load("predictors", name)
    assert issubclass(kind.Config, PredictorConfig)
    frame = frames["planted"]
    if "mean-field" in words:
        frame = SweepFrame.from_records(synthetic.info(), trials_for(words, 60))
    view, target = frame.early_view(4), np.log(frame.target)
    train, held_out = target.iloc[:40], target.index[40:]
    predictor = predictor_of(name, words).fit(view, train)
    prediction = predictor.predict(view, held_out)
    assert list(prediction.mean.index) == list(prediction.sd.index) == list(held_out)
    assert np.isfinite(prediction.mean).all()
    assert (prediction.sd > 0).all()
    assert (prediction.quantile(0.9) > prediction.mean).all()
    assert set(predictor.explain()) == {"term", "weight"}


@pytest.mark.parametrize(("name", "words"), VARIANTS)
def test_the_future_is_invisible(name: str, words: str) -> None:
    trials = trials_for(words, 24)
    frame = SweepFrame.from_records(synthetic.info(), trials)
    other = SweepFrame.from_records(synthetic.info(), synthetic.scrambled(trials, after=4))
    train, held_out = np.log(frame.target).iloc[:16], frame.target.index[16:]
    one, two = (
        predictor_of(name, words).fit(f.early_view(4), train).predict(f.early_view(4), held_out)
        for f in (frame, other)
    )
    pd.testing.assert_series_equal(one.mean, two.mean)
    pd.testing.assert_series_equal(one.sd, two.sd)


@pytest.mark.parametrize(("name", "words"), VARIANTS)
def test_held_out_trials_do_not_shape_the_fit(name: str, words: str) -> None:
    trials = trials_for(words, 24)
    whole = SweepFrame.from_records(synthetic.info(), trials)
    part = SweepFrame.from_records(synthetic.info(), trials[:18])
    train = np.log(whole.target).iloc[:16]
    one, two = (
        predictor_of(name, words)
        .fit(f.early_view(4), train)
        .predict(f.early_view(4), pd.Index([16, 17]))
        for f in (whole, part)
    )
    pd.testing.assert_series_equal(one.mean, two.mean, check_names=False)


def test_last_seen_loss_finds_the_line(frames: dict[str, SweepFrame]) -> None:
    view = frames["null"].early_view(4)
    seen = np.log(ft.features(view)[ft.LOSS_SEEN])
    predictor = LastSeenLoss(LastSeenLoss.Config()).fit(view, 0.3 + 0.7 * seen.iloc[:30])
    prediction = predictor.predict(view, seen.index[30:])
    np.testing.assert_allclose(prediction.mean, 0.3 + 0.7 * seen.iloc[30:], atol=1e-10)
    assert prediction.sd.max() < 1e-8


def test_ridge_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 6))
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    y = X @ [1.0, 0, 0, -0.5, 0, 0] + rng.normal(size=40)
    y -= y.mean()
    reference = RidgeCV(alphas=ridge._PENALTIES).fit(X, y)
    weights, left_out, penalty = ridge.best(*np.linalg.svd(X, full_matrices=False), y)
    assert penalty == pytest.approx(reference.alpha_)
    np.testing.assert_allclose(weights, reference.coef_, atol=1e-9)
    assert (left_out**2).mean() == pytest.approx(-reference.best_score_, rel=1e-6)


def test_ridge_names_what_it_rests_on(frames: dict[str, SweepFrame]) -> None:
    frame = frames["confounded"]
    fitted = Ridge(Ridge.Config(groups=("settings",))).fit(
        frame.early_view(1), np.log(frame.target)
    )
    assert fitted.explain()["term"].iloc[0] == "trainer.learning_rate"


def test_a_missing_group_is_said(frames: dict[str, SweepFrame]) -> None:
    frame = frames["few"]
    bare = SweepFrame(
        frame.info,
        frame.headers,
        frame.table.filter([q == "val_loss" for q in frame.table["quantity"].to_pylist()]),
    )
    with pytest.raises(CannotPredictError, match="no spectrum or FTLE"):
        Ridge(Ridge.Config()).fit(bare.early_view(2), bare.target)


def test_folds_partition_the_trials_and_hide_their_targets(frames: dict[str, SweepFrame]) -> None:
    view, target = frames["null"].early_view(1), frames["null"].target
    seen: list[frozenset[int]] = []

    class Spy(LastSeenLoss):
        def fit(self, view, target):  # type: ignore[no-untyped-def]
            seen.append(frozenset(target.index))
            return super().fit(view, target)

        def predict(self, view, trials):  # type: ignore[no-untyped-def]
            assert not seen[-1] & set(trials)
            return super().predict(view, trials)

    means, _, centres = evaluate.cross_validate(
        view, target, Spy(Spy.Config()), num_folds=5, num_repeats=2
    )
    assert means.shape == (2, 60)
    assert np.isfinite(means).all()
    assert len(seen) == 10
    assert all(len(trials) == 48 for trials in seen)
    assert centres.std() > 0


def test_mean_field_numbers_are_there_where_theory_has_a_formula(
    frames: dict[str, SweepFrame],
) -> None:
    config = Ridge.variants["settings + mean-field numbers"]
    target = np.log(frames["null"].target)
    with pytest.raises(CannotPredictError, match="mean-field numbers: no formula for lstm"):
        Ridge(config).fit(frames["null"].early_view(1), target)
    frame = SweepFrame.from_records(synthetic.info(), trials_for("mean-field", 24))
    explained = Ridge(config).fit(frame.early_view(1), np.log(frame.target)).explain()
    assert {"meanfield.log_chi", "meanfield.log_chi^2"} <= set(explained["term"])
    # They are the settings in other words: none is a measurement.
    first, last = (inputs.table(frame.early_view(e), config.groups) for e in (0, 6))
    pd.testing.assert_frame_equal(first, last)


def test_who_sees_the_spectrum_is_said_by_its_name() -> None:
    for words, predictor in all_variants().items():
        is_named = "spectrum" in words and "without" not in words
        assert predictor.sees_spectrum is is_named, words


def test_comparison_flatters_no_predictor(frames: dict[str, SweepFrame]) -> None:
    scores = evaluate.compare(frames["null"]).scores
    assert set(scores.loc[scores["problem"] != "", "predictor"]) == {
        "settings + mean-field numbers"  # there is no formula for an LSTM
    }
    scores = scores[scores["problem"] == ""].set_index(["epoch", "predictor"])
    for words in ("settings", "settings + loss seen + spectrum"):
        assert scores.loc[(1, words), "spearman_low"] < 0.1
        assert scores.loc[(1, words), "regret_10"] >= scores.loc[(1, words), "regret_25"] >= 0
    assert scores["coverage"].between(0.75, 0.99).all()
    assert (scores["nll"] < 1).all()


def test_comparison_of_too_few_trials(frames: dict[str, SweepFrame]) -> None:
    found = evaluate.compare(frames["few"])
    assert found.regions.empty
    assert (found.scores["problem"] == "not computable: 6 trials, 20 are needed").all()
