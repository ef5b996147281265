"""Seconds that measurements take beside training, and whether another one fits its budget.

Timing decides, so that two runs of one trial may measure differently where a budget is set. What
was decided is carried along by snapshots: a resumed trial goes on as it was measured so far.
"""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.diagnostics.base import Diagnostic, Moment
from tasks.base import seed_for

if TYPE_CHECKING:
    from pipeline.populations import Population
    from pipeline.rung_rows import RungRows


@dataclass(frozen=True)
class Spent:
    """What has been spent, in seconds, and what budgets left; JSON values only.

    Attributes:
        training: of all epochs so far.
        measuring: by measurement, what it took to fit its budget included.
        dearest: by measurement, its longest reading.
        fitting: by measurement, what fitting took that no reading has been charged for.
        fitted: by measurement, the settings that its budget left.
    """

    training: float = 0.0
    measuring: dict[str, float] = field(default_factory=dict)
    dearest: dict[str, float] = field(default_factory=dict)
    fitting: dict[str, float] = field(default_factory=dict)
    fitted: dict[str, dict[str, Any]] = field(default_factory=dict)


class Spending:
    """Takes measurements within their budgets.

    Args:
        num_epochs: of the whole training.
        spent: before, by the same cohort.
        diagnostics: as asked for, by name; those that `spent` has fitted settings of are cut
            down to these.
    """

    def __init__(
        self,
        num_epochs: int,
        spent: Spent | None = None,
        diagnostics: Mapping[str, Diagnostic] | None = None,
    ) -> None:
        spent = spent or Spent()
        self.training = spent.training
        self._num_epochs = num_epochs
        self._fitting = dict(spent.fitting)
        self._measuring, self._dearest = dict(spent.measuring), dict(spent.dearest)
        self._fitted: dict[str, Diagnostic] = {}
        for name, settings in spent.fitted.items():
            asked = (diagnostics or {})[name]
            values = {key: _tupled(value) for key, value in settings.items()}
            self._fitted[name] = asked.fitted(type(asked.config)(**values))

    @property
    def spent(self) -> Spent:
        """So far."""
        return Spent(
            self.training,
            dict(self._measuring),
            dict(self._dearest),
            dict(self._fitting),
            {name: dataclasses.asdict(d.config) for name, d in self._fitted.items()},
        )

    def measure(
        self,
        name: str,
        diagnostic: Diagnostic,
        population: "Population",
        epoch: int,
        rows: "RungRows",
    ) -> None:
        """Takes a reading, or records that it would have cost too much."""
        budget = diagnostic.config.budget
        moment = _moment(population, epoch)
        if budget is not None and getattr(diagnostic, "can_shrink", False):
            if name not in self._fitted:
                started = time.perf_counter()
                seconds = budget * self._expected(population, epoch)
                self._fitted[name] = diagnostic.fit(
                    population.network,
                    population.task,
                    moment,
                    seconds / self._num_due(diagnostic, epoch),
                )
                self._fitting[name] = time.perf_counter() - started
            diagnostic = self._fitted[name]
        spent, dearest = self._measuring.get(name, 0.0), self._dearest.get(name, 0.0)
        if budget is not None and epoch > 0:
            expected_training = self._expected(population, epoch)
            if spent + dearest > budget * expected_training:
                share = (spent + dearest) / expected_training
                rows.add_skipped(name, {"budget": budget, "would_be_share": share})
                return
        started = time.perf_counter()
        readings = diagnostic.measure(population.network, population.task, moment)
        seconds = time.perf_counter() - started
        self._dearest[name] = max(dearest, seconds)
        # What it took to fit the budget was spent on measuring too.
        seconds += self._fitting.pop(name, 0.0)
        self._measuring[name] = spent + seconds
        rows.add_readings(readings, seconds)

    def _expected(self, population: "Population", epoch: int) -> float:
        """Seconds that all epochs of training will take together."""
        if epoch > 0:
            return self.training * self._num_epochs / epoch
        return self._num_epochs * _rehearse(population)

    def _num_due(self, diagnostic: Diagnostic, epoch: int) -> int:
        """Readings still to be taken, this one included."""
        at = diagnostic.config.at
        epochs = range(epoch, self._num_epochs + 1)
        return len(epochs if at is None else [e for e in epochs if e in at])


def _moment(population: "Population", epoch: int) -> Moment:
    cohort = population.cohort
    return Moment(
        epoch=epoch,
        update=population.update,
        probe_seed=seed_for(cohort.sweep_seed, "probe"),
        tangent_seeds=tuple(seed_for(t.seed, "tangents") for t in cohort.trials),
    )


def _rehearse(population: "Population") -> float:
    """Seconds an epoch will take, from its first batch twice over; weights and draws stay."""
    network, task = population.network, population.task
    batches = task.training_batches(1)
    first = next(iter(batches))
    count = 1 + sum(1 for _ in batches)
    seconds = []
    # The first round warms the kernels up.
    for _ in range(2):
        started = time.perf_counter()
        found = network.gradient(lambda o: task.losses(o, first.targets).mean(1), first.inputs)
        for regulariser in population.regularisers:
            regulariser.add(found[2], network, first.inputs)
        seconds.append(time.perf_counter() - started)
    return seconds[-1] * count


def _tupled(value: Any) -> Any:
    """Settings hold tuples, which come back from JSON as lists."""
    return tuple(_tupled(one) for one in value) if isinstance(value, list) else value
