"""A predictor with all it was fitted on: how trials of any sweep will end, as a distribution.

Every predictor is deterministic, so that fitting it again on its table gives the same predictor to
the last bit: a Forecaster holds the table and the settings, and fits when it is first asked.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from analysis import divergence as dv
from analysis import inputs
from analysis.early_view import EarlyView
from analysis.frame import AnalysisError
from analysis.predictors.base import CannotPredictError, Predictor
from analysis.trial_table import known_columns, seen_of, view_of
from pipeline import catalog

LEVEL = 0.9
TENTH = 0.1
# With fewer diverged trials than this a regression on them is noise: all have the same rate.
_MIN_CASES = dv.MIN_CASES
_HAZARD: tuple[tuple[inputs.Group, ...], ...] = (
    ("settings", "loss", "norms", "spectrum"),
    ("settings", "loss", "norms"),
)
_LOGGED = ("val_loss", "train_loss", "gradient_norm", "weight_norm")


class ModelError(AnalysisError):
    """A fitted predictor that cannot be used; the message says why."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """How trials will end: diverged, or with a final loss from a (log-)normal distribution.

    Attributes:
        mean, sd: of the final loss, or of its logarithm, of a trial that does not diverge.
        diverges: the probability that it does.
        is_log: whether mean and sd are of the logarithm.

    All are indexed by trial; NaN for a trial that cannot be treated.
    """

    mean: pd.Series
    sd: pd.Series
    diverges: pd.Series
    is_log: bool

    def quantile(self, level: float) -> pd.Series:
        """The final loss that a trial which does not diverge stays below, so probably."""
        value = self.mean + float(stats.norm.ppf(level)) * self.sd
        return pd.Series(np.exp(value) if self.is_log else value)

    def below(self, loss: float) -> pd.Series:
        """The probability to end with at most this loss; a diverged trial never does."""
        if self.is_log and loss <= 0:
            return pd.Series(0.0, index=self.mean.index).where(self.mean.notna())
        limit = np.log(loss) if self.is_log else loss
        reached = stats.norm.cdf((limit - self.mean) / self.sd)
        return (1 - self.diverges) * pd.Series(reached, index=self.mean.index)


@dataclass(frozen=True, eq=False)
class Fit:
    """A predictor fitted on trials of one view, with how often these diverged.

    Attributes:
        outcome: final loss of the trials fitted on; NaN of those that diverged.
    """

    predictor: Predictor
    outcome: pd.Series
    is_log: bool

    @classmethod
    def on(cls, view: EarlyView, outcome: pd.Series, predictor: Predictor) -> "Fit":
        """Learns from the trials in `outcome`'s index. Raises CannotPredictError."""
        finite = outcome[np.isfinite(outcome)]
        is_log = bool((finite > 0).all())
        fresh = type(predictor)(predictor.config)
        target = np.log(finite) if is_log else finite
        return cls(fresh.fit(view, target), outcome, is_log)

    def foretell(self, view: EarlyView, trials: pd.Index) -> Forecast:
        """Trials of a view that also holds those fitted on."""
        found = self.predictor.predict(view, trials)
        return Forecast(found.mean, found.sd, self._hazard(view, trials), self.is_log)

    def _hazard(self, view: EarlyView, trials: pd.Index) -> pd.Series:
        is_case = self.outcome.isna()
        cases, n = int(is_case.sum()), len(is_case)
        if min(cases, n - cases) >= _MIN_CASES:
            for groups in _HAZARD:
                try:
                    return dv.probability(view, is_case, groups, trials)
                except CannotPredictError:
                    continue
        # Jeffreys' estimate: none of twenty is not never.
        return pd.Series((cases + 0.5) / (n + 1), index=trials)


@dataclass(frozen=True, eq=False)
class Forecaster:
    """A predictor with all it was fitted on: foretells trials of any sweep at the same epoch.

    Attributes:
        sweep: where the trials fitted on come from.
        epoch: at whose end trials are foretold.
        name, config: of the predictor.
        sampled: settings by which trials may be told apart.
        seen: what had been seen by `epoch`, one line a trial fitted on (see `trial_table`).
        outcome: final loss by trial; NaN of those that diverged.
        fixed: settings that were the same in all trials fitted on.
    """

    sweep: str
    epoch: int
    name: str
    config: Mapping[str, Any]
    sampled: tuple[str, ...]
    seen: pd.DataFrame
    outcome: pd.Series
    fixed: Mapping[str, str]

    @classmethod
    def of(
        cls, sweep: str, view: EarlyView, outcome: pd.Series, name: str, predictor: Predictor
    ) -> "Forecaster":
        """From trials of a view and how they ended."""
        params = view.params.loc[outcome.index]
        fixed = {
            str(key): str(params[key].iloc[0])
            for key in params
            if key not in view.sampled and params[key].map(str).nunique() == 1
        }
        config = json.loads(json.dumps(asdict(predictor.config)))
        seen = seen_of(view).loc[outcome.index]
        seen = seen[known_columns(seen)]
        return cls(sweep, view.epoch, name, config, view.sampled, seen, outcome, fixed)

    @cached_property
    def predictor(self) -> Predictor:
        """Of the name and with the settings stored; not fitted."""
        kind: type[Predictor] = catalog.load("predictors", self.name)
        try:
            # Through JSON: strict about types, yet lists may stand for tuples.
            config = TypeAdapter(kind.Config).validate_json(json.dumps(dict(self.config)))
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))
            raise ModelError(
                f"predictor {self.name!r} {where}: {fault['msg']}, got {fault['input']!r}"
            ) from error
        return kind(config)

    @cached_property
    def digest(self) -> str:
        """sha256 of what it is made of, to tell two fits of one predictor apart."""
        lists = self.seen.map(lambda v: v.tolist() if isinstance(v, np.ndarray) else v)
        table = [lists.index.tolist(), list(lists), lists.to_numpy(object).tolist()]
        made_of = [self.name, dict(self.config), self.epoch, table, self.outcome.tolist()]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    @cached_property
    def fit(self) -> Fit:
        """On the table, anew. Raises CannotPredictError."""
        number = range(len(self.seen))
        view = view_of(self.seen.set_axis(number), self.epoch, self.sampled)
        return Fit.on(view, self.outcome.set_axis(number), self.predictor)

    def foretell(self, seen: pd.DataFrame) -> Forecast:
        """Of trials in a table such as `seen_of` makes; NaN for those it cannot treat.

        But for rounding, a trial's forecast does not depend on the others in the table. Settings
        beyond those fitted on count as at their edge. Raises ModelError for a setting that is not
        there.
        """
        new, admitted = self._admitted(seen)
        num_fitted, index = len(self.seen), seen.index
        joint = pd.concat([self.seen, new[admitted]], ignore_index=True)
        view = view_of(joint, self.epoch, self.sampled)
        trials = pd.RangeIndex(num_fitted, len(joint))
        empty = pd.Series(np.nan, index=index)
        if not len(trials):
            return Forecast(empty, empty, empty, self.fit.is_log)
        found = self.fit.foretell(view, trials)
        mean, sd, diverges = (
            column.set_axis(index[admitted]).reindex(index)
            for column in (found.mean, found.sd, found.diverges)
        )
        return Forecast(mean, sd, diverges, self.fit.is_log)

    def differing(self, fixed: Mapping[str, str]) -> list[str]:
        """Settings that were fixed here and are other ones there: `task.name (a, there b)`."""
        return [
            f"{key} ({value}, there {fixed[key]})"
            for key, value in self.fixed.items()
            if key in fixed and fixed[key] != value and key != "seed"
        ]

    def _admitted(self, seen: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
        """The table with our columns, and which of its trials can be treated.

        Whether a column is logged is decided over all trials of a view, so that a newcomer from
        beyond what was fitted on would change what the others' columns mean: none is let in.
        """
        missing = [name for name in self.sampled if name not in seen]
        if missing:
            raise ModelError(
                f"predictor {self.name!r} knows trials by the settings "
                f"{', '.join(self.sampled)}, and these trials have no {', '.join(missing)}; "
                "a predictor without settings would work, such as last_seen_loss"
            )
        new = seen.reindex(columns=self.seen.columns)
        admitted = np.isfinite(pd.to_numeric(new[f"val_loss@{self.epoch}"], errors="coerce"))
        for name in self.sampled:
            known = self.seen[name]
            if pd.api.types.is_numeric_dtype(known):
                values = pd.to_numeric(new[name], errors="coerce")
                admitted &= np.isfinite(values)
                new[name] = values.clip(known.min(), known.max())
            else:
                new[name] = new[name].map(str)
                admitted &= new[name].isin(known.unique())
        for column in map(str, self.seen):
            is_logged = column.split("@")[0] in _LOGGED and (self.seen[column].dropna() > 0).all()
            if "@" in column and is_logged:
                admitted &= ~(pd.to_numeric(new[column], errors="coerce") <= 0)
        return new, admitted.to_numpy(bool)


def spelled(forecast: Forecast, best: float) -> dict[str, pd.Series]:
    """final_loss (median), low, high (the central 90 %), best_tenth, diverges; by trial."""
    return {
        "final_loss": forecast.quantile(0.5),
        "low": forecast.quantile((1 - LEVEL) / 2),
        "high": forecast.quantile((1 + LEVEL) / 2),
        "best_tenth": forecast.below(best),
        "diverges": forecast.diverges,
    }
