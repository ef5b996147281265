"""How the trials of a sweep will end, foretold from what was seen of them by one epoch.

Every trial is foretold by a predictor that never saw its end: one that has not ended by a predictor
fitted on all that have, one that has ended by a predictor fitted on the other folds, so that the
table of a finished sweep shows what would have been said at that epoch. A predictor of another
sweep (`--from`) uses no outcome of this one at all.

The best tenth is that of all trials in the table, diverged ones last. Where it ends is itself
foretold: so that the expected number of trials below it is a tenth, ends that the predictor was
fitted on counted as they were.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis import features as ft
from analysis import words
from analysis.early_view import EarlyView
from analysis.evaluate import MIN_TRIALS
from analysis.forecaster import LEVEL, TENTH, Fit, Forecast, Forecaster, spelled
from analysis.frame import AnalysisError, SweepFrame
from analysis.parallel import products_on_one_core
from analysis.predictors.base import CannotPredictError, Predictor
from analysis.trial_table import seen_of
from pipeline import catalog
from pipeline.catalog import UnknownNameError

DEFAULT = "ridge"
NUM_FOLDS = 10
_COSTLY_FOLDS = 4
_NUM_BISECTIONS = 80
_ENDED = ("complete", "diverged")
_MOST_NOTED = 3


@dataclass(frozen=True, eq=False)
class Outlook:
    """What is foretold of a sweep's trials.

    Attributes:
        sweep, epoch: of which trials, seen by the end of which epoch.
        predictor: in words.
        source: the sweep whose ends the predictor was fitted on.
        num_fitted, num_diverged: trials it was fitted on, and how many of them diverged.
        num_best: how many trials make the best tenth.
        table: one line a trial, the likeliest of the best tenth first: trial, state, loss_seen,
            final_loss (median), low, high (the central 90 %), best_tenth, diverges (probabilities),
            ended_with (its real final loss, which did not enter; NaN where there is none).
            final_loss, low and high are of a trial that does not diverge.
        notes: what a reader must know.
    """

    sweep: str
    epoch: int
    predictor: str
    source: str
    num_fitted: int
    num_diverged: int
    num_best: int
    table: pd.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Standing:
    """The trials of a sweep that were in training at the end of an epoch, and what came of them.

    Attributes:
        view: what had been seen.
        trials: in training, with a finite loss at that epoch and epochs ahead of them.
        outcome: of those that ended since: the final loss, NaN where it diverged.
    """

    view: EarlyView
    trials: pd.Index
    outcome: pd.Series

    @classmethod
    def of(cls, frame: SweepFrame, epoch: int) -> "Standing":
        """Raises AnalysisError where nothing lies ahead at that epoch or nothing was recorded."""
        epochs = sorted(set(frame.scalars["epoch"].tolist()))
        if epoch not in epochs:
            raise AnalysisError(
                f"sweep {frame.info.name!r}: --at must be an epoch on record, got {epoch}; "
                f"there are {words.either(epochs) or 'none'}"
            )
        view = ft.early_view(frame, epoch)
        quantity = frame.target_quantity
        current = view.current
        now = current[quantity] if quantity in current else pd.Series(np.nan, index=view.trials)
        planned = _planned(frame).reindex(view.trials)
        ended = frame.trials.reindex(view.trials)
        stands = pd.Series(np.isfinite(now.astype(float)) & (planned > epoch), index=view.trials)
        # One that its record calls complete at this very epoch has nothing ahead of it.
        stands &= ~(ended["state"].isin(_ENDED) & (ended["last_epoch"] <= epoch))
        trials = view.trials[stands.to_numpy(bool)]
        if trials.empty:
            raise AnalysisError(
                f"sweep {frame.info.name!r}: --at must leave something ahead, got epoch {epoch}, "
                f"after which no trial goes on ({words.count(len(view.trials), 'trial')} seen, "
                f"planned end: epoch {int(planned.max())})"
            )
        state, target = ended.loc[trials, "state"], ended.loc[trials, "target"].astype(float)
        # A final loss that is not finite is a divergence in all but name.
        outcome = target[state.isin(_ENDED)]
        return cls(view, trials, outcome)

    def need_enough(self, frame: SweepFrame) -> None:
        """Raises AnalysisError where too few of the trials have ended to fit a predictor."""
        finite = self.outcome.dropna()
        name, epoch = frame.info.name, self.view.epoch
        if len(finite) < MIN_TRIALS:
            states = frame.trials.loc[self.trials, "state"].value_counts().sort_index()
            came = ", ".join(f"{count} {state}" for state, count in states.items())
            raise AnalysisError(
                f"sweep {name!r}: predicting needs at least {MIN_TRIALS} trials that went beyond "
                f"epoch {epoch} and ended with a finite loss, got {len(finite)} ({came}); wait for "
                f"more (`lyapsweep status {name}`), choose an earlier --at, or take a predictor "
                "of another sweep: --from OTHER"
            )
        if finite.nunique() == 1:
            raise AnalysisError(
                f"sweep {name!r}: the final losses must differ, but all {len(finite)} trials that "
                f"ended have {finite.iloc[0]:g}; there is nothing to foretell"
            )


@products_on_one_core
def predict(
    frame: SweepFrame, epoch: int, predictor: str = DEFAULT, *, fitted: Forecaster | None = None
) -> Outlook:
    """Foretells every trial that was in training at the end of `epoch`.

    Args:
        predictor: a name, or the words of a variant; of no effect beside `fitted`.
        fitted: a predictor of another sweep, of the same epoch.

    Raises AnalysisError, CannotPredictError, UnknownNameError.
    """
    standing = Standing.of(frame, epoch)
    num_best = max(1, round(TENTH * len(standing.trials)))
    if fitted is None:
        standing.need_enough(frame)
        name, made = named(predictor)
        found = _within(standing, made, name, num_best)
        outcome, source = standing.outcome, frame.info.name
        notes = _notes(frame, standing)
    else:
        if fitted.epoch != epoch:
            raise AnalysisError(
                f"a predictor foretells from the epoch it was fitted at, {fitted.epoch}, got "
                f"--at {epoch}; use --at {fitted.epoch}, or fit another one"
            )
        name, outcome, source = fitted.name, fitted.outcome, fitted.sweep
        forecast = fitted.foretell(_seen_of_any(standing.view, fitted).loc[standing.trials])
        found = pd.DataFrame(spelled(forecast, threshold(np.empty(0), [forecast], num_best)))
        notes = _foreign(frame, standing, fitted)
    table = _table(frame, standing, found)
    unknown = int(table["final_loss"].isna().sum())
    if unknown:
        cannot = (
            f"{words.count(unknown, 'trial')} cannot be foretold: what the predictor needs was "
        )
        notes = (*notes, cannot + "not recorded, or a setting is one it has never seen.")
    diverged = int(outcome.isna().sum())
    return Outlook(
        frame.info.name, epoch, name, source, len(outcome), diverged, num_best, table, notes
    )


@products_on_one_core
def forecaster(frame: SweepFrame, epoch: int, predictor: str = DEFAULT) -> Forecaster:
    """The predictor fitted on all trials of the sweep that ended after `epoch`.

    Raises AnalysisError, CannotPredictError, UnknownNameError.
    """
    standing = Standing.of(frame, epoch)
    standing.need_enough(frame)
    words_, made = named(predictor)
    name = _file_of(made)
    made_of = Forecaster.of(frame.info.name, standing.view, standing.outcome, name, made)
    try:
        made_of.fit  # noqa: B018 - whoever cannot be fitted should not be handed on
    except CannotPredictError as error:
        raise _refused(words_, epoch, error) from error
    return made_of


def named(predictor: str) -> tuple[str, Predictor]:
    """The predictor by file name (its settings the default ones) or by a variant's words.

    Returns it with those of its words that say what it uses. Raises UnknownNameError.
    """
    known = catalog.entries("predictors")
    if predictor in known:
        kind: type[Predictor] = catalog.load("predictors", predictor)
        config = kind.Config()
        found = [spelled_ for spelled_, c in kind.variants.items() if c == config]
        return f"{predictor} ({found[0]})" if found else predictor, kind(config)
    variants: dict[str, Predictor] = {}
    for name in known:
        kind = catalog.load("predictors", name)
        variants |= {spelled_: kind(config) for spelled_, config in kind.variants.items()}
    if predictor in variants:
        return predictor, variants[predictor]
    listed = "; ".join(f"'{v}'" for v in variants)
    raise UnknownNameError(
        f"no predictor {predictor!r}; there are {', '.join(known)}, and in words {listed}"
    )


def threshold(known: np.ndarray, forecasts: Sequence[Forecast], count: float) -> float:
    """The final loss below which `count` trials are expected: ∞ where so many will not end.

    known: final losses that are certain, ∞ where a trial diverged.
    """
    known = np.sort(known[np.isfinite(known)])
    ends = [f.quantile(level).dropna() for f in forecasts for level in (1e-6, 1 - 1e-6)]
    values = np.concatenate([known, *(e.to_numpy(float) for e in ends)])
    values = values[np.isfinite(values)]
    if not len(values):
        return math.inf

    def expected(loss: float) -> float:
        below = sum(float(f.below(loss).sum()) for f in forecasts)
        return float(np.searchsorted(known, loss, side="right")) + below

    low, high = float(values.min()), float(values.max())
    if expected(high) < count:
        return math.inf
    for _ in range(_NUM_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if expected(middle) >= count else (middle, high)
    return high


def _within(standing: Standing, predictor: Predictor, name: str, num_best: int) -> pd.DataFrame:
    """Ended trials from the other folds, the others from all that ended."""
    view, outcome, trials = standing.view, standing.outcome, standing.trials
    num_folds = _COSTLY_FOLDS if predictor.is_costly else NUM_FOLDS
    # Over all that stood, whatever came of them: a trial's fold must not tell its end.
    fold = pd.Series(np.random.default_rng(0).permutation(len(trials)) % num_folds, index=trials)
    ahead = trials.difference(outcome.index)
    parts = []
    try:
        for i in range(num_folds):
            rest = outcome[(fold[outcome.index] != i).to_numpy(bool)]
            out = outcome.index.difference(rest.index)
            if len(out):
                fit = Fit.on(view, rest, predictor)
                forecast = fit.foretell(view, out.append(ahead))
                best = threshold(rest.fillna(np.inf).to_numpy(float), [forecast], num_best)
                parts.append(pd.DataFrame(spelled(forecast, best)).loc[out])
        if len(ahead):
            forecast = Fit.on(view, outcome, predictor).foretell(view, ahead)
            best = threshold(outcome.fillna(np.inf).to_numpy(float), [forecast], num_best)
            parts.append(pd.DataFrame(spelled(forecast, best)))
    except CannotPredictError as error:
        raise _refused(name, view.epoch, error) from error
    return pd.concat(parts)


def _table(frame: SweepFrame, standing: Standing, found: pd.DataFrame) -> pd.DataFrame:
    trials = standing.trials
    table = pd.DataFrame(index=trials.rename("trial"))
    table["state"] = frame.trials.loc[trials, "state"]
    table["loss_seen"] = standing.view.current.loc[trials, frame.target_quantity]
    table = table.join(found.rename_axis("trial"))
    table["ended_with"] = standing.outcome.reindex(trials)
    table = table.reset_index()
    by = ["best_tenth", "final_loss", "trial"]
    return table.sort_values(by, ascending=[False, True, True], ignore_index=True)


def _notes(frame: SweepFrame, standing: Standing) -> tuple[str, ...]:
    states = frame.trials.loc[standing.trials, "state"]
    found = []
    pruned = int((states == "pruned").sum())
    if pruned:
        found.append(
            f"{words.count(pruned, 'trial')} left early by a pruner: what is said of them is how "
            "they would have ended, learned from those that the pruner let stay."
        )
    return (*found, *_gone(frame, standing))


def _gone(frame: SweepFrame, standing: Standing) -> tuple[str, ...]:
    """How many of the published trials are not in the table."""
    gone = len(frame.trials) - len(standing.trials)
    if not gone:
        return ()
    return (
        f"{words.count(gone, 'trial')} left out: ended by epoch {standing.view.epoch}, or without "
        "a finite loss there.",
    )


def _foreign(frame: SweepFrame, standing: Standing, fitted: Forecaster) -> tuple[str, ...]:
    found = []
    params = standing.view.params.loc[standing.trials]
    fixed = {str(name): words.either(sorted({str(v) for v in params[name]})) for name in params}
    differing = fitted.differing(fixed)
    if differing:
        more = len(differing) - _MOST_NOTED
        rest = f" and {more} more" if more > 0 else ""
        found.append(
            f"The predictor was fitted where these settings were others: "
            f"{'; '.join(differing[:_MOST_NOTED])}{rest}. Its intervals do not allow for that."
        )
    outside = [
        name
        for name in fitted.sampled
        if name in params and _is_outside(params[name], fitted.seen[name])
    ]
    if outside:
        found.append(
            f"Some trials lie beyond the {', '.join(outside)} fitted on, and count as at the edge."
        )
    return (*found, *_gone(frame, standing))


def _is_outside(values: pd.Series, known: pd.Series) -> bool:
    if not pd.api.types.is_numeric_dtype(known) or not ft.is_number(values):
        return False
    return bool((values.astype(float) < known.min()).any() or (values > known.max()).any())


def _seen_of_any(view: EarlyView, fitted: Forecaster) -> pd.DataFrame:
    """With the settings that the predictor knows, be they sampled here or not."""
    sampled = tuple(name for name in fitted.sampled if name in view.params)
    return seen_of(replace(view, sampled=sampled))


def _planned(frame: SweepFrame) -> pd.Series:
    """The epoch at which each trial ends unless something happens, by trial."""
    epochs = {
        h.trial: h.epochs_planned or h.params.get("trainer.epochs") or frame.final_epoch
        for h in frame.headers
    }
    return pd.Series(epochs, dtype=float)


def _file_of(predictor: Predictor) -> str:
    return type(predictor).__module__.rpartition(".")[2]


def _refused(name: str, epoch: int, error: CannotPredictError) -> CannotPredictError:
    return CannotPredictError(
        f"predictor {name!r} cannot be fitted at epoch {epoch}: {error}; another may, e.g. "
        "--predictor 'settings + loss seen', which needs no spectrum"
    )


def lines(outlook: Outlook) -> list[str]:
    """The table as text for a terminal, what it is first and the notes last."""
    level = words.percent(LEVEL)
    fitted = words.count(outlook.num_fitted, "ended trial")
    diverged = f", {outlook.num_diverged} of them diverged" if outlook.num_diverged else ""
    head = (
        f"{outlook.sweep} at epoch {outlook.epoch}, by {outlook.predictor}, fitted on {fitted}"
        f"{diverged}" + (f" of {outlook.source}." if outlook.source != outlook.sweep else ".")
    )
    columns = {
        "trial": [str(t) for t in outlook.table["trial"]],
        "state": list(outlook.table["state"]),
        "seen": [words.significant(v) for v in outlook.table["loss_seen"]],
        "final loss": [words.significant(v) for v in outlook.table["final_loss"]],
        f"{level} interval": [
            f"{words.significant(low)} to {words.significant(high)}"
            for low, high in zip(outlook.table["low"], outlook.table["high"], strict=True)
        ],
        "best tenth": [_probability(v) for v in outlook.table["best_tenth"]],
        "diverges": [_probability(v) for v in outlook.table["diverges"]],
        "ended with": [words.significant(v) for v in outlook.table["ended_with"]],
    }
    width = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
    rows = [tuple(columns), *zip(*columns.values(), strict=True)]
    body = [
        "  ".join(
            cell.ljust(width[name]) if name == "state" else cell.rjust(width[name])
            for name, cell in zip(columns, row, strict=True)
        ).rstrip()
        for row in rows
    ]
    explained = (
        f"Best tenth: the probability to be among the best {outlook.num_best} of "
        f"{words.count(len(outlook.table), 'trial')}. Final loss and interval: if the trial does "
        "not diverge. No trial's own end entered what is said of it."
    )
    return [head, *body, explained, *outlook.notes]


def _probability(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    percent = 100 * value
    return "< 1 %" if percent < 0.95 else "> 99 %" if percent > 99.05 else f"{percent:.0f} %"


def as_json(outlook: Outlook) -> dict[str, object]:
    """All of it in JSON's types; NaN is null."""
    rows = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in outlook.table.to_dict("records")
    ]
    return {
        "sweep": outlook.sweep, "epoch": outlook.epoch, "predictor": outlook.predictor,
        "fitted_on": outlook.source, "num_fitted": outlook.num_fitted,
        "num_diverged": outlook.num_diverged, "num_best": outlook.num_best, "interval": LEVEL,
        "trials": rows, "notes": list(outlook.notes),
    }  # fmt: skip
