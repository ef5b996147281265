"""Straight lines from one early number to the final loss, which several predictors are."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.early_view import EarlyView, kept
from analysis.inputs import spread
from analysis.predictors.base import CannotPredictError, Prediction

MIN_KNOWN = 3


@dataclass(frozen=True)
class Line:
    """final = offset + slope · x, with the spread of its leave-one-out errors."""

    offset: float
    slope: float
    sd: float
    weight: float

    @classmethod
    def through(cls, x: pd.Series, target: pd.Series, what: str) -> "Line":
        """By least squares; a constant where all x are equal. Raises CannotPredictError."""
        x = x.reindex(target.index)
        keep = np.isfinite(x)
        if keep.sum() < MIN_KNOWN:
            raise CannotPredictError(f"{int(keep.sum())} trials have {what}")
        values, y = x[keep].to_numpy(float), target[keep].to_numpy(float)
        centred = values - values.mean()
        square = float(centred @ centred)
        is_flat = np.ptp(values) <= 1e-12 * max(1.0, abs(float(values[0])))
        slope = 0.0 if is_flat else float(centred @ y) / square
        offset = float(y.mean()) - slope * float(values.mean())
        leverage = 1 / len(y) + (0.0 if is_flat else centred**2 / square)
        left_out = (y - offset - slope * values) / np.maximum(1e-9, 1 - leverage)
        return cls(offset, slope, spread(left_out), slope * float(values.std()))

    def foretell(self, x: pd.Series, trials: pd.Index) -> Prediction:
        """NaN for a trial without x."""
        mean = self.offset + self.slope * x.reindex(trials)
        return Prediction(mean, pd.Series(self.sd, index=trials))

    def explain(self, term: str) -> pd.DataFrame:
        """One term."""
        return pd.DataFrame({"term": [term], "weight": [self.weight]})


@kept
def losses(view: EarlyView, quantity: str) -> pd.DataFrame:
    """One scalar quantity as trials by epochs."""
    rows = view.scalars[view.scalars["quantity"] == quantity]
    return rows.pivot_table(index="trial", columns="epoch", values="value", aggfunc="last")
