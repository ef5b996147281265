"""The order after the first epoch, and nothing else: keep the best K, whatever K is.

Egele et al. 2023, "Is one epoch all you need for multi-fidelity hyperparameter optimization?"
(arXiv 2307.15422). A step function that only rises (isotonic regression; Barlow et al. 1972) gives
each place in that order its expected final loss, so that every K is served at once.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from analysis import features as ft
from analysis.curves import MIN_KNOWN, losses
from analysis.early_view import EarlyView
from analysis.inputs import Foretell, held_out_spread
from analysis.predictors.base import CannotPredictError, Prediction, Predictor, PredictorConfig


class OneEpochTopK(Predictor):
    """Final loss as a rising step function of the loss after one epoch."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """It has no settings."""

    variants: ClassVar = {"loss after one epoch (top K)": Config()}

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """The step function."""
        first = _first(view).reindex(target.index)
        keep = np.isfinite(first)
        if keep.sum() < MIN_KNOWN:
            raise CannotPredictError(f"{int(keep.sum())} trials have a loss after one epoch")
        x, y = first[keep].to_numpy(float), target[keep].to_numpy(float)
        self._foretell = _rising(x, y)
        self._sd = held_out_spread(_rising, x, y)
        self._range = float(np.ptp(self._foretell(x)))
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The step a trial stands on, with one spread for all."""
        x = _first(view).reindex(trials)
        mean = x.astype(float).copy()
        known = np.isfinite(x)
        mean[known] = self._foretell(x[known].to_numpy(float))
        return Prediction(mean, pd.Series(self._sd, index=trials))

    def explain(self) -> pd.DataFrame:
        """One term, by the height of the steps."""
        return pd.DataFrame({"term": ["loss after one epoch"], "weight": [self._range]})


def _rising(x: np.ndarray, y: np.ndarray) -> Foretell:
    steps = IsotonicRegression(out_of_bounds="clip").fit(x, y)
    # A slope too slight to matter for the error keeps the order within a step.
    slope = 1e-6 * float(y.std()) / max(float(x.std()), 1e-12)
    return lambda new: np.asarray(steps.predict(new) + slope * (new - x.mean()))


def _first(view: EarlyView) -> pd.Series:
    curve = losses(view, "val_loss")
    if 1 not in curve:
        raise CannotPredictError("the first epoch is not over")
    return ft.log_if_positive(curve[1].reindex(view.trials))
