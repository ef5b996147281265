"""Who leaves a sweep early: pruners, and what they may know when they decide.

A pruner is asked at the rungs of a cohort, for all its members at once, and sees what is known
of them so far and of trials that have ended. Those here rank validation losses: the median
stopping rule (Golovin et al. 2017, Google Vizier), successive halving as ASHA (Li et al. 2020,
arXiv 1810.05934) and Hyperband (Li et al. 2018, JMLR 18). Their settings have the names and
meanings of Optuna's pruners of the same names, an epoch being a step. Optuna's own are not used:
they judge one trial after the other, so that whoever of a cohort is judged first always stays,
they draw Hyperband's brackets from the study's name, and what they have decided lasts through a
crash where the trial it was decided of does not.

What is known is a function of the plan, not of who came first: a cohort's members are judged by
one another and by the cohorts planned at least `lag` places before theirs. So a sweep with a
pruner, too, is the same with any number of workers, and after an interruption.

A trial that leaves early has no final loss: trials that end are then a selection, and whatever
is estimated from them alone is biased towards it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar

import numpy as np

from pipeline.plan import Choice, Cohort
from pipeline.rows import Row
from tasks.base import Bounds, Config, seed_for

NONE = "none"


@dataclass
class Trace:
    """What is known of one trial.

    Attributes:
        number: of the trial.
        params: every setting by dotted name.
        losses: epoch → validation loss, from epoch 0; NaN once it has diverged.
        rows: of the quantities that the pruner asks for, all epochs so far.
        state: None while it trains, then complete, diverged, pruned or failed.
        value: what the sampler was told, or None.
    """

    number: int
    params: Mapping[str, Any]
    losses: dict[int, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    state: str | None = None
    value: float | None = None

    @property
    def pruned_at(self) -> int | None:
        """Epoch after which it left, if it did."""
        return max(self.losses) if self.state == "pruned" else None


@dataclass(frozen=True, kw_only=True)
class PrunerConfig(Config):
    """Settings that all pruners have.

    at: epochs after which it decides; None leaves that to the pruner.
    lag: a cohort is judged by cohorts planned at least so many places before it; None takes the
        number of workers. With fewer than there are workers these wait for one another.
    """

    at: tuple[Annotated[int, Bounds(ge=1)], ...] | None = None
    lag: Annotated[int, Bounds(ge=1)] | None = None


class Pruner(ABC):
    """Decides who leaves. Pure: whatever it knows, it is handed.

    Args:
        config: its settings.
        epochs: of a whole trial.
        seed: of the sweep.

    Attributes:
        quantities: names of recorded quantities it needs to see beside the losses; those that
            begin with one of these and a dot are included.
        needs_finished: True where it decides nothing before some trials have run to their end;
            cohorts are then kept small enough for some to do so early.
    """

    Config: ClassVar[type[PrunerConfig]] = PrunerConfig
    quantities: tuple[str, ...] = ()
    needs_finished: bool = True

    def __init__(self, config: Any, *, epochs: int, seed: int) -> None:
        self.config, self.epochs, self.seed = config, epochs, seed

    @property
    def rungs(self) -> frozenset[int]:
        """Epochs after which it decides; never the last, when everything has been spent."""
        at = self.config.at
        return frozenset(e for e in (range(1, self.epochs) if at is None else at) if self._asks(e))

    def _asks(self, epoch: int) -> bool:
        return 1 <= epoch < self.epochs

    @abstractmethod
    def decide(
        self, epoch: int, standing: Sequence[Trace], ended: Sequence[Trace]
    ) -> frozenset[int]:
        """Numbers of those that leave.

        Args:
            epoch: the rung, one of `rungs`.
            standing: the members still in training, in trial order, losses finite; nothing
                is known of them after `epoch`.
            ended: trials of earlier cohorts, whole, in trial order within their cohorts.
        """


@dataclass(frozen=True, kw_only=True)
class _Startup(PrunerConfig):
    n_startup_trials: Annotated[int, Bounds(ge=0)] = 5
    n_warmup_steps: Annotated[int, Bounds(ge=0)] = 0
    interval_steps: Annotated[int, Bounds(ge=1)] = 1
    n_min_trials: Annotated[int, Bounds(ge=1)] = 1


class Percentile(Pruner):
    """Leaves whose best loss so far is worse than a percentile of the losses of complete trials."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_Startup):
        """As of optuna.pruners.PercentilePruner.

        percentile: of complete trials' losses at the epoch, which a trial must not exceed.
        n_startup_trials: complete trials before it decides anything.
        n_warmup_steps: epoch of the first decision.
        interval_steps: epochs from one decision to the next.
        n_min_trials: complete trials with a loss at the epoch before it decides there.
        """

        percentile: Annotated[float, Bounds(ge=0, le=100)] = 25.0

    @property
    def _percentile(self) -> float:
        return float(self.config.percentile)

    def _asks(self, epoch: int) -> bool:
        first = max(1, self.config.n_warmup_steps)
        due = (epoch - first) % self.config.interval_steps == 0 or self.config.at is not None
        return super()._asks(epoch) and epoch >= first and due

    def decide(
        self, epoch: int, standing: Sequence[Trace], ended: Sequence[Trace]
    ) -> frozenset[int]:
        """See `Pruner`."""
        complete = [t for t in ended if t.state == "complete"]
        known = [t.losses[epoch] for t in complete if epoch in t.losses]
        if len(complete) < max(1, self.config.n_startup_trials):
            return frozenset()
        if len(known) < self.config.n_min_trials:
            return frozenset()
        limit = float(np.percentile(known, self._percentile))
        return frozenset(
            t.number for t in standing if min(v for e, v in t.losses.items() if e >= 1) > limit
        )


class Median(Percentile):
    """Leaves whose best loss so far is worse than the median of the losses of complete trials."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_Startup):
        """As of optuna.pruners.MedianPruner; see Percentile."""

    @property
    def _percentile(self) -> float:
        return 50.0


@dataclass(frozen=True, kw_only=True)
class _Halving(PrunerConfig):
    min_resource: Annotated[int, Bounds(ge=1)] = 1
    reduction_factor: Annotated[int, Bounds(ge=2)] = 4
    bootstrap_count: Annotated[int, Bounds(ge=0)] = 0


class SuccessiveHalving(Pruner):
    """At epochs that grow by a factor, all leave but that share of those who came so far."""

    needs_finished = False

    @dataclass(frozen=True, kw_only=True)
    class Config(_Halving):
        """As of optuna.pruners.SuccessiveHalvingPruner.

        min_resource: epoch of the first decision where min_early_stopping_rate is 0.
        reduction_factor: one in so many stays, and goes so many times as far.
        min_early_stopping_rate: how many of the first decisions are left out.
        bootstrap_count: trials that must have come to a rung before any may go on from it.
        """

        min_early_stopping_rate: Annotated[int, Bounds(ge=0)] = 0

    @property
    def rungs(self) -> frozenset[int]:
        """The growing epochs, each moved on to the next of `at` where that is given."""
        return self._rungs(self.config.min_early_stopping_rate)

    def _rungs(self, rate: int) -> frozenset[int]:
        found, epoch = set(), self.config.min_resource * self.config.reduction_factor**rate
        while epoch < self.epochs:
            at = [e for e in self.config.at or (epoch,) if epoch <= e < self.epochs]
            found |= {min(at)} if at else set()
            epoch *= self.config.reduction_factor
        return frozenset(found)

    def decide(
        self, epoch: int, standing: Sequence[Trace], ended: Sequence[Trace]
    ) -> frozenset[int]:
        """See `Pruner`."""
        return self._halve(epoch, standing, ended)

    def _halve(
        self, epoch: int, standing: Sequence[Trace], ended: Sequence[Trace]
    ) -> frozenset[int]:
        came = [t.losses.get(epoch, math.nan) for t in (*standing, *ended)]
        came = sorted(loss for loss in came if math.isfinite(loss))
        if len(came) <= self.config.bootstrap_count:
            return frozenset(t.number for t in standing)
        # Of fewer than the factor the best goes on: somebody must.
        last_to_stay = came[max(0, len(came) // self.config.reduction_factor - 1)]
        return frozenset(t.number for t in standing if t.losses[epoch] > last_to_stay)


class Hyperband(SuccessiveHalving):
    """Successive halving in brackets that begin at different epochs."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_Halving):
        """As of optuna.pruners.HyperbandPruner.

        min_resource: epoch of the first decision in the bracket that halves first.
        max_resource: epochs from which the number of brackets follows; None takes all.
        reduction_factor: as of successive_halving.
        bootstrap_count: as of successive_halving, in each bracket.
        """

        reduction_factor: Annotated[int, Bounds(ge=2)] = 3
        max_resource: Annotated[int, Bounds(ge=1)] | None = None

    @property
    def num_brackets(self) -> int:
        """Bracket b leaves out the first b decisions."""
        most = self.config.max_resource or self.epochs
        count = 1
        while self.config.min_resource * self.config.reduction_factor**count <= most:
            count += 1
        return count

    @property
    def rungs(self) -> frozenset[int]:
        """Of all brackets."""
        return frozenset().union(*(self._rungs(b) for b in range(self.num_brackets)))

    def bracket(self, number: int) -> int:
        """Of a trial: drawn by the sweep's seed, in the shares of Hyperband's budgets."""
        count, factor = self.num_brackets, self.config.reduction_factor
        budgets = [-(-count * factor ** (count - 1 - b) // (count - b)) for b in range(count)]
        left = seed_for(self.seed, "bracket", number) % sum(budgets)
        return next(b for b in range(count) if left < sum(budgets[: b + 1]))

    def decide(
        self, epoch: int, standing: Sequence[Trace], ended: Sequence[Trace]
    ) -> frozenset[int]:
        """See `Pruner`."""
        leaving: frozenset[int] = frozenset()
        for b in range(self.num_brackets):
            if epoch in self._rungs(b):
                mine = [[t for t in ts if self.bracket(t.number) == b] for ts in (standing, ended)]
                leaving |= self._halve(epoch, *mine)
        return leaving


_OWN: dict[str, type[Pruner]] = {
    "median": Median,
    "percentile": Percentile,
    "successive_halving": SuccessiveHalving,
    "hyperband": Hyperband,
}


def names() -> list[str]:
    """Of all pruners, `none` first; other layers register theirs as `lyapsweep.pruners`."""
    return [NONE, *_OWN, *sorted(e.name for e in entry_points(group="lyapsweep.pruners"))]


def summaries() -> dict[str, str]:
    """Each by name, in one line."""
    kinds = {name: pruner_type(name) for name in names() if name != NONE}
    lines = {name: (kind.__doc__ or "").strip().splitlines()[0] for name, kind in kinds.items()}
    return {NONE: "Everyone stays to the end.", **lines}


def pruner_type(name: str) -> type[Pruner]:
    """Raises KeyError."""
    if name in _OWN:
        return _OWN[name]
    for entry in entry_points(group="lyapsweep.pruners"):
        if entry.name == name:
            loaded: type[Pruner] = entry.load()
            return loaded
    raise KeyError(name)


def make_pruner(choice: Choice, *, epochs: int, seed: int) -> Pruner | None:
    """The pruner a conf names, or None where it names none."""
    if choice.name == NONE:
        return None
    return pruner_type(choice.name)(choice.config, epochs=epochs, seed=seed)


class Referee:
    """Keeps what is known of the trials of a sweep, and asks the pruner when it may be asked.

    Pauses of cohorts whose judges are still in training are answered later (`decide` gives None).
    """

    def __init__(self, pruner: Pruner, lag: int) -> None:
        self.pruner, self._lag = pruner, lag
        self._traces: dict[int, Trace] = {}
        self._place: dict[int, int] = {}
        self._members: list[tuple[int, ...]] = []
        self._num_ended = 0
        self._ended: tuple[int, tuple[Trace, ...]] = 0, ()

    def add(self, cohorts: Iterable[Cohort]) -> None:
        """Takes note of cohorts, each once, in the order of planning."""
        for cohort in cohorts:
            self._place |= dict.fromkeys(cohort.numbers, len(self._members))
            self._members.append(cohort.numbers)

    def begin(self, number: int, params: Mapping[str, Any]) -> None:
        """A trial is trained from its start; what was known of it is forgotten."""
        self._traces[number] = Trace(number, params)

    def see(self, number: int, epoch: int, loss: float, rows: Iterable[Row]) -> None:
        """What came of a trial at a rung."""
        trace = self._traces[number]
        trace.losses[epoch] = loss
        trace.rows += [row for row in rows if self._is_wanted(row.quantity)]

    def end(self, number: int, state: str, value: float | None) -> None:
        """How a trial ended."""
        trace = self._traces[number]
        trace.state, trace.value = state, value

    def restore(self, trace: Trace) -> None:
        """What an earlier driver recorded of a trial that has ended."""
        self._traces[trace.number] = trace

    def decide(self, cohort: Cohort, epoch: int) -> frozenset[int] | None:
        """Who of the members still in training leaves; None if that cannot be said yet.

        Members that are trained along although they are recorded already are judged with the
        others, and leave where they left.
        """
        upto = self._place[cohort.numbers[0]] - self._lag + 1
        if not self._have_ended(upto):
            return None
        members = [self._traces[number] for number in cohort.numbers]
        standing = [
            _until(t, epoch) for t in members if math.isfinite(t.losses.get(epoch, math.nan))
        ]
        leaving = self.pruner.decide(epoch, standing, self._ended_before(upto))
        return frozenset(
            t.number
            for t in members
            if (t.number in leaving if t.state is None else t.pruned_at == epoch)
        )

    def _have_ended(self, upto: int) -> bool:
        while self._num_ended < upto and all(
            number in self._traces and self._traces[number].state is not None
            for number in self._members[self._num_ended]
        ):
            self._num_ended += 1
        return self._num_ended >= upto

    def _ended_before(self, upto: int) -> tuple[Trace, ...]:
        if upto <= 0:
            return ()
        count, known = self._ended
        if count > upto:
            count, known = 0, ()
        more = [self._traces[n] for numbers in self._members[count:upto] for n in numbers]
        self._ended = upto, (*known, *more)
        return self._ended[1]

    def _is_wanted(self, quantity: str) -> bool:
        return any(quantity == q or quantity.startswith(f"{q}.") for q in self.pruner.quantities)


def _until(trace: Trace, epoch: int) -> Trace:
    """As it was at the end of an epoch, still in training."""
    return Trace(
        trace.number,
        trace.params,
        {e: loss for e, loss in trace.losses.items() if e <= epoch},
        [row for row in trace.rows if row.epoch <= epoch],
    )
