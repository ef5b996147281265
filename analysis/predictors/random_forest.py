"""A random forest on groups of features: no smoothness assumed, its errors out of the bag.

Breiman 2001, Machine Learning 45; scikit-learn's implementation.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestRegressor

from analysis import inputs
from analysis.early_view import EarlyView
from analysis.predictors.base import Prediction, Predictor, PredictorConfig
from tasks.base import Bounds


class RandomForest(Predictor):
    """Averaged trees on resampled trials."""

    is_costly = True

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """groups: what may be used; trees: how many; leaf: least trials in a leaf."""

        groups: tuple[inputs.Group, ...] = ("settings", "loss", "norms", "spectrum")
        trees: Annotated[int, Bounds(ge=1)] = 40
        leaf: Annotated[int, Bounds(ge=1)] = 3

    variants: ClassVar = {
        "random forest: settings + loss seen + norms + spectrum": Config(),
    }

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """Grows the trees; a trial's own error comes from trees that did not see it."""
        base = inputs.table(view, self.config.groups)
        self._scale = inputs.Scale.of(base.reindex(target.index))
        X, y = self._scale(base, target.index), target.to_numpy(float)
        self._forest = RandomForestRegressor(
            self.config.trees, min_samples_leaf=self.config.leaf, max_features=1 / 2,
            bootstrap=True, random_state=0, n_jobs=1,
        ).fit(X, y)  # fmt: skip
        out = np.full((self.config.trees, len(y)), np.nan)
        for i, (tree, drawn) in enumerate(
            zip(self._forest.estimators_, self._forest.estimators_samples_, strict=True)
        ):
            unseen = np.setdiff1d(np.arange(len(y)), drawn)
            out[i, unseen] = tree.predict(X[unseen])
        votes = np.isfinite(out).sum(axis=0)
        known = votes > 0
        errors = y[known] - np.nansum(out[:, known], axis=0) / votes[known]
        self._sd = inputs.spread(errors)
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The trees' mean, with the spread of the out-of-bag errors for all."""
        X = self._scale(inputs.table(view, self.config.groups), trials)
        mean = self._forest.predict(X)
        return Prediction(pd.Series(mean, index=trials), pd.Series(self._sd, index=trials))

    def explain(self) -> pd.DataFrame:
        """Columns by how much their splits take off the squared error."""
        return importances(self._scale, self._forest.feature_importances_)


def importances(scale: inputs.Scale, weights: np.ndarray) -> pd.DataFrame:
    """Columns by importance; the sign of an effect is not known of trees."""
    terms = [name.replace(inputs.SETTING, "") for name in scale.names]
    table = pd.DataFrame({"term": terms, "weight": weights})
    return table.sort_values("weight", ascending=False, ignore_index=True)
