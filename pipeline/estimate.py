"""What a sweep would cost, from timing a few updates of each shape. Nothing is kept."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.diagnostics.base import Moment
from pipeline.plan import Cohort, shape_key
from pipeline.train import Population, build, diagnostics_of, update
from tasks.base import Task

_UPDATES = 6
_SECONDS = 3.0


@dataclass(frozen=True)
class Cost:
    """Estimated seconds of one cohort on one worker, start-up not included."""

    training: float
    evaluating: float
    measuring: float
    num_parameters: int

    @property
    def total(self) -> float:
        """All of it."""
        return self.training + self.evaluating + self.measuring


def estimate(cohorts: Sequence[Cohort]) -> list[Cost]:
    """A cost for each cohort. Cohorts of one shape and size are timed once.

    Times a few updates, evaluation batches and one reading of each measurement on a throw-away
    population. Raises UnsuitableError, MissingDataError.
    """
    timed: dict[tuple[str, int], Cost] = {}
    for cohort in cohorts:
        key = (shape_key(cohort.trials[0]), len(cohort.trials))
        if key not in timed:
            timed[key] = _time(cohort)
    return [timed[shape_key(c.trials[0]), len(c.trials)] for c in cohorts]


def _time(cohort: Cohort) -> Cost:
    torch.set_num_threads(cohort.threads)
    population = build(cohort)
    task, epochs = population.task, cohort.trials[0].trainer.epochs
    each = seconds_per_update(population)
    evaluating = _seconds_of_validation(population, task)
    measuring = 0.0
    for diagnostic in diagnostics_of(cohort, population.network, task):
        at = diagnostic.config.at
        readings = epochs + 1 if at is None else len([e for e in at if e <= epochs])
        moment = Moment(0, 0, 0, tuple(range(len(cohort.trials))))
        started = time.perf_counter()
        diagnostic.measure(population.network, task, moment)
        measuring += readings * (time.perf_counter() - started)
    return Cost(
        training=epochs * task.num_updates * each,
        evaluating=(epochs + 1) * evaluating,
        measuring=measuring,
        num_parameters=sum(p[0].numel() for p in population.network.parameters()),
    )


def seconds_per_update(
    population: Population, *, updates: int = _UPDATES, seconds: float = _SECONDS
) -> float:
    """Median over a few updates, the first (which warms caches) left out.

    At most `updates`, and no further one after `seconds`, but two. Trains the population.
    """
    is_cuda = torch.device(population.cohort.device).type == "cuda"
    population.network.train()
    population.optimiser.start_epoch(1)
    times: list[float] = []
    state: Any = None
    began = time.perf_counter()
    for batch in itertools.islice(population.task.training_batches(1), updates):
        started = time.perf_counter()
        _, state = update(population, batch, None if batch.is_start else state)
        if is_cuda:
            torch.cuda.synchronize(population.cohort.device)
        times.append(time.perf_counter() - started)
        if time.perf_counter() - began > seconds and len(times) > 1:
            break
    population.network.eval()
    kept = sorted(times[1:] or times)
    return kept[len(kept) // 2]


@torch.no_grad()
def _seconds_of_validation(population: Population, task: Task) -> float:
    """The whole validation split by the time of its first batches."""
    batches = list(task.batches("validation"))
    timed = batches[: max(1, min(4, len(batches)))]
    started = time.perf_counter()
    for batch in timed:
        outputs_N, _ = population.network(batch.inputs)
        task.per_example(outputs_N, batch.targets)
    return (time.perf_counter() - started) * len(batches) / len(timed)
