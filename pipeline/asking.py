"""Which trials come next: asks the sampler batch by batch, and plans each batch as a whole.

A batch is planned from all its trials, those included that an earlier driver finished: how many
train together shows in the last bits, and a sweep that was interrupted shall equal one that was
not. Finished ones keep their places, are trained along where a cohort-mate is due, and nothing
is recorded of them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from pipeline import sampling
from pipeline.config import SweepConfig
from pipeline.ledger import Ledger
from pipeline.plan import Cohort, TrialSpec, plan
from pipeline.records import TrialHeader

Planned = Callable[[Sequence[Cohort]], None]


def rehearsed(config: SweepConfig, batch_size: int) -> Iterator[list[TrialSpec]]:
    """The trials that would be asked for, batch by batch, without a database.

    For adaptive samplers, which learn meanwhile, those that would be asked for without results.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(storage=None)
    for first in range(0, config.trials, batch_size):
        study.sampler = sampling.make_sampler(
            config.sampler, config.space, seed=config.seed, first_number=first
        )
        trials = [study.ask() for _ in range(min(batch_size, config.trials - first))]
        yield [config.spec(t.number, sampling.suggest(t, config.space)) for t in trials]


class _Design:
    """Draws values, in memory: a database that is away or dies in between changes none of them."""

    def __init__(self, config: SweepConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._config = config
        self._study = optuna.create_study(storage=None)
        # Before it makes a trial, `ask` looks at all there are for one that was enqueued.
        self._study._pop_waiting_trial_id = lambda: None  # type: ignore[method-assign]

    def restore(self, trials: Iterable[FrozenTrial]) -> None:
        """Trials that were drawn before, the first of them number 0."""
        self._study.add_trials(trials)

    def draw(self, first: int, count: int) -> list[FrozenTrial]:
        """A batch of trials, with their values, that begins at number `first`."""
        self._study.sampler = sampling.make_sampler(
            self._config.sampler, self._config.space, seed=self._config.seed, first_number=first
        )
        trials = [self._study.ask() for _ in range(count)]
        for trial in trials:
            sampling.suggest(trial, self._config.space)
        return self._study.get_trials(deepcopy=False)[first : first + count]

    def told(self, number: int, state: str, value: float | None, pruned_at: int | None) -> None:
        """How a trial ended, of which only adaptive samplers make use."""
        if not self._config.sampler.is_adaptive:
            return
        if state == "failed":
            self._study.tell(number, state=TrialState.FAIL)
        elif state == "pruned":
            assert value is not None
            assert pruned_at is not None
            trial = self._study.get_trials(deepcopy=False)[number]
            self._study._storage.set_trial_intermediate_value(trial._trial_id, pruned_at, value)
            self._study.tell(number, state=TrialState.PRUNED)
        else:
            self._study.tell(number, value)


class Asker:
    """The trials of one driver, drawn, written into the ledger and queued as cohorts.

    Args:
        ledger: has every trial of the sweep; this is the only one who adds to it.
        planned: told of all cohorts in the order of planning, those included in which no trial
            is due; from the first cohort of the sweep on, if `whole`.

    Attributes:
        attempts: how often the trials that this driver has to do with were begun, by number.
        specs: of these trials, and of cohort-mates.
        queue: cohorts to train, in the order of planning.
    """

    def __init__(
        self,
        config: SweepConfig,
        ledger: Ledger,
        planned: Planned = lambda _: None,
        *,
        whole: bool = False,
    ) -> None:
        self._config, self._ledger = config, ledger
        self._planned, self._whole = planned, whole
        self.attempts: dict[int, int] = {}
        self.specs: dict[int, TrialSpec] = {}
        self.queue: deque[Cohort] = deque()
        self._due: set[int] = set()
        self._untold: set[int] = set()
        self._design = _Design(config)
        self._next = 0
        self._drawn: list[FrozenTrial] = []

    def resume(self, trials: Sequence[FrozenTrial]) -> None:
        """Queues what an earlier driver left unfinished; `trials` are all there are, by number.

        A batch that was asked for in part is drawn once more as a whole, with what was known when
        it was drawn first, so that the rest is what it would have been. Raises StudyAwayError,
        after which it can be called again.
        """
        num, size = len(trials), self._config.batch_size
        total = num + min(-num % size, self._config.trials - num) if num else 0
        lacking = [t for t in trials if not _is_finished(t) and len(t.params) < self._num_params]
        first = min([num if total > num else total, *(t.number for t in lacking)])
        first -= first % size if first < total else 0
        self._design = _Design(self._config)
        self._design.restore(trials[:first])
        drawn: list[FrozenTrial] = []
        for begin in range(first, total, size):
            drawn += self._design.draw(begin, min(size, total - begin))
            for trial in trials[begin : begin + size]:
                if _is_finished(trial):
                    state = "failed" if trial.state == TrialState.FAIL else "complete"
                    state = "pruned" if trial.state == TrialState.PRUNED else state
                    self._design.told(trial.number, state, trial.value, trial.last_step)
        for trial in lacking:
            self._ledger.fill(trial, drawn[trial.number - first])
        for number in range(num, total):
            self._ledger.ask(number, drawn[number - first])
        self._next = total
        values = {t.number: t.params for t in drawn}
        values |= {t.number: {**values.get(t.number, {}), **t.params} for t in trials}
        left = {n: values[n] for n in range(num, total)}
        left |= {t.number: values[t.number] for t in trials if not _is_finished(t)}
        self.attempts = dict.fromkeys(left, 0)
        self.attempts |= {
            t.number: int(t.user_attrs.get("attempt", 0)) for t in trials if t.number in left
        }
        self._enqueue(left, {t.number: t.params for t in trials if _is_finished(t)})

    def ask(self) -> bool:
        """Asks for the next batch. False where there is none, or none yet.

        Raises StudyAwayError, after which it can be called again.
        """
        if not self._drawn:
            if self._next >= self._config.trials:
                return False
            if self._config.sampler.is_adaptive and self._untold:
                return False
            count = min(self._config.batch_size, self._config.trials - self._next)
            self._drawn = self._design.draw(self._next, count)
        for trial in self._drawn:
            self._ledger.ask(trial.number, trial)
        batch = {trial.number: trial.params for trial in self._drawn}
        self._drawn, self._next = [], self._next + len(batch)
        self.attempts |= dict.fromkeys(batch, 0)
        self._enqueue(batch)
        return True

    def told(self, header: TrialHeader) -> None:
        """The ledger knows how a trial ended."""
        if header.trial in self._untold:
            self._untold.discard(header.trial)
            self._design.told(header.trial, header.state, header.value, header.pruned_at)

    @property
    def _num_params(self) -> int:
        return len(self._config.space)

    def done(self, number: int) -> None:
        """A trial needs no more training."""
        self._due.discard(number)

    def due_of(self, cohort: Cohort) -> list[TrialSpec]:
        """The trials of a cohort that are still to be recorded."""
        return [spec for spec in cohort.trials if spec.number in self._due]

    def again(self, cohort: Cohort) -> None:
        """Queues a cohort once more, in front: later ones may wait for it."""
        self.queue.appendleft(cohort)

    def again_alone(self, specs: Iterable[TrialSpec]) -> None:
        """Queues trials each by itself, in front."""
        singles = [one for spec in specs for one in plan([spec], self._config.limits)]
        self.queue.extendleft(reversed(singles))

    def _enqueue(
        self,
        due: Mapping[int, dict[str, Any]],
        finished: Mapping[int, dict[str, Any]] = MappingProxyType({}),
    ) -> None:
        for number, values in sorted(due.items()):
            self.specs[number] = self._config.spec(number, values)
        self._untold = set(due)
        self._due |= self._untold
        size = self._config.batch_size
        batches = {number // size for number in due}
        if self._whole:
            batches |= {number // size for number in finished}
        for number, values in finished.items():
            if number // size in batches:
                self.specs[number] = self._config.spec(number, values)
        for batch in sorted(batches):
            numbers = range(batch * size, (batch + 1) * size)
            specs = [self.specs[number] for number in numbers if number in self.specs]
            cohorts = plan(specs, self._config.limits)
            self._planned(cohorts)
            self.queue.extend(cohort for cohort in cohorts if self.due_of(cohort))


def _is_finished(trial: FrozenTrial) -> bool:
    return trial.state.is_finished()
