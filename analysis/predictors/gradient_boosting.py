"""Gradient boosting of small trees on groups of features.

Friedman 2001, Annals of Statistics 29; scikit-learn's implementation.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import numpy as np
import pandas as pd
from sklearn.ensemble import GradientBoostingRegressor

from analysis import inputs
from analysis.early_view import EarlyView
from analysis.inputs import Foretell
from analysis.predictors.base import Prediction, Predictor, PredictorConfig
from analysis.predictors.random_forest import importances
from tasks.base import Bounds


class GradientBoosting(Predictor):
    """Shallow trees, each on what the former ones left."""

    is_costly = True

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """groups: what may be used; trees: how many; rate: how far each is followed."""

        groups: tuple[inputs.Group, ...] = ("settings", "loss", "norms", "spectrum")
        trees: Annotated[int, Bounds(ge=1)] = 40
        rate: Annotated[float, Bounds(gt=0, le=1)] = 0.1

    variants: ClassVar = {
        "gradient boosting: settings + loss seen + norms + spectrum": Config(),
    }

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """Boosts on all of these trials; the spread is of an inner cross-validation's errors."""
        base = inputs.table(view, self.config.groups)
        self._scale = inputs.Scale.of(base.reindex(target.index))
        X, y = self._scale(base, target.index), target.to_numpy(float)
        self._sd = inputs.held_out_spread(lambda X, y: self._boost(X, y).predict, X, y)
        self._boosted = self._boost(X, y)
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The sum of the trees, with one spread for all."""
        X = self._scale(inputs.table(view, self.config.groups), trials)
        foretell: Foretell = self._boosted.predict
        return Prediction(pd.Series(foretell(X), index=trials), pd.Series(self._sd, index=trials))

    def explain(self) -> pd.DataFrame:
        """Columns by how much their splits take off the squared error."""
        return importances(self._scale, self._boosted.feature_importances_)

    def _boost(self, X: np.ndarray, y: np.ndarray) -> GradientBoostingRegressor:
        return GradientBoostingRegressor(
            n_estimators=self.config.trees, learning_rate=self.config.rate, max_depth=3,
            min_samples_leaf=3, subsample=0.7, max_features=0.5, random_state=0,
        ).fit(X, y)  # fmt: skip
