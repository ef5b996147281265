"""A Gaussian process on groups of features: any smooth effects, each column as far as it matters.

Rasmussen & Williams 2006, ch. 2; the kernel is `smoothing`'s sum of parts, whose weights by
restricted likelihood play the role of automatic relevance determination.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import pandas as pd

from analysis import inputs, smoothing
from analysis.early_view import EarlyView
from analysis.predictors.base import Prediction, Predictor, PredictorConfig
from analysis.smoothing import Smoother

MAX_TRIALS = 256  # the kernel grows as n²; of more, so many are drawn
_MAX_PAIRED = 6
_NUM_FOLDS = 4
_BLOCK = 64  # trials foretold at once: their kernel has a part for each term


class GaussianProcess(Predictor):
    """Smooth main effects and pairs of settings and loss, noise by leave-one-out."""

    is_costly = True
    most_fitted = MAX_TRIALS

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
        """Weights by restricted likelihood; of many trials, on `MAX_TRIALS` drawn by chance."""
        if len(target) > MAX_TRIALS:
            drawn = np.random.default_rng(0).permutation(len(target))[:MAX_TRIALS]
            target = target.iloc[np.sort(drawn)]
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
        self._sd: float | None = None
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """Mean and standard deviation of the process, noise (of held-out errors) included."""
        if self._sd is None:
            self._sd = _spread(smoothing.parts(self._Z, self._num_paired)[0], self._y)
        mean, uncertain = self._foretold(view, trials)
        sd = self._sd * np.sqrt(1 + uncertain)
        return Prediction(pd.Series(mean, index=trials), pd.Series(sd, index=trials))

    def expected(self, view: EarlyView, trials: pd.Index) -> pd.Series:
        """The mean, at a quarter of the price: the noise is learned from four more fits."""
        return pd.Series(self._foretold(view, trials)[0], index=trials)

    def _foretold(self, view: EarlyView, trials: pd.Index) -> tuple[np.ndarray, np.ndarray]:
        """Means, and variances in units of the noise's."""
        new = self._scale(inputs.table(view, self.config.groups), trials)
        mean, uncertain = np.empty((2, len(new)))
        for start in range(0, len(new), _BLOCK):
            block = slice(start, start + _BLOCK)
            cross, own = smoothing.between(self._Z, new[block], self._num_paired, self._unit)
            K = np.tensordot(self._weights, cross, 1)
            mean[block] = self._smoother.beyond(K, self._penalty) @ self._y
            uncertain[block] = self._smoother.uncertainty(K, self._weights @ own, self._penalty)
        return mean, uncertain

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
        weights = smoothing.learn(K, y[train, None], train)
        whole = np.tensordot(weights, K, 1)
        smoother = Smoother(whole[np.ix_(train, train)])
        penalty = float(smoother.choose(y[train, None])[0])
        cross = whole[np.ix_(test, train)]
        own = weights @ K[:, test, test]
        scale = np.sqrt(1 + smoother.uncertainty(cross, own, penalty))
        errors[test] = (y[test] - smoother.beyond(cross, penalty) @ y[train]) / scale
    return inputs.spread(errors)
