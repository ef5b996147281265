"""Each trial's own loss curve, extrapolated by a law: c + a·t^−b, or c + a·exp(−b·t).

Domhan, Springenberg & Hutter 2015 (IJCAI) for laws of learning curves. Few points bear one law at
a time: for each b of a grid c and a are a weighted least-squares line, later epochs weighing more;
the b's forecasts are averaged by how well they fit, so that a curve which does not tell its law
yields a middle way. How far such forecasts are right is learned from the trials fitted on.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, Self

import numpy as np
import pandas as pd

from analysis import features as ft
from analysis.curves import Line, losses
from analysis.early_view import EarlyView
from analysis.predictors.base import CannotPredictError, Prediction, Predictor, PredictorConfig

Law = Literal["power", "exponential"]
_MIN_POINTS = 3
_RATES = {"power": np.geomspace(0.1, 3, 12), "exponential": np.geomspace(0.03, 2, 12)}
_EPOCHS = "trainer.epochs"


class CurveLaw(Predictor):
    """log final loss = a + b · log loss that the trial's own law arrives at."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PredictorConfig):
        """law: how the loss approaches its end."""

        law: Law = "power"

    variants: ClassVar = {
        "curve extrapolated, power law": Config(law="power"),
        "curve extrapolated, exponential": Config(law="exponential"),
    }

    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """Extrapolates each curve, then learns how far to believe the outcome."""
        self._line = Line.through(
            _ends(view, self.config.law), target, "a curve of three finite losses"
        )
        return self

    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """The calibrated extrapolation, with one spread for all."""
        return self._line.foretell(_ends(view, self.config.law), trials)

    def explain(self) -> pd.DataFrame:
        """One term."""
        return self._line.explain(f"loss extrapolated, {self.config.law}")


@lru_cache(maxsize=16)
def _ends(view: EarlyView, law: Law) -> pd.Series:
    curve = losses(view, "val_loss")
    curve = curve.loc[:, curve.columns.to_numpy() > 0]
    if curve.shape[1] < _MIN_POINTS:
        raise CannotPredictError(f"a law needs {_MIN_POINTS} epochs, {curve.shape[1]} are over")
    curve = curve.loc[np.isfinite(curve.to_numpy()).all(axis=1)]
    epochs = curve.columns.to_numpy(float)
    length = view.params[_EPOCHS].reindex(curve.index) if _EPOCHS in view.params else np.inf
    ends = extrapolate(
        epochs, curve.to_numpy(float), np.broadcast_to(length, len(curve)).astype(float),
        law,
    )  # fmt: skip
    # No law of these can cross 0, but their average weighs lines that do.
    seen = curve.to_numpy(float)
    is_positive = bool((seen > 0).all())
    floor = seen.min(axis=1) / 10 if is_positive else np.full(len(seen), -np.inf)
    found = pd.Series(np.maximum(ends, floor), index=curve.index).reindex(view.trials)
    return ft.log_if_positive(found)


def extrapolate(epochs: np.ndarray, curves: np.ndarray, length: np.ndarray, law: Law) -> np.ndarray:
    """Losses at epoch `length`, (n,), of curves (n, T) known at `epochs`, (T,)."""
    weights = epochs / epochs.sum()
    forecasts, misfits = [], []
    for rate in _RATES[law]:
        shape, end = (
            (epochs**-rate, length**-rate) if law == "power"
            else (np.exp(-rate * epochs), np.exp(-rate * length))
        )  # fmt: skip
        centre = weights @ shape
        mean = curves @ weights
        slope = ((curves - mean[:, None]) * weights) @ (shape - centre)
        # A loss that rises extrapolates to itself: no law here rises to an end.
        slope = np.maximum(slope / (weights @ (shape - centre) ** 2), 0)
        forecasts.append(mean + slope * (end - centre))
        rest = curves - mean[:, None] - slope[:, None] * (shape - centre)
        misfits.append((rest**2) @ weights)
    misfit = np.array(misfits)
    scale = misfit.min(axis=0) + 1e-4 * curves.var(axis=1) + 1e-300
    believed = np.exp(-len(epochs) / 2 * (misfit - misfit.min(axis=0)) / scale)
    return np.asarray((believed * np.array(forecasts)).sum(axis=0) / believed.sum(axis=0))
