"""Ridge regression on groups of features, its penalty chosen by leave-one-out inside the fit.

The settings enter with squares and products, the loss seen with its square and cube: a linear
baseline would flatter the spectrum (Hoerl & Kennard 1970 for ridge; Golub, Heath & Wahba 1979
for the closed form of leave-one-out).
"""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Literal, Self

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

Group = Literal["settings", "loss", "spectrum"]

_SETTING = "settings/"
_PENALTIES = np.logspace(-3, 4, 22)


class Ridge(Predictor):
    """Linear in standardised terms, penalised."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """groups: what may be used: settings, loss, spectrum (FTLEs count as spectrum)."""

        groups: tuple[Group, ...] = ("settings", "loss", "spectrum")

    variants: ClassVar = {
        "settings": Config(groups=("settings",)),
        "settings + loss seen": Config(groups=("settings", "loss")),
        "settings + loss seen + spectrum": Config(groups=("settings", "loss", "spectrum")),
    }

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """Standardises on these trials, then takes the penalty of least leave-one-out error."""
        base = self._base(view).reindex(target.index)
        values = base.to_numpy(float)
        # The median stands in for a missing number; it is this fit's, also when predicting.
        self._names = [str(name) for name in base]
        self._median = base.median().to_numpy(float)
        self._centre, width = base.mean().to_numpy(float), base.std(ddof=0).to_numpy(float)
        self._width = np.where(width > 1e-12, width, 1.0)
        self._is_binary = (base.nunique() <= 2).to_numpy(bool)
        self._terms, X = self._expand(values)
        self._mean, self._scale = X.mean(axis=0), X.std(axis=0)
        self._used = self._scale > 1e-9
        if len(target) < 5 or not self._used.any():
            raise CannotPredictError(f"{len(target)} trials and {self._used.sum()} varying terms")
        y = target.to_numpy(float)
        self._offset = float(y.mean())
        U, s, Vt = np.linalg.svd(self._standard(X), full_matrices=False)
        self._weights, self._sd, self.penalty = _best(U, s, Vt, y - self._offset)
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The regression, with the leave-one-out error's standard deviation for all."""
        _, X = self._expand(self._base(view).reindex(trials).to_numpy(float))
        mean = self._offset + self._standard(X) @ self._weights
        return Prediction(pd.Series(mean, index=trials), pd.Series(self._sd, index=trials))

    def explain(self) -> pd.DataFrame:
        """Terms by the size of their weight."""
        table = pd.DataFrame(
            {
                "term": [t for t, used in zip(self._terms, self._used, strict=True) if used],
                "weight": self._weights,
            }
        )
        return table.sort_values("weight", key=abs, ascending=False, ignore_index=True)

    def _standard(self, X: np.ndarray) -> np.ndarray:
        # Beyond four standard deviations a cube would run away with the prediction.
        used = self._used
        standard: np.ndarray = (X[:, used] - self._mean[used]) / self._scale[used]
        return standard.clip(-4, 4)

    def _base(self, view: EarlyView) -> pd.DataFrame:
        """The columns of the chosen groups as measured, not yet raised to powers."""
        table, parts = ft.features(view), []
        if "settings" in self.config.groups:
            parts.append(ft.hyperparameters(view).add_prefix(_SETTING))
        if "loss" in self.config.groups:
            names = [n for n in (ft.LOSS_SEEN, "loss.train") if n in table]
            logged = pd.DataFrame({n: ft.log_if_positive(table[n]) for n in names})
            parts.append(logged.reindex(view.trials))
        if "spectrum" in self.config.groups:
            names = ft.measured(table)
            if not names:
                raise CannotPredictError(f"no spectrum or FTLE was measured at epoch {view.epoch}")
            parts.append(table[names])
        base = pd.concat(parts, axis=1)
        if base.shape[1] == 0:
            raise CannotPredictError(f"none of {', '.join(self.config.groups)} is known")
        return base

    def _expand(self, values: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Terms and their columns: powers and products on the fit's own scale."""
        z = (np.where(np.isfinite(values), values, self._median) - self._centre) / self._width
        terms, columns = [], []
        for i, name in enumerate(self._names):
            degree = 3 if name == ft.LOSS_SEEN else 2 if name.startswith(_SETTING) else 1
            for power in range(1, 1 + (1 if self._is_binary[i] else degree)):
                terms.append(name if power == 1 else f"{name}^{power}")
                columns.append(z[:, i] ** power)
        settings = [i for i, name in enumerate(self._names) if name.startswith(_SETTING)]
        for i, j in combinations(settings, 2):
            terms.append(f"{self._names[i]} × {self._names[j]}")
            columns.append(z[:, i] * z[:, j])
        return [term.replace(_SETTING, "") for term in terms], np.stack(columns, axis=1)


def _best(
    U: np.ndarray, s: np.ndarray, Vt: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """Weights, leave-one-out error and penalty of the ridge fit that foretells best."""
    n, found = len(y), []
    projected = U.T @ y
    for penalty in _PENALTIES:
        shrink = s**2 / (s**2 + penalty)
        leverage = 1 / n + (U**2) @ shrink
        left_out = (y - U @ (shrink * projected)) / np.maximum(1e-9, 1 - leverage)
        found.append((float(left_out @ left_out) / n, float(penalty)))
    error, penalty = min(found)
    weights: np.ndarray = Vt.T @ (s / (s**2 + penalty) * projected)
    return weights, math.sqrt(error), penalty
