"""How well predictors foretell the final loss of trials they have not seen, and by how much more.

Repeated K-fold cross-validation by trial; within each fold a predictor sees the targets of the
other folds only. Errors are of the logarithm of the loss where all losses are positive. The
increment of one predictor over another is a paired bootstrap over trials of the ratio of their
root-mean-square errors.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

from analysis import features as ft
from analysis.frame import EarlyView, SweepFrame
from analysis.predictors.base import CannotPredictError, Predictor
from analysis.statistics import correlation
from pipeline import catalog

NUM_FOLDS = 10
NUM_REPEATS = 5
MIN_TRIALS = 20
_NUM_RESAMPLES = 4_000
_CHUNK = 2_000_000  # drawn trials held at once
BASELINE, CHALLENGER = "settings + loss seen", "settings + loss seen + spectrum"


@dataclass(frozen=True)
class Comparison:
    """How predictors fared.

    Attributes:
        scores: one line an (epoch, predictor): n, spearman with _low and _high, rmse, r2,
            coverage (share inside the central 90 %), problem.
        increments: one line an epoch: n, gain (how much smaller the error is with the spectrum
            than without, as a share; negative where it is larger) with _low and _high, which
            cover all epochs at once with 95 % (Bonferroni).
        is_log: whether the target was the logarithm of the loss.
    """

    scores: pd.DataFrame
    increments: pd.DataFrame
    is_log: bool


@lru_cache(maxsize=2)
def compare(frame: SweepFrame) -> Comparison:
    """All predictors and their variants at each epoch measured before the last."""
    target = frame.target
    transformed = ft.log_if_positive(target)
    is_log = bool((target > 0).all())
    epochs = [e for e in frame.measured_epochs if e < frame.final_epoch]
    scores, increments = [], []
    for epoch in epochs:
        view = ft.early_view(frame, epoch)
        ahead = transformed.reindex(frame.target_at(epoch).index)
        errors: dict[str, np.ndarray] = {}
        for name, predictor in variants().items():
            line, squares = _score(view, ahead, predictor)
            scores.append({"epoch": epoch, "predictor": name, **line})
            if squares is not None:
                errors[name] = squares
        if BASELINE in errors and CHALLENGER in errors:
            gain = _gain(errors[BASELINE], errors[CHALLENGER], 0.05 / len(epochs))
            increments.append({"epoch": epoch, "n": len(errors[BASELINE]), **gain})
    return Comparison(pd.DataFrame(scores), pd.DataFrame(increments), is_log)


def variants() -> dict[str, Predictor]:
    """Every predictor there is, by the words the report uses."""
    found: dict[str, Predictor] = {}
    for name in catalog.entries("predictors"):
        kind: type[Predictor] = catalog.load("predictors", name)
        found |= {words: kind(config) for words, config in kind.variants.items()}
    return found


def cross_validate(
    view: EarlyView,
    target: pd.Series,
    predictor: Predictor,
    *,
    num_folds: int,
    num_repeats: int,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Held-out predictions in target's order, each (repeats, n).

    Returns means, standard deviations, and the mean target of the trials each was fitted on: a
    fold's training mean leans away from the fold, which makes the pooled ranks of a predictor
    without skill look negative unless it is taken off.

    Raises CannotPredictError.
    """
    n = len(target)
    means, sds, centres = np.full((3, num_repeats, n), math.nan)
    rng = np.random.default_rng(seed)
    for repeat in range(num_repeats):
        fold = rng.permutation(np.arange(n) % num_folds)
        for i in range(num_folds):
            held_out = fold == i
            fitted = predictor.fit(view, target[~held_out])
            prediction = fitted.predict(view, target.index[held_out])
            means[repeat, held_out] = prediction.mean
            sds[repeat, held_out] = prediction.sd
            centres[repeat, held_out] = target[~held_out].mean()
    return means, sds, centres


def _score(
    view: EarlyView, target: pd.Series, predictor: Predictor
) -> tuple[dict[str, object], np.ndarray | None]:
    target = target[target.index.isin(view.trials)]
    n = len(target)
    if n < MIN_TRIALS:
        return {"n": n, "problem": f"not computable: {n} trials, {MIN_TRIALS} are needed"}, None
    if np.ptp(target) == 0:
        return {"n": n, "problem": "not computable: the target is the same in all trials"}, None
    try:
        means, sds, centres = cross_validate(
            view, target, predictor, num_folds=NUM_FOLDS, num_repeats=NUM_REPEATS
        )
    except CannotPredictError as error:
        return {"n": n, "problem": f"not computable: {error}"}, None
    y = target.to_numpy(float)
    known = np.isfinite(means).all(axis=0)
    if not known.all():
        missing = int((~known).sum())
        return {"n": n, "problem": f"not computable: no prediction for {missing} trials"}, None
    squares = ((means - y) ** 2).mean(axis=0)
    foretold = (means - centres).mean(axis=0)
    rank = correlation(foretold, y, "spearman", num_resamples=1_000)
    inside = np.abs(means - y) <= stats.norm.ppf(0.95) * sds
    line = {
        "n": n,
        "spearman": rank.value,
        "spearman_low": rank.low,
        "spearman_high": rank.high,
        "rmse": math.sqrt(squares.mean()),
        "r2": 1 - float(squares.mean() / y.var()),
        "coverage": float(inside.mean()),
        "problem": "",
    }
    return line, squares


def _gain(baseline: np.ndarray, challenger: np.ndarray, error_rate: float) -> dict[str, float]:
    """1 - RMSE ratio with its percentile interval over trials."""
    n, rng, parts = len(baseline), np.random.default_rng(0), []
    rows = max(1, _CHUNK // n)
    for start in range(0, _NUM_RESAMPLES, rows):
        drawn = rng.integers(0, n, (min(rows, _NUM_RESAMPLES - start), n))
        parts.append(np.sqrt(challenger[drawn].mean(axis=1) / baseline[drawn].mean(axis=1)))
    low, high = np.quantile(1 - np.concatenate(parts), [error_rate / 2, 1 - error_rate / 2])
    gain = 1 - math.sqrt(challenger.mean() / baseline.mean())
    return {"gain": gain, "gain_low": float(low), "gain_high": float(high)}
