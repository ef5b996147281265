"""What a predictor is: fitted on some trials of an EarlyView, it foretells others' final loss.

Predictors work on the logarithm of the loss wherever all losses are positive; `evaluate`
decides that once for a sweep and hands over targets already transformed.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pandas as pd
from scipy import stats

from analysis.early_view import EarlyView
from tasks.base import Config


class CannotPredictError(ValueError):
    """This predictor lacks what it needs at this epoch; the message says what."""


@dataclass(frozen=True)
class Prediction:
    """A normal distribution a trial, in the target's transformed unit.

    Attributes:
        mean, sd: indexed by trial.
    """

    mean: pd.Series
    sd: pd.Series

    def quantile(self, level: float) -> pd.Series:
        """The value that a trial's outcome stays below with this probability."""
        return self.mean + float(stats.norm.ppf(level)) * self.sd


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(Config):
    """Base of the predictors' settings."""


class Predictor(ABC):
    """One way of foretelling the final loss.

    `variants` are the settings under which the report compares this predictor, by the words
    the report uses for them. `is_costly` where one fit takes more than some hundredths of a second:
    such a predictor is cross-validated in fewer folds. `most_fitted`: of more trials it takes so
    many, drawn by chance, or a part of it does; None where it takes all.
    """

    is_costly: ClassVar[bool] = False
    most_fitted: ClassVar[int | None] = None
    Config: ClassVar[type[PredictorConfig]]
    variants: ClassVar[Mapping[str, PredictorConfig]]

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def sees_spectrum(self) -> bool:
        """Whether the spectrum or FTLEs are among what it may use."""
        return "spectrum" in getattr(self.config, "groups", ())

    @abstractmethod
    def fit(self, view: EarlyView, target: pd.Series) -> Self:
        """Learns from the trials in `target`'s index, and from no other trial of the view.

        Every transform, scale and choice is made on those trials alone. Raises
        CannotPredictError.
        """

    @abstractmethod
    def predict(self, view: EarlyView, trials: pd.Index) -> Prediction:
        """Foretells the outcome of these trials of the view; NaN for one it cannot treat."""

    def expected(self, view: EarlyView, trials: pd.Index) -> pd.Series:
        """`predict`'s mean alone, where its spread is what costs."""
        return self.predict(view, trials).mean

    @abstractmethod
    def explain(self) -> pd.DataFrame:
        """What the fit rests on: columns term, weight (per standard deviation of the term)."""
