"""A Gaussian process on groups of features: any smooth effects, each column as far as it matters.

Rasmussen & Williams 2006, ch. 2; the kernel is `smoothing`'s sum of parts, whose weights by
restricted likelihood play the role of automatic relevance determination.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import pandas as pd

from analysis import inputs, smoothing
from analysis.frame import EarlyView
from analysis.predictors.base import Prediction, Predictor, PredictorConfig
from analysis.smoothing import Smoother

_MAX_TRIALS = 500  # the kernel grows as n²
_MAX_PAIRED = 6
_NUM_FOLDS = 4


class GaussianProcess(Predictor):
    """Smooth main effects and pairs of settings and loss, noise by leave-one-out."""

    is_costly = True

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """groups: what may be used: settings, loss, norms, spectrum (FTLEs count as spectrum)."""

        groups: tuple[inputs.Group, ...] = ("settings", "loss", "norms")

    variants: ClassVar = {
        "Gaussian process: settings + loss seen + norms": Config(),
        "Gaussian process: settings + loss seen + norms + spectrum": Config(
            groups=("settings", "loss", "norms", "spectrum")
        ),
    }

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """Weights by restricted likelihood, then the noise by leave-one-out."""
        target = target.iloc[:_MAX_TRIALS]
        base = inputs.table(view, self.config.groups)
        self._scale = inputs.Scale.of(base.reindex(target.index))
        self._Z, y = self._scale(base, target.index), target.to_numpy(float)
        paired = [n.startswith(inputs.SETTING) or n == "loss.seen" for n in self._scale.names]
        self._num_paired = min(sum(paired), _MAX_PAIRED)
        K, self._unit = smoothing.parts(self._Z, self._num_paired)
        self._weights = smoothing.learn(K, y[:, None])
        self._smoother = Smoother(np.tensordot(self._weights, K, 1))
        self._penalty = float(self._smoother.choose(y[:, None])[0])
        self._y = y
        self._sd = _spread(K, y)
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """Mean and standard deviation of the process, noise included."""
        new = self._scale(inputs.table(view, self.config.groups), trials)
        cross, own = smoothing.between(self._Z, new, self._num_paired, self._unit)
        K = np.tensordot(self._weights, cross, 1)
        mean = self._smoother.beyond(K, self._penalty) @ self._y
        uncertain = self._smoother.uncertainty(K, self._weights @ own, self._penalty)
        sd = self._sd * np.sqrt(1 + uncertain)
        return Prediction(pd.Series(mean, index=trials), pd.Series(sd, index=trials))

    def explain(self) -> pd.DataFrame:
        """Columns by the weight of their parts, in units of the noise."""
        per_column = len(smoothing.WIDTHS) + 1
        weights = [
            float(self._weights[i * per_column : (i + 1) * per_column].sum())
            for i in range(len(self._scale.names))
        ]
        terms = [name.replace(inputs.SETTING, "") for name in self._scale.names]
        table = pd.DataFrame({"term": terms, "weight": weights})
        return table.sort_values("weight", ascending=False, ignore_index=True)


def _spread(K: np.ndarray, y: np.ndarray) -> float:
    """Of held-out errors in units of their own standard deviation, weights learned without them.

    Leave-one-out with weights learned from all trials would promise too narrow intervals.
    """
    errors = np.empty(len(y))
    fold = np.random.default_rng(0).permutation(len(y)) % _NUM_FOLDS
    for i in range(_NUM_FOLDS):
        train, test = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
        part = np.ascontiguousarray(K[:, train][:, :, train])
        weights = smoothing.learn(part, y[train, None])
        smoother = Smoother(np.tensordot(weights, part, 1))
        penalty = float(smoother.choose(y[train, None])[0])
        cross = np.tensordot(weights, K[:, test][:, :, train], 1)
        own = weights @ K[:, test, test]
        scale = np.sqrt(1 + smoother.uncertainty(cross, own, penalty))
        errors[test] = (y[test] - smoother.beyond(cross, penalty) @ y[train]) / scale
    return inputs.spread(errors)
