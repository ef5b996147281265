"""A stored sweep as a referee would have come to know it: cohorts, lag, orders, losses, costs.

The sweep's own order of trials is one of many; the others are drawn by permuting the trials over
their places.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import AnalysisError, SweepFrame
from analysis.spectrum_pruner import traces
from pipeline.config import SweepConfig, check
from pipeline.faults import ConfigError
from pipeline.optim import Trainer
from pipeline.plan import Choice, Cohort, TrialSpec, plan
from pipeline.pruning import Trace
from tasks.base import Config

MIN_TRIALS = 10


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


@lru_cache(maxsize=8)
def _traces(frame: SweepFrame, quantities: tuple[str, ...]) -> tuple[Trace, ...]:
    return tuple(traces(frame, quantities))


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
