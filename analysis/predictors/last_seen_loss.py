"""The validation loss seen last, carried to the end by a straight line: the first thing to beat.

Egele et al. 2023 (arXiv 2307.15422) show how far ranking by one early loss goes.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import pandas as pd

from analysis import features as ft
from analysis.curves import Line
from analysis.early_view import EarlyView
from analysis.predictors.base import CannotPredictError, Prediction, Predictor, PredictorConfig


class LastSeenLoss(Predictor):
    """log final loss = a + b · log loss seen, by least squares."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """It has no settings."""

    variants: ClassVar = {"loss seen": Config()}

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """A straight line; a constant where all losses seen are equal."""
        self._line = Line.through(_seen(view), target, f"a loss by epoch {view.epoch}")
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The line, with one spread for all."""
        return self._line.foretell(_seen(view), trials)

    def explain(self) -> pd.DataFrame:
        """One term."""
        return self._line.explain(ft.LOSS_SEEN)


def _seen(view: EarlyView) -> pd.Series:
    table = ft.features(view)
    if ft.LOSS_SEEN not in table:
        raise CannotPredictError(f"no trial has a validation loss by epoch {view.epoch}")
    return ft.log_if_positive(table[ft.LOSS_SEEN])
