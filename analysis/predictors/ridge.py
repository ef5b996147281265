"""Ridge regression on groups of features, its penalty chosen by leave-one-out inside the fit.

The settings enter with squares and products, mean-field numbers with squares, the losses with
squares and cubes: a linear baseline would flatter the spectrum (Hoerl & Kennard 1970 for ridge;
Golub, Heath & Wahba 1979 for the closed form of leave-one-out).
"""

from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, Self

import numpy as np
import pandas as pd

from analysis import features as ft
from analysis import inputs, mean_field
from analysis.early_view import EarlyView
from analysis.predictors.base import CannotPredictError, Prediction, Predictor, PredictorConfig

_PENALTIES = np.logspace(-3, 4, 22)


class Ridge(Predictor):
    """Linear in standardised terms, penalised."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """groups: what may be used: settings, theory (mean-field numbers), loss, norms, spectrum.

        FTLEs count as spectrum.
        """

        groups: tuple[inputs.Group, ...] = ("settings", "loss", "spectrum")

    variants: ClassVar = {
        "settings": Config(groups=("settings",)),
        "settings + mean-field numbers": Config(groups=("settings", "theory")),
        "settings + loss seen": Config(groups=("settings", "loss")),
        "settings + loss seen + norms": Config(groups=("settings", "loss", "norms")),
        "settings + loss seen + spectrum": Config(groups=("settings", "loss", "spectrum")),
        "spectrum": Config(groups=("spectrum",)),
    }

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """Standardises on these trials, then takes the penalty of least leave-one-out error."""
        base = inputs.table(view, self.config.groups)
        fitted = base.reindex(target.index)
        self._scale = inputs.Scale.of(fitted)
        self._is_binary = _two_values(fitted[list(self._scale.names)].to_numpy(float))
        self._terms, X = self._expand(base, target.index)
        self._mean, spread = X.mean(axis=0), X.std(axis=0)
        self._used = spread > 1e-9
        if not self._used.any():
            raise CannotPredictError("no term varies")
        self._width = spread[self._used]
        y = target.to_numpy(float)
        self._offset = float(y.mean())
        U, s, Vt = np.linalg.svd(self._standard(X), full_matrices=False)
        self._weights, left_out, self.penalty = best(U, s, Vt, y - self._offset)
        self._sd = inputs.spread(left_out)
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The regression, with the spread of the leave-one-out errors for all."""
        _, X = self._expand(inputs.table(view, self.config.groups), trials)
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
        standard: np.ndarray = (X - self._mean)[:, self._used] / self._width
        return standard.clip(-4, 4)

    def _expand(self, base: pd.DataFrame, trials: pd.Index) -> tuple[list[str], np.ndarray]:
        """Terms and their columns: powers and products on the fit's own scale."""
        z, names = self._scale(base, trials), self._scale.names
        terms, columns = [], []
        for i, name in enumerate(names):
            for power in range(1, 1 + (1 if self._is_binary[i] else _degree(name))):
                terms.append(name if power == 1 else f"{name}^{power}")
                columns.append(z[:, i] ** power)
        settings = [i for i, name in enumerate(names) if name.startswith(inputs.SETTING)]
        for i, j in combinations(settings, 2):
            terms.append(f"{names[i]} × {names[j]}")
            columns.append(z[:, i] * z[:, j])
        return [term.replace(inputs.SETTING, "") for term in terms], np.stack(columns, axis=1)


def _two_values(columns: np.ndarray) -> list[bool]:
    """Which columns hold two values at most, numbers that are missing not counted."""
    low, high = np.nanmin(columns, axis=0), np.nanmax(columns, axis=0)
    is_end = (columns == low) | (columns == high) | np.isnan(columns)
    return [bool(v) for v in is_end.all(axis=0)]


def _degree(name: str) -> int:
    if name.startswith(inputs.SETTING) or name in mean_field.LABELS:
        return 2
    return 3 if ft.FEATURES[name].group == "loss" else 1


def best(
    U: np.ndarray, s: np.ndarray, Vt: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Weights, leave-one-out errors and penalty of the ridge fit that foretells best."""
    n, found = len(y), []
    projected = U.T @ y
    for penalty in _PENALTIES:
        shrink = s**2 / (s**2 + penalty)
        leverage = 1 / n + (U**2) @ shrink
        left_out = (y - U @ (shrink * projected)) / np.maximum(1e-9, 1 - leverage)
        found.append((float(left_out @ left_out), float(penalty), left_out))
    _, penalty, left_out = min(found, key=lambda f: f[:2])
    weights: np.ndarray = Vt.T @ (s / (s**2 + penalty) * projected)
    return weights, left_out, penalty
