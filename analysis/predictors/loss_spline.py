"""A smooth curve from the loss seen to the final one: what a straight line would miss.

A penalised cubic spline, knots at quantiles (Eilers & Marx 1996 for the idea of many knots and a
penalty), the penalty by exact leave-one-out.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import numpy as np
import pandas as pd
from sklearn.preprocessing import SplineTransformer

from analysis import features as ft
from analysis import inputs
from analysis.early_view import EarlyView
from analysis.predictors.base import CannotPredictError, Prediction, Predictor, PredictorConfig
from analysis.predictors.ridge import best
from tasks.base import Bounds


class LossSpline(Predictor):
    """A cubic spline of the loss seen, straight beyond the losses fitted on."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """knots: at quantiles of the loss seen."""

        knots: Annotated[int, Bounds(ge=3)] = 6

    variants: ClassVar = {"loss seen, spline": Config()}

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """The line that fits best, and a ridge regression on the spline for what it leaves."""
        seen = _seen(view).reindex(target.index)
        keep = np.isfinite(seen).to_numpy(bool)
        if keep.sum() < inputs.MIN_TRIALS or seen[keep].nunique() < self.config.knots:
            raise CannotPredictError(f"{int(keep.sum())} trials have a loss seen, too few differ")
        x, y = seen[keep].to_numpy(float)[:, None], target[keep].to_numpy(float)
        self._spline = SplineTransformer(
            self.config.knots, degree=3, knots="quantile", extrapolation="linear",
            include_bias=False,
        ).fit(x)  # fmt: skip
        self._centre, self._width = float(x.mean()), float(x.std())
        X = self._columns(x)
        self._mean, self._offset = X.mean(axis=0), float(y.mean())
        U, s, Vt = np.linalg.svd(X - self._mean, full_matrices=False)
        self._weights, left_out, _ = best(U, s, Vt, y - self._offset)
        self._sd = inputs.spread(left_out)
        self._range = float(((X - self._mean) @ self._weights).std())
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The curve, with one spread for all; NaN for a trial without a loss."""
        seen = _seen(view).reindex(trials).to_numpy(float)
        mean, known = np.full(len(trials), np.nan), np.isfinite(seen)
        if known.any():
            X = self._columns(seen[known, None])
            mean[known] = self._offset + (X - self._mean) @ self._weights
        return Prediction(pd.Series(mean, index=trials), pd.Series(self._sd, index=trials))

    def explain(self) -> pd.DataFrame:
        """One term, by what it moves."""
        return pd.DataFrame({"term": [ft.LOSS_SEEN], "weight": [self._range]})

    def _columns(self, x: np.ndarray) -> np.ndarray:
        # The straight part on a larger scale than the bumps, so that the penalty spares it.
        line = 10 * (x - self._centre) / self._width
        return np.hstack([line, self._spline.transform(x)])


def _seen(view: EarlyView) -> pd.Series:
    table = ft.features(view)
    if ft.LOSS_SEEN not in table:
        raise CannotPredictError(f"no trial has a validation loss by epoch {view.epoch}")
    return ft.log_if_positive(table[ft.LOSS_SEEN])
