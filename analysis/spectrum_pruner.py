"""The pruner `spectrum`: a trial leaves once its final loss will hardly be among the best.

At a rung where a spectrum (or FTLEs) was measured, a predictor is fitted on trials that ran to
their end, of this sweep and, if wanted, of another one, and foretells the final loss of those
still in training from settings, losses so far and what was measured. Whoever is among the best
`share` with a probability below 1 - `confidence` leaves. The rule is that of Domhan, Springenberg
& Hutter 2015 (IJCAI) with the regression on settings and curve of Baker et al. 2017 (arXiv
1705.10823); the spectrum is what is new, and `groups` without it is the pruner to compare with.

Pure like all pruners: fitted afresh whenever it is asked, on what it is handed, so that neither
the number of workers nor an interruption changes who leaves. Trials that were pruned have no
final loss and are not learned from; in what counts as the best share they are worse than it.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from analysis.early_view import EarlyView
from analysis.frame import MEASURED_PREFIXES, AnalysisError, SweepFrame
from analysis.inputs import MIN_TRIALS, Group
from analysis.predictors.base import CannotPredictError, Predictor
from pipeline import catalog, records
from pipeline.pruning import Pruner, PrunerConfig, Trace
from pipeline.rows import Row
from pipeline.store import NoSuchSweepError, open_store, store_uri
from tasks.base import Bounds, UnsuitableError

# Its warnings are what the pruner has to say; a replay listens here.
LOGGER = logging.getLogger("lyapsweep.pruner")

_MEASUREMENTS = {
    "loss": ("train_loss",),
    "norms": ("gradient_norm", "weight_norm"),
    "spectrum": tuple(prefix.rstrip(".") for prefix in MEASURED_PREFIXES),
}
# A view of thousands of trials takes seconds at every rung, and the fit is none the better.
_MOST_LEARNED = 500
# Lifts logarithms to where no range of theirs looks wide enough to be logged once more.
_LIFT = 100.0

Views = Callable[[int, Sequence[Trace]], EarlyView]


class SpectrumPruner(Pruner):
    """Leaves who is very probably not going to be among the best."""

    @dataclass(frozen=True, kw_only=True)
    class Config(PrunerConfig):
        """When a forecast is believed, and what it is made from.

        share: a trial is good if it ends among this share of all trials.
        confidence: it leaves when it is not good with at least this probability.
        n_startup_trials: trials that ran to their end before it decides anything.
        predictor: which of `lyapsweep list predictors` foretells.
        groups: what it may use: settings, loss, norms, spectrum (with FTLEs).
        from_sweep: a finished sweep on the same task to learn from as well.
        from_store: where that is kept; None takes $LYAPSWEEP_STORE or the usual place.
        """

        share: Annotated[float, Bounds(gt=0, lt=1)] = 0.1
        confidence: Annotated[float, Bounds(ge=0.5, lt=1)] = 0.95
        n_startup_trials: Annotated[int, Bounds(ge=MIN_TRIALS)] = 20
        predictor: str = "ridge"
        groups: tuple[Group, ...] = ("settings", "loss", "norms", "spectrum")
        from_sweep: str | None = None
        from_store: str | None = None

    def __init__(self, config: Any, *, epochs: int, seed: int) -> None:
        """Reads the other sweep. Raises NoSuchSweepError, UnsuitableError, UnknownNameError."""
        super().__init__(config, epochs=epochs, seed=seed)
        self.quantities = tuple(q for g in config.groups for q in _MEASUREMENTS.get(g, ()))
        self.views: Views = view_of
        self._predictor = _predictor(config.predictor, config.groups)
        self.donors: tuple[Trace, ...] = ()
        if config.from_sweep is not None:
            self.donors = _donors(config.from_sweep, store_uri(config.from_store), epochs)
            self.needs_finished = len(self.donors) < config.n_startup_trials
        self._said: set[str] = set()

    def decide(
        self, epoch: int, standing: Sequence[Trace], ended: Sequence[Trace]
    ) -> frozenset[int]:
        """See `Pruner`."""
        if not standing or not self._is_due(epoch, standing):
            return frozenset()
        # Fits differ in the last bits with the order of their trials.
        standing, ended = (sorted(ts, key=lambda t: t.number) for ts in (standing, ended))
        own = [t for t in ended if t.state == "complete" and math.isfinite(final_loss(t))]
        learned = [*self.donors, *own[-_MOST_LEARNED:]]
        problem = self._obstacle(epoch, standing, learned)
        if problem:
            return self._keep_all(*problem)
        view = self.views(epoch, [*learned, *standing])
        final = pd.Series({t.number: final_loss(t) for t in learned})
        is_log = bool((final.to_numpy() > 0).all())
        target = pd.Series(np.log(final.to_numpy()) if is_log else final, index=final.index)
        trials = pd.Index([t.number for t in standing])
        try:
            foretold = self._predictor.fit(view, target).predict(view, trials)
        except CannotPredictError as error:
            return self._keep_all("forecast", f"it cannot foretell after epoch {epoch} ({error})")
        limit = self._limit(ended, is_log=is_log)
        is_good = stats.norm.cdf((limit - foretold.mean) / foretold.sd)
        leaves = is_good < 1 - self.config.confidence  # False for NaN: no forecast, no verdict
        return frozenset(int(n) for n in trials[leaves])

    def _is_due(self, epoch: int, standing: Sequence[Trace]) -> bool:
        """At the epochs it is given, else where what it looks at was measured."""
        if self.config.at is not None or "spectrum" not in self.config.groups:
            return True
        return any(_is_measured(t, epoch) for t in standing)

    def _obstacle(
        self, epoch: int, standing: Sequence[Trace], learned: Sequence[Trace]
    ) -> tuple[str, str] | None:
        """What stands against a forecast, by kind and in words."""
        needed = self.config.n_startup_trials
        if len(learned) < needed:
            return "few", f"{len(learned)} trials have run to their end, {needed} are needed"
        mine, theirs = (
            {t.params.get("task.name") for t in ts} for ts in (standing, self.donors or standing)
        )
        if mine != theirs:
            there, here = (", ".join(sorted(map(str, names))) for names in (theirs, mine))
            return "task", f"sweep {self.config.from_sweep!r} learns {there}, this one {here}"
        if "spectrum" in self.config.groups and not any(_is_measured(t, epoch) for t in learned):
            return "spectrum", f"no trial it learns from has a spectrum of epoch {epoch}"
        return None

    def _limit(self, ended: Sequence[Trace], *, is_log: bool) -> float:
        """The final loss of the last good trial; of the other sweep's while there are few."""
        own = [_rank_loss(t) for t in ended if t.state != "failed"]
        if sum(map(math.isfinite, own)) < self.config.n_startup_trials:
            own += [_rank_loss(t) for t in self.donors]
        count = max(1, int(self.config.share * len(own)))
        limit = sorted(own)[min(count, sum(map(math.isfinite, own))) - 1]
        return math.log(limit) if is_log else limit

    def _keep_all(self, kind: str, reason: str) -> frozenset[int]:
        if kind not in self._said:
            self._said.add(kind)
            LOGGER.warning("pruner spectrum keeps all for now: %s", reason)
        return frozenset()


def final_loss(trace: Trace) -> float:
    """The last loss of a trial; final only where it ran to its end."""
    return trace.losses[max(trace.losses)] if trace.losses else math.nan


def view_of(epoch: int, traces: Sequence[Trace]) -> EarlyView:
    """What these trials had shown by the end of an epoch.

    Which trials are in it changes nothing for any one of them: settings that are positive enter
    as logarithms whatever their range, others as they are, words as one 0/1 column each.
    """
    tables = [records.to_table("", t.number, _rows(t, epoch)) for t in traces]
    table = pa.concat_tables(tables) if tables else records.SCHEMA.empty_table()
    index = pd.Index([t.number for t in traces], name="trial")
    names = sorted({name for t in traces for name in t.params})
    given = {n: [_plain(t.params.get(n)) for t in traces] for n in names}
    terms = {name: c for n, values in given.items() for name, c in _terms(n, values).items()}
    params = pd.DataFrame({**given, **terms}, index=index)
    return EarlyView(epoch, params, tuple(terms), table)


def _rows(trace: Trace, epoch: int) -> list[Row]:
    losses = [
        Row(e, 0, "val_loss", np.array(loss), unit="nats")
        for e, loss in trace.losses.items()
        if e <= epoch
    ]
    return losses + [row for row in trace.rows if row.epoch <= epoch]


def _terms(name: str, values: Sequence[Any]) -> dict[str, list[float]]:
    """A setting that varies, as numbers."""
    if len(set(map(str, values))) < 2:
        return {}
    if all(isinstance(v, int | float) and math.isfinite(v) for v in values):
        if min(values) > 0:
            return {f"{name} (log)": [_LIFT + math.log(v) for v in values]}
        return {f"{name} (number)": [float(v) for v in values]}
    spelled = list(map(str, values))
    return {f"{name}={w}": [float(s == w) for s in spelled] for w in sorted(set(spelled))}


def _plain(value: Any) -> Any:
    """The same for a setting in memory and as it was stored: lists for tuples, then text."""
    return value if isinstance(value, int | float | str) else json.dumps(value)


def _is_measured(trace: Trace, epoch: int) -> bool:
    return any(r.epoch == epoch and r.quantity.startswith(MEASURED_PREFIXES) for r in trace.rows)


def _rank_loss(trace: Trace) -> float:
    """Final loss, +∞ for who did not come to an end of its own."""
    loss = final_loss(trace) if trace.state == "complete" else math.nan
    return loss if math.isfinite(loss) else math.inf


def _predictor(name: str, groups: Sequence[Group]) -> Predictor:
    kind: type[Predictor] = catalog.load("predictors", name)
    settings: type[Any] = kind.Config
    takes_groups = "groups" in {f.name for f in fields(settings)}
    return kind(settings(groups=tuple(groups)) if takes_groups else settings())


@lru_cache(maxsize=4)
def _donors(name: str, uri: str, epochs: int) -> tuple[Trace, ...]:
    """Complete trials of another sweep, under numbers that none of this one has."""
    store = open_store(uri)
    try:
        info = store.sweep(name)
    except NoSuchSweepError as error:
        raise NoSuchSweepError(f"pruner.from_sweep: {error} (pruner.from_store names it)") from None
    if info.state != "complete":
        raise UnsuitableError(
            f"pruner.from_sweep: must be a sweep that is complete, lest it change while this one "
            f"runs, but {name!r} is {info.state}; `lyapsweep resume {name}` goes on with it"
        )
    try:
        frame = SweepFrame.from_store(store, name)
    except AnalysisError as error:
        raise UnsuitableError(f"pruner.from_sweep: {error}") from None
    if frame.final_epoch != epochs:
        raise UnsuitableError(
            f"pruner.from_sweep: final losses compare after the same number of epochs only, but "
            f"trials of {name!r} have {frame.final_epoch} and those of this sweep {epochs}"
        )
    wanted = tuple(q for quantities in _MEASUREMENTS.values() for q in quantities)
    return tuple(
        Trace(-1 - t.number, t.params, t.losses, t.rows, t.state, t.value)
        for t in traces(frame, wanted)
        if t.state == "complete" and math.isfinite(final_loss(t))
    )


def traces(frame: SweepFrame, quantities: Sequence[str]) -> list[Trace]:
    """What a referee would know of a sweep's trials at its end, in order of their numbers."""
    scalars = frame.scalars[frame.scalars["quantity"] == frame.target_quantity]
    losses: dict[int, dict[int, float]] = {}
    columns = (scalars[c].tolist() for c in ("trial", "epoch", "value"))
    for trial, epoch, loss in zip(*columns, strict=True):
        losses.setdefault(trial, {})[epoch] = loss
    rows = _rows_by_trial(frame, tuple(sorted(quantities)))
    return [
        Trace(
            h.trial, h.params, dict(sorted(losses.get(h.trial, {}).items())),
            rows.get(h.trial, []), h.state, h.value,
        )
        for h in frame.headers
    ]  # fmt: skip


@lru_cache(maxsize=4)
def _rows_by_trial(frame: SweepFrame, quantities: tuple[str, ...]) -> Mapping[int, list[Row]]:
    names = [
        q for q in frame.quantities if any(q == w or q.startswith(f"{w}.") for w in quantities)
    ]
    if not names:
        return {}
    table = frame.table.filter(pc.is_in(frame.table["quantity"], pa.array(names)))
    found: dict[int, list[Row]] = {}
    for trial, row in zip(table["trial"].to_pylist(), records.to_rows(table, names), strict=True):
        found.setdefault(trial, []).append(row)
    return found
