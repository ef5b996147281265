"""Numbers of an EarlyView as a matrix for predictors, scaled on the trials fitted on.

Medians, scales and logarithms are those of the trials fitted on, also when others are foretold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from analysis import features as ft
from analysis.early_view import EarlyView, kept
from analysis.mean_field import mean_field
from analysis.predictors.base import CannotPredictError

Group = Literal["settings", "theory", "loss", "norms", "spectrum"]
"""`theory`: what mean-field theory says from the settings alone (`mean_field`)."""
Foretell = Callable[[np.ndarray], np.ndarray]

SETTING = "settings/"
MIN_TRIALS = 5
_CLIP = 4.0
_NUM_FOLDS = 3


@kept
def table(view: EarlyView, groups: tuple[Group, ...]) -> pd.DataFrame:
    """The columns of the groups as measured, losses logged; settings' names begin `settings/`.

    "spectrum" includes FTLEs. Raises CannotPredictError where nothing is known, no spectrum was
    measured, or mean-field theory has no formula for these networks.
    """
    known, found = ft.features(view), []
    if "settings" in groups:
        found.append(ft.hyperparameters(view).add_prefix(SETTING))
    if "theory" in groups:
        theory = mean_field(view.params)
        if theory.table.empty:
            raise CannotPredictError(f"mean-field numbers: {theory.omitted}")
        found.append(theory.table)
    if "loss" in groups:
        names = [n for n in map(str, known) if ft.FEATURES[n].group == "loss"]
        names.sort(key=lambda name: name != ft.LOSS_SEEN)
        logged = {n: _logged(n, known[n]) for n in names}
        found.append(pd.DataFrame(logged, index=view.trials))
    if "norms" in groups:
        names = [n for n in map(str, known) if ft.FEATURES[n].group == "norms"]
        found.append(pd.DataFrame({n: _logged(n, known[n]) for n in names}, index=view.trials))
    if "spectrum" in groups:
        names = ft.measured(known)
        if not names:
            raise CannotPredictError(f"no spectrum or FTLE was measured at epoch {view.epoch}")
        found.append(known[names])
    whole = pd.concat(found, axis=1)
    if whole.shape[1] == 0:
        raise CannotPredictError(f"none of {', '.join(groups)} is known")
    return whole


def _logged(name: str, values: pd.Series) -> pd.Series:
    return values if ft.FEATURES[name].is_signed else ft.log_if_positive(values)


@dataclass(frozen=True, eq=False)
class Scale:
    """Columns as the fit saw them, to (n, d) of mean 0 and variance 1, no value beyond four."""

    names: tuple[str, ...]
    median: np.ndarray
    centre: np.ndarray
    width: np.ndarray

    @classmethod
    def of(cls, fitted: pd.DataFrame) -> "Scale":
        """Raises CannotPredictError for fewer than five trials or columns that all are constant."""
        values = fitted.to_numpy(float)
        known = np.isfinite(values)
        count = np.maximum(known.sum(axis=0), 1)
        filled = np.where(known, values, 0)
        centre = filled.sum(axis=0) / count
        width = np.sqrt(np.where(known, (values - centre) ** 2, 0).sum(axis=0) / count)
        varies = width > 1e-9 * (1 + np.abs(filled).max(axis=0, initial=0))
        if len(fitted) < MIN_TRIALS or not varies.any():
            raise CannotPredictError(f"{len(fitted)} trials and {varies.sum()} varying terms")
        return cls(
            tuple(str(name) for name, kept in zip(fitted, varies, strict=True) if kept),
            np.nanmedian(values[:, varies], axis=0), centre[varies], width[varies],
        )  # fmt: skip

    def __call__(self, whole: pd.DataFrame, trials: pd.Index) -> np.ndarray:
        """(trials, columns); the fit's median where a number is missing."""
        values = whole.reindex(index=trials, columns=list(self.names)).to_numpy(float)
        values = np.where(np.isfinite(values), values, self.median)
        return np.asarray(((values - self.centre) / self.width).clip(-_CLIP, _CLIP))


def held_out_spread(
    fit: Callable[[np.ndarray, np.ndarray], Foretell], X: np.ndarray, y: np.ndarray
) -> float:
    """`spread` of the errors of an inner cross-validation."""
    errors, fold = np.empty(len(y)), np.random.default_rng(0).permutation(len(y)) % _NUM_FOLDS
    for i in range(min(_NUM_FOLDS, len(y))):
        out = fold == i
        errors[out] = y[out] - fit(X[~out], y[~out])(X[out])
    return spread(errors)


def spread(errors: np.ndarray) -> float:
    """The standard deviation whose normal 90 % interval holds nine tenths of held-out errors.

    Tails heavier or lighter than a normal's thereby leave the coverage of the interval alone.
    """
    n = len(errors)
    level = min(1.0, 0.9 * (n + 1) / n)
    return float(np.quantile(np.abs(errors), level) / stats.norm.ppf(0.95)) + 1e-12
