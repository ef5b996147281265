"""Several predictors of different kinds, averaged: what a cautious forecaster would use.

Bates & Granger 1969 for averaging; equal weights, since weights learned from few trials cost more
than they bring. Members that cannot predict at an epoch are left out.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import pandas as pd

from analysis import inputs
from analysis.early_view import EarlyView
from analysis.predictors.base import CannotPredictError, Prediction, Predictor, PredictorConfig
from analysis.predictors.curve_law import CurveLaw
from analysis.predictors.gaussian_process import MAX_TRIALS, GaussianProcess
from analysis.predictors.loss_spline import LossSpline
from analysis.predictors.ridge import Ridge

_NUM_FOLDS = 3


class Ensemble(Predictor):
    """The mean of a spline, a law of the curve, a ridge regression and a Gaussian process."""

    is_costly = True
    most_fitted = MAX_TRIALS

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """groups: what the ridge regression and the Gaussian process may use."""

        groups: tuple[inputs.Group, ...] = ("settings", "loss", "norms", "spectrum")

    variants: ClassVar = {
        "ensemble without spectrum": Config(groups=("settings", "loss", "norms")),
        "ensemble with spectrum": Config(),
    }

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """Fits each; the spread is of an inner cross-validation's errors of their mean."""
        self._members = self._fitted(view, target)
        errors = np.empty(len(target))
        fold = np.random.default_rng(0).permutation(len(target)) % _NUM_FOLDS
        for i in range(_NUM_FOLDS):
            out = fold == i
            inner = self._fitted(view, target[~out])
            mean = _average(inner, view, target.index[out])
            errors[out] = target[out] - mean
        known = np.isfinite(errors)
        self._sd = inputs.spread(errors[known])
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The members' mean, over those that can treat a trial, with one spread for all."""
        mean = _average(self._members, view, trials)
        return Prediction(pd.Series(mean, index=trials), pd.Series(self._sd, index=trials))

    def explain(self) -> pd.DataFrame:
        """The members, of equal weight."""
        names = [type(member).__name__ for member in self._members]
        return pd.DataFrame({"term": names, "weight": [1 / len(names)] * len(names)})

    def _fitted(self, view: EarlyView, target: pd.Series) -> list[Predictor]:
        groups = self.config.groups
        members: list[Predictor] = [
            LossSpline(LossSpline.Config()),
            CurveLaw(CurveLaw.Config()),
            Ridge(Ridge.Config(groups=groups)),
            GaussianProcess(GaussianProcess.Config(groups=groups)),
        ]
        found, problems = [], []
        for member in members:
            try:
                found.append(member.fit(view, target))
            except CannotPredictError as error:
                problems.append(str(error))
        if not found:
            raise CannotPredictError("; ".join(problems))
        return found


def _average(members: list[Predictor], view: EarlyView, trials: pd.Index) -> np.ndarray:
    means = np.stack([m.expected(view, trials).to_numpy(float) for m in members])
    known = np.isfinite(means)
    count = known.sum(axis=0)
    total = np.where(known, means, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
