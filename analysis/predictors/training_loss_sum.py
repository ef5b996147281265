"""The sum of the training losses so far: a curve that fell early is a curve that falls.

Ru et al. 2021, "Speedy performance estimation for neural architecture search" (arXiv 2006.04492).
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import pandas as pd

from analysis import features as ft
from analysis.curves import Line, losses
from analysis.early_view import EarlyView
from analysis.predictors.base import CannotPredictError, Prediction, Predictor, PredictorConfig

_TERM = "sum of training losses"


class TrainingLossSum(Predictor):
    """log final loss = a + b · log sum of training losses, by least squares."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """It has no settings."""

    variants: ClassVar = {_TERM: Config()}

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """A straight line."""
        self._line = Line.through(_sums(view), target, "a training loss in every epoch")
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The line, with one spread for all."""
        return self._line.foretell(_sums(view), trials)

    def explain(self) -> pd.DataFrame:
        """One term."""
        return self._line.explain(_TERM)


def _sums(view: EarlyView) -> pd.Series:
    """NaN for a trial that lacks an epoch, whose sum would be too small."""
    curve = losses(view, "train_loss")
    if curve.empty:
        raise CannotPredictError(f"no trial has a training loss by epoch {view.epoch}")
    total = curve.sum(axis=1, skipna=False).reindex(view.trials)
    return ft.log_if_positive(total.where(np.isfinite(total)))
