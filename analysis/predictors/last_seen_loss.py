"""The validation loss seen last, carried to the end by a straight line: the first thing to beat.

Egele et al. 2023 (arXiv 2307.15422) show how far ranking by one early loss goes.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import pandas as pd

from analysis import features as ft
from analysis.frame import EarlyView
from analysis.predictors.base import (
    CannotPredictError,
    Prediction,
    Predictor,
    PredictorConfig,
)


class LastSeenLoss(Predictor):
    """log final loss = a + b · log loss seen, by least squares."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """It has no settings."""

    variants: ClassVar = {"loss seen": Config()}

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """A straight line; a constant where all losses seen are equal."""
        x = _seen(view).reindex(target.index)
        keep = np.isfinite(x)
        if keep.sum() < 3:
            raise CannotPredictError(f"{int(keep.sum())} trials have a loss by epoch {view.epoch}")
        x, y = x[keep].to_numpy(), target[keep].to_numpy()
        self._is_flat = bool(np.ptp(x) <= 1e-12 * max(1.0, abs(float(x[0]))))
        self._slope, self._offset = (
            (0.0, float(y.mean())) if self._is_flat else map(float, np.polyfit(x, y, 1))
        )
        rest = y - self._offset - self._slope * x
        self._sd = math.sqrt(float(rest @ rest) / max(1, len(y) - 2))
        self._spread = float(x.std())
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The line, with the residuals' standard deviation for all."""
        mean = self._offset + self._slope * _seen(view).reindex(trials)
        return Prediction(mean, pd.Series(self._sd, index=trials))

    def explain(self) -> pd.DataFrame:
        """One term."""
        return pd.DataFrame({"term": [ft.LOSS_SEEN], "weight": [self._slope * self._spread]})


def _seen(view: EarlyView) -> pd.Series:
    table = ft.features(view)
    if ft.LOSS_SEEN not in table:
        raise CannotPredictError(f"no trial has a validation loss by epoch {view.epoch}")
    return ft.log_if_positive(table[ft.LOSS_SEEN])
