"""Which trials come next: asks the sampler batch by batch, and plans each batch as a whole.

A batch is planned from all its trials, those included that an earlier driver finished: how many
train together shows in the last bits, and a sweep that was interrupted shall equal one that was
not. Finished ones keep their places, are trained along where a cohort-mate is due, and nothing
is recorded of them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import optuna
from optuna.trial import FrozenTrial, Trial

from pipeline import sampling
from pipeline.config import SweepConfig
from pipeline.plan import Cohort, TrialSpec, plan

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


class Asker:
    """The trials of one driver, asked of a study and queued as cohorts.

    Args:
        study: has every trial of the sweep; this is the only one who asks it.
        planned: told of all cohorts in the order of planning, those included in which no trial
            is due; from the first cohort of the sweep on, if `whole`.

    Attributes:
        trials, specs: of the trials that this driver has to do with, by number.
        queue: cohorts to train, in the order of planning.
    """

    def __init__(
        self,
        config: SweepConfig,
        study: optuna.Study,
        planned: Planned = lambda _: None,
        *,
        whole: bool = False,
    ) -> None:
        self._config, self._study = config, study
        self._planned, self._whole = planned, whole
        self.trials: dict[int, Trial] = {}
        self.specs: dict[int, TrialSpec] = {}
        self.queue: deque[Cohort] = deque()
        self._due: set[int] = set()
        self._untold: set[int] = set()
        self._use_sampler(0)

    def resume(self, left: Sequence[FrozenTrial], finished: Sequence[FrozenTrial]) -> None:
        """Queues what an earlier driver left unfinished.

        A batch that was asked for in part is completed first, so that it is planned as a whole.
        """
        num_asked, size = len(left) + len(finished), self._config.batch_size
        missing = min(-num_asked % size, self._config.trials - num_asked)
        again: list[Trial] = []
        if left or missing:
            first = left[0].number if left else num_asked
            self._use_sampler(first - first % size)
            again = [Trial(self._study, frozen._trial_id) for frozen in left]
            again += [self._study.ask() for _ in range(missing)]
        self._enqueue(again, finished)

    def ask(self) -> bool:
        """Asks for the next batch. False where there is none, or none yet."""
        first = len(self._study.get_trials(deepcopy=False))
        if first >= self._config.trials:
            return False
        if self._config.sampler.is_adaptive and self._untold:
            return False
        self._use_sampler(first)
        count = min(self._config.batch_size, self._config.trials - first)
        self._enqueue([self._study.ask() for _ in range(count)])
        return True

    def told(self, number: int) -> None:
        """The sampler knows how a trial ended."""
        self._untold.discard(number)

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

    def _enqueue(self, trials: Sequence[Trial], finished: Sequence[FrozenTrial] = ()) -> None:
        for trial in trials:
            values = sampling.suggest(trial, self._config.space)
            self.trials[trial.number] = trial
            self.specs[trial.number] = self._config.spec(trial.number, values)
        self._untold = {trial.number for trial in trials}
        self._due |= self._untold
        size = self._config.batch_size
        batches = {trial.number // size for trial in trials}
        if self._whole:
            batches |= {frozen.number // size for frozen in finished}
        for frozen in finished:
            if frozen.number // size in batches:
                self.specs[frozen.number] = self._config.spec(frozen.number, frozen.params)
        for batch in sorted(batches):
            numbers = range(batch * size, (batch + 1) * size)
            specs = [self.specs[number] for number in numbers if number in self.specs]
            cohorts = plan(specs, self._config.limits)
            self._planned(cohorts)
            self.queue.extend(cohort for cohort in cohorts if self.due_of(cohort))

    def _use_sampler(self, first_number: int) -> None:
        self._study.sampler = sampling.make_sampler(
            self._config.sampler,
            self._config.space,
            seed=self._config.seed,
            first_number=first_number,
        )
