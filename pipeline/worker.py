"""What a worker does with a cohort: one rung at a time, so that whoever drives it may stop it.

The same object serves in this process and inside a Ray actor. It knows neither Optuna nor
MLflow nor the sweep's name; it keeps the last task, so that cohorts of one sweep load data once.
"""

import dataclasses
import json
import traceback
from collections.abc import Collection, Generator

import torch

from pipeline.plan import Cohort
from pipeline.populations import build, diagnostics_of, load_task
from pipeline.snapshot import Snapshot
from pipeline.train import Rung, train
from tasks.base import Task


class CohortError(RuntimeError):
    """Training a cohort raised; the text is the traceback."""


class Worker:
    """Trains one cohort at a time."""

    def __init__(self) -> None:
        self._rungs: Generator[Rung, Collection[int] | None, None] | None = None
        self._task: tuple[str, Task] | None = None

    def warm(self, cohort: Cohort) -> None:
        """Loads the task and builds a network of cohorts like this one, so that their start need
        not wait for it. Raises CohortError.
        """
        torch.set_num_threads(cohort.threads)
        try:
            population = build(cohort, self._task_of(cohort))
            diagnostics_of(cohort, population.network, population.task)
        except Exception:  # noqa: BLE001 - whatever a plug-in raises is a result to report
            raise CohortError(traceback.format_exc()) from None

    def start(self, cohort: Cohort, snapshot: Snapshot | None = None) -> Rung:
        """Builds a cohort and returns rung 0, or that of the snapshot. Raises CohortError."""
        torch.set_num_threads(cohort.threads)
        try:
            self._rungs = train(cohort, self._task_of(cohort), snapshot)
        except Exception:  # noqa: BLE001 - whatever a plug-in raises is a result to report
            raise CohortError(traceback.format_exc()) from None
        return self._next(None)

    def advance(self, leave: Collection[int] = ()) -> Rung:
        """Trains to the next rung without the trials numbered in `leave`. Raises CohortError.

        Some trial must be left to train.
        """
        return self._next(leave)

    def _next(self, leave: Collection[int] | None) -> Rung:
        if self._rungs is None:
            raise CohortError("no cohort has been started")
        try:
            rung = self._rungs.send(leave)
        except Exception:  # noqa: BLE001 - whatever a plug-in raises is a result to report
            self._rungs = None
            raise CohortError(traceback.format_exc()) from None
        if rung.is_last:
            self._rungs = None
        return rung

    def _task_of(self, cohort: Cohort) -> Task:
        first = cohort.trials[0]
        key = json.dumps(
            [
                first.task.name,
                dataclasses.asdict(first.task.config),
                cohort.sweep_seed,
                first.trainer.dtype,
                cohort.device,
            ]
        )
        if self._task is None or self._task[0] != key:
            self._task = (key, load_task(cohort))
        return self._task[1]
