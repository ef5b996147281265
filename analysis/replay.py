"""What pruners would have done in a sweep that was run without one: who leaves, saved, lost.

The stored losses are shown to the very pruners of `pipeline.pruning`, through the referee of a
real sweep, rung by rung, in the cohorts of the sweep and with its lag: a replay decides what the
sweep would have decided. The sweep's own order of trials is one of many; the others are drawn by
permuting the trials over their places, and intervals are of the middle 95 % of orders. They say
how much is luck of the order, not how another sweep would differ.

Regret is how much worse the best trial kept ends than the best of all, as a share of the spread of
final losses: from their 5 % to their 95 % point, lest one late divergence make any regret small.
What a pruner looks at beside the losses has been paid for: `net` counts the time of measuring
against it, in epochs of training.
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.contenders import all_choices, family
from analysis.frame import AnalysisError, EarlyView, SweepFrame
from analysis.spectrum_pruner import LOGGER, SpectrumPruner, traces, view_of
from pipeline import pruning
from pipeline.config import ConfigError, SweepConfig, check
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec, plan
from pipeline.pruning import PrunerConfig, Referee, Trace
from tasks.base import Config, seed_for

NUM_ORDERS = 20
MIN_TRIALS = 10
TOP = 0.1
LIMITS = (0.005, 0.01)


@dataclass(frozen=True, eq=False)
class Recording:
    """A sweep as a referee would have come to know it.

    Attributes:
        frame: where it comes from.
        specs: of each trial, by number, in order; None where the stored conf does not say which
            trials share a shape, and each is then taken for a cohort of its own.
        config: checked, with the cohort size that is replayed; None with `specs`.
        epochs: of a whole trial.
        seed: of the sweep.
        lag: of the sweep, as of a pruner that names none.
        notes: what of the sweep could not be replayed as it was.
    """

    frame: SweepFrame
    specs: Mapping[int, TrialSpec] | None
    config: SweepConfig | None
    epochs: int
    seed: int
    lag: int
    notes: tuple[str, ...]

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """Of the trials, in order."""
        return tuple(h.trial for h in self.frame.headers)

    @cached_property
    def final(self) -> pd.Series:
        """Final losses of the trials that have one."""
        return self.frame.target

    @cached_property
    def spread(self) -> float:
        """Of the final losses."""
        low, high = np.quantile(self.final, [0.05, 0.95])
        return float(high - low)

    @cached_property
    def lasts(self) -> dict[int, int]:
        """The last epoch of each trial."""
        known = {t.number: max(t.losses, default=0) for t in self.traces(())}
        return {
            h.trial: known[h.trial] if h.epochs is None else h.epochs for h in self.frame.headers
        }

    @property
    def epochs_whole(self) -> int:
        """Epochs that were trained."""
        return sum(self.lasts.values())

    def traces(self, quantities: tuple[str, ...]) -> tuple[Trace, ...]:
        """All trials at their ends, with the rows of some quantities."""
        return _traces(self.frame, quantities)

    def order(self, index: int) -> tuple[int, ...]:
        """Which trial stands in the place of each: 0 is the sweep's own order."""
        if index == 0:
            return self.numbers
        drawn = np.random.default_rng([self.seed % 2**32, index]).permutation(self.numbers)
        return tuple(drawn.tolist())

    def cohorts(self, index: int) -> list[Cohort]:
        """As the sweep would have planned them, had its trials come in this order."""
        order = self.order(index)
        if self.specs is None or self.config is None:
            return [_single(number) for number in order]
        placed = [
            dataclasses.replace(self.specs[number], number=place)
            for place, number in zip(self.numbers, order, strict=True)
        ]
        size = self.config.batch_size
        planned = []
        for _, batch in itertools.groupby(placed, key=lambda spec: spec.number // size):
            planned += plan(batch, self.config.limits)
        at = dict(zip(self.numbers, order, strict=True))
        return [
            dataclasses.replace(
                c, trials=tuple(self.specs[at[number]] for number in c.numbers), pauses=frozenset()
            )
            for c in planned
        ]

    def measuring(self, quantities: Sequence[str]) -> pd.Series:
        """Time that measuring some quantities took, in epochs of training, by trial and epoch."""
        seconds = self.frame.seconds
        training = seconds[(seconds["activity"] == "training") & (seconds["seconds"] > 0)]
        looked_at = (seconds["activity"] == "measuring") & seconds["diagnostic"].isin(quantities)
        spent = seconds[looked_at].groupby(["trial", "epoch"])["seconds"].sum()
        epoch = training.groupby("trial")["seconds"].mean()
        each = epoch.reindex(spent.index.get_level_values("trial")).to_numpy(float)
        found: pd.Series = (spent / each).dropna()
        return found


@dataclass(frozen=True)
class Outcome:
    """What a pruner did in one order of the trials.

    Attributes:
        pruned: trial → epoch after which it left.
        epochs: trained, over all trials.
        saved: share of the sweep's epochs that were not trained.
        net: the same with the time of measuring what the pruner looks at counted as spent.
        regret: of the best trial kept, as a share of the spread; NaN where none was kept.
        regret_loss: the same in units of the loss.
        recall: share of the best tenth (or as asked) that was kept to its end.
        rank: in the whole sweep, of the best trial kept.
        said: what the pruner had to say.
    """

    pruned: Mapping[int, int]
    epochs: int
    saved: float
    net: float
    regret: float
    regret_loss: float
    recall: float
    rank: float
    said: tuple[str, ...] = ()


def recording(
    frame: SweepFrame, *, cohort_size: int | None = None, lag: int | None = None
) -> Recording:
    """A stored sweep, ready to be replayed, in its own cohorts and lag or in these.

    Raises AnalysisError where trials were pruned, where too few ended, or all ended alike.
    """
    name = frame.info.name
    if frame.num_pruned:
        raise AnalysisError(
            f"sweep {name!r}: only a sweep that ran without a pruner shows how its trials would "
            f"have ended, but {frame.num_pruned} of {len(frame.headers)} were pruned; run it again "
            "with pruner.name=none"
        )
    if len(frame.target) < MIN_TRIALS:
        raise AnalysisError(
            f"sweep {name!r}: a replay needs {MIN_TRIALS} trials that ran to their end, there are "
            f"{len(frame.target)}"
        )
    if frame.target.quantile(0.95) <= frame.target.quantile(0.05):
        raise AnalysisError(
            f"sweep {name!r}: nothing can be lost or found where final losses are all alike "
            f"({frame.target.iloc[0]:g})"
        )
    notes = []
    missing = frame.info.num_trials - len(frame.headers)
    if missing > 0:
        notes.append(f"{missing} of {frame.info.num_trials} trials are not on record and left out")
    config, specs = _planned(frame, cohort_size)
    if config is None or specs is None:
        notes.append("cohorts are not known: each trial is judged by those before it alone")
    elif config.sampler.is_adaptive:
        notes.append(
            f"the sampler {config.sampler.name} would have been steered by what is left of pruned "
            "trials, and have drawn others"
        )
    return Recording(
        frame,
        specs,
        config,
        epochs=frame.final_epoch if config is None else config.epochs,
        seed=int(frame.info.config.get("seed", 0)),
        lag=lag or (1 if config is None else config.execution.num_workers),
        notes=tuple(notes),
    )


def replay(sweep: Recording, choice: Choice, order: int = 0) -> dict[int, int]:
    """Who leaves, and after which epoch, with the sweep's trials in one of their orders."""
    return dict(_replay(sweep, choice, order).pruned)


def outcome(sweep: Recording, choice: Choice, order: int = 0, top: float = TOP) -> Outcome:
    """What a pruner would have saved and lost with the sweep's trials in one of their orders."""
    played = _replay(sweep, choice, order)
    pruned = played.pruned
    final = sweep.final
    kept = final.drop([n for n in pruned if n in final.index])
    epochs = sum(pruned.get(n, last) for n, last in sweep.lasts.items())
    best = final.nsmallest(max(1, round(top * len(final)))).index
    lost = float(kept.min() - final.min()) if len(kept) else math.nan
    costs = _costs(sweep, played.quantities)
    measuring = sum(c for (n, epoch), c in costs if epoch <= pruned.get(n, sweep.epochs - 1))
    whole = sweep.epochs_whole
    return Outcome(
        pruned=pruned,
        epochs=epochs,
        saved=1 - epochs / whole,
        net=1 - (epochs + measuring) / whole,
        regret=lost / sweep.spread,
        regret_loss=lost,
        recall=float(best.isin(kept.index).mean()),
        rank=1 + float((final < kept.min()).sum()) if len(kept) else math.nan,
        said=played.said,
    )


def comparison(
    sweep: Recording,
    choices: Mapping[str, Choice],
    *,
    num_orders: int = NUM_ORDERS,
    top: float = TOP,
) -> pd.DataFrame:
    """One line a pruner: what it does in the sweep's own order, and over `num_orders` others.

    Columns: pruner; epochs, saved, net, regret, regret_loss, recall, rank (see Outcome), each in
    the sweep's own order, then with _mean, _low and _high over the other orders; pruned and kept
    (trials, own order); orders; note (what the pruner had to say).
    """
    lines = []
    for label, choice in choices.items():
        own = outcome(sweep, choice, 0, top)
        others = [outcome(sweep, choice, i, top) for i in range(1, num_orders + 1)]
        line: dict[str, object] = {"pruner": label}
        for field in ("epochs", "saved", "net", "regret", "regret_loss", "recall", "rank"):
            line |= _summary(field, getattr(own, field), [getattr(o, field) for o in others])
        line |= {
            "pruned": len(own.pruned),
            "kept": len(sweep.final.index.difference(list(own.pruned))),
        }
        lines.append({**line, "orders": num_orders, "note": "; ".join(own.said)})
    return pd.DataFrame(lines)


def trade_off(
    sweep: Recording, choices: Mapping[str, Choice], *, num_orders: int = NUM_ORDERS
) -> pd.DataFrame:
    """The curve of what is saved against what is lost, over how strictly each pruner decides.

    One line a pruner, strength and order: pruner, settings, order, saved, net, regret, recall.
    """
    lines = []
    for label, choice in choices.items():
        for settings, one in family(choice, sweep.epochs).items():
            for order in range(1, num_orders + 1):
                found = outcome(sweep, one, order)
                lines.append(
                    {
                        "pruner": label, "settings": settings, "order": order,
                        "saved": found.saved, "net": found.net, "regret": found.regret,
                        "recall": found.recall,
                    }
                )  # fmt: skip
    return pd.DataFrame(lines)


def budget_at_regret(curve: pd.DataFrame, limits: Sequence[float] = LIMITS) -> pd.DataFrame:
    """From `trade_off`: the most that each pruner saves while its mean regret stays in a limit.

    The strength is chosen on one half of the orders and judged on the other, and the other way
    round: chosen and judged on the same, luck would be taken for skill. Trials are the same in
    both, so that another sweep may still do worse. Where no strength stays within the limit,
    nothing is pruned and nothing saved.

    Columns: pruner, limit, saved and net with _low and _high (middle 95 % of orders), regret
    (mean), settings (as chosen).
    """
    lines = []
    for label, limit in itertools.product(curve["pruner"].unique(), limits):
        mine = curve[curve["pruner"] == label]
        parts = [mine["order"] % 2 == 0, mine["order"] % 2 == 1]
        chosen, judged = [], []
        for learn, judge in (parts, parts[::-1]):
            best = _most_saving(mine[learn], limit)
            chosen.append(best if best is not None else "keeps all")
            line = mine[judge & (mine["settings"] == best)]
            judged.append(
                line if best is not None
                else mine[judge].drop_duplicates("order").assign(saved=0.0, net=0.0, regret=0.0)
            )  # fmt: skip
        whole = pd.concat(judged)
        lines.append(
            {
                "pruner": label,
                "limit": limit,
                **_interval("saved", whole["saved"]),
                **_interval("net", whole["net"]),
                "regret": float(whole["regret"].mean()),
                "settings": " or ".join(dict.fromkeys(chosen)),
            }
        )
    return pd.DataFrame(lines)


def saved_at_regret(
    frame: SweepFrame,
    *,
    num_orders: int = 10,
    max_trials: int = 200,
    limits: Sequence[float] = LIMITS,
) -> pd.DataFrame:
    """`budget_at_regret` of all pruners there are, for the report.

    A sweep of more than `max_trials` is stood for by its first ones, and a column `trials` says
    by how many: who leaves depends on how many came before. Raises AnalysisError.
    """
    if len(frame.headers) > max_trials:
        frame = _first(frame, max_trials)
    sweep = recording(frame)
    choices = all_choices(sweep.epochs, frame.measured_epochs)
    curve = trade_off(sweep, choices, num_orders=num_orders)
    return budget_at_regret(curve, limits).assign(trials=len(frame.headers))


@dataclass(frozen=True)
class _Played:
    """Who left when, what the pruner looks at beside the losses, and what it had to say."""

    pruned: dict[int, int]
    quantities: tuple[str, ...]
    said: tuple[str, ...]


@lru_cache(maxsize=2048)
def _replay(sweep: Recording, choice: Choice, order: int) -> _Played:
    # Brackets and the like are drawn anew for each order, in the sweep's own as in the sweep.
    seed = sweep.seed if order == 0 else seed_for(sweep.seed, "replay", order)
    pruner = pruning.make_pruner(choice, epochs=sweep.epochs, seed=seed)
    assert pruner is not None
    lag = choice.config.lag if isinstance(choice.config, PrunerConfig) else None
    if isinstance(pruner, SpectrumPruner):
        _share_views(sweep, pruner)
    referee, cohorts = Referee(pruner, lag or sweep.lag), _cohorts(sweep, order)
    referee.add(cohorts)
    whole = {t.number: t for t in sweep.traces(pruner.quantities)}
    pruned: dict[int, int] = {}
    with _listening() as heard:
        for cohort in cohorts:
            pruned |= _train(sweep, referee, cohort, whole)
    return _Played(pruned, pruner.quantities, tuple(dict.fromkeys(heard)))


def _train(
    sweep: Recording, referee: Referee, cohort: Cohort, whole: Mapping[int, Trace]
) -> dict[int, int]:
    """Goes through a cohort's rungs as its training did; who leaves, and when."""
    rungs, lasts, pruned = referee.pruner.rungs, sweep.lasts, {}
    rows: dict[int, dict[int, list[Any]]] = {}
    for number in cohort.numbers:
        referee.begin(number, whole[number].params)
        rows[number] = {}
        for row in whole[number].rows:
            rows[number].setdefault(row.epoch, []).append(row)
    standing = list(cohort.numbers)
    for epoch in range(sweep.epochs + 1):
        for number in standing:
            if epoch in whole[number].losses:
                loss = whole[number].losses[epoch]
                referee.see(number, epoch, loss, rows[number].get(epoch, ()))
        for number in standing:
            if lasts[number] <= epoch:
                referee.end(number, str(whole[number].state), whole[number].value)
        standing = [number for number in standing if lasts[number] > epoch]
        if not standing or epoch not in rungs:
            continue
        leaving = referee.decide(cohort, epoch)
        assert leaving is not None, "cohorts come in the order of planning, one after the other"
        for number in leaving.intersection(standing):
            referee.end(number, "pruned", whole[number].losses[epoch])
            pruned[number] = epoch
        standing = [number for number in standing if number not in leaving]
    return pruned


def _share_views(sweep: Recording, pruner: SpectrumPruner) -> None:
    """One view an epoch for all decisions, of all trials: features take most of the time.

    A predictor learns from the trials it is given targets of, whoever else is in the view.
    """
    if pruner.config.from_sweep == sweep.frame.info.name:
        raise AnalysisError(
            f"spectrum: from_sweep must be another sweep than {sweep.frame.info.name!r}, whose "
            "outcomes it is to foretell"
        )
    known = tuple(sorted(pruner.quantities)), pruner.config.from_sweep, pruner.config.from_store

    def shared(epoch: int, _: Sequence[Trace]) -> EarlyView:
        kept = _views(sweep)
        if (epoch, known) not in kept:
            everyone = [*pruner.donors, *sweep.traces(pruner.quantities)]
            kept[epoch, known] = view_of(epoch, everyone)
        return kept[epoch, known]

    pruner.views = shared


@lru_cache(maxsize=64)
def _cohorts(sweep: Recording, order: int) -> list[Cohort]:
    return sweep.cohorts(order)


@lru_cache(maxsize=2)
def _views(sweep: Recording) -> dict[Any, EarlyView]:
    return {}


@lru_cache(maxsize=8)
def _traces(frame: SweepFrame, quantities: tuple[str, ...]) -> tuple[Trace, ...]:
    return tuple(traces(frame, quantities))


@lru_cache(maxsize=8)
def _costs(sweep: Recording, quantities: tuple[str, ...]) -> tuple[tuple[Any, float], ...]:
    return tuple(sweep.measuring(quantities).items()) if quantities else ()


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Takes down what pruners say, instead of its being shown once for each order."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage().removeprefix("pruner spectrum "))

    ear, before = Ear(), LOGGER.propagate
    LOGGER.addHandler(ear)
    LOGGER.propagate = False
    try:
        yield heard
    finally:
        LOGGER.removeHandler(ear)
        LOGGER.propagate = before


def _planned(
    frame: SweepFrame, cohort_size: int | None
) -> tuple[SweepConfig | None, dict[int, TrialSpec] | None]:
    """The checked conf and the trials' specs; None where the sweep is not one of ours."""
    try:
        config = check(frame.info.config, source=f"sweep {frame.info.name!r}")
        if cohort_size is not None:
            config = config.with_cohort_size(cohort_size)
        if not config.is_settled:
            return None, None
        specs = {
            h.trial: config.spec(h.trial, {p: _value(h.params, p) for p in config.space})
            for h in frame.headers
        }
    except (ConfigError, KeyError):
        return None, None
    return config, specs


def _value(params: Mapping[str, Any], path: str) -> Any:
    """A setting by its dotted path, which may lead into a value. Raises KeyError."""
    if path in params:
        return params[path]
    whole, _, last = path.rpartition(".")
    if not whole:
        raise KeyError(path)
    inner = _value(params, whole)
    if not isinstance(inner, Mapping):
        raise KeyError(path)
    return inner[last]


def _single(number: int) -> Cohort:
    empty = Choice("", Config())
    return Cohort(sweep_seed=0, trials=(TrialSpec(number, 0, empty, empty, Trainer()),))


def _first(frame: SweepFrame, count: int) -> SweepFrame:
    headers = frame.headers[:count]
    keep = frame.table["trial"].to_numpy() <= headers[-1].trial
    info = dataclasses.replace(frame.info, num_trials=count)
    return SweepFrame(info, headers, frame.table.filter(keep), frame.target_quantity)


def _summary(name: str, own: float, others: Sequence[float]) -> dict[str, float]:
    if not others:
        return {name: own, **{f"{name}_{w}": math.nan for w in ("mean", "low", "high")}}
    found = _interval(name, pd.Series(others, dtype=float))
    return {
        name: own,
        f"{name}_mean": found[name],
        f"{name}_low": found[f"{name}_low"],
        f"{name}_high": found[f"{name}_high"],
    }


def _interval(name: str, values: pd.Series) -> dict[str, float]:
    known = values.dropna()
    low, high = known.quantile([0.025, 0.975]) if len(known) else (math.nan, math.nan)
    return {name: float(known.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def _most_saving(lines: pd.DataFrame, limit: float) -> str | None:
    """The settings that save most, time of measuring counted, of those within the limit."""
    grouped = lines.groupby("settings", sort=False)[["net", "regret"]]
    # A strength that in some order kept nobody has no mean regret.
    means = grouped.mean()[grouped.count()["regret"] == grouped.size()]
    within = means[(means["regret"] <= limit) & (means["net"] > 0)]
    return str(within["net"].idxmax()) if len(within) else None
