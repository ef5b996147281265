"""What a pruner would have done in a sweep that was run without one: who leaves, saved, lost.

The stored losses are shown to the very pruners of `pipeline.pruning`, through the referee of a
real sweep, rung by rung, in the cohorts of the sweep and with its lag: a replay decides what the
sweep would have decided.

Regret is how much worse the best trial kept ends than the best of all, as a share of the spread of
final losses: from their 5 % to their 95 % point, lest one late divergence make any regret small.
What a pruner looks at beside the losses has been paid for: `net` counts the time of measuring
against it, in epochs of training.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from analysis.early_view import EarlyView
from analysis.frame import AnalysisError
from analysis.recording import Recording
from analysis.spectrum_pruner import LOGGER, SpectrumPruner, view_of
from pipeline import pruning
from pipeline.plan import Choice, Cohort
from pipeline.pruning import PrunerConfig, Referee, Trace
from tasks.base import seed_for

TOP = 0.1


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
