"""A crew of workers that live as long as the sweep: who is idle, who trains, who waits at a rung.

What executors with persistent workers share, whatever the workers are and however they are spoken
to. A cohort that pauses keeps its worker, which holds its networks.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Generic, Literal, TypeVar

from pipeline.executors.base import Event, Stopped
from pipeline.plan import Cohort
from pipeline.snapshot import Snapshot

W = TypeVar("W")


class Crew(ABC, Generic[W]):
    """`pipeline.executors.base.Executor` over workers of type W, but for what reaches them."""

    def __init__(self) -> None:
        self._idle: list[W] = []
        self._busy: dict[Any, tuple[W, Cohort]] = {}
        """By whatever a worker's answer is waited for."""
        self._pausing: dict[tuple[int, ...], tuple[W, Cohort]] = {}
        self._is_stopping = False

    @abstractmethod
    def _train(
        self,
        worker: W,
        cohort: Cohort,
        call: Literal["start", "advance"],
        arguments: tuple[Any, ...],
    ) -> None:
        """Sends a worker its call, of `Worker`, and adds it to the busy ones."""

    @abstractmethod
    def _arrived(self, timeout: float) -> Iterable[Any]:
        """Keys of the busy workers that have answered, once one has or the time is over."""

    @abstractmethod
    def _receive(self, key: Any) -> Iterable[Event]:
        """The events in one answer; moves the worker to where it belongs now."""

    def submit(self, cohort: Cohort, snapshot: Snapshot | None = None) -> None:
        """Hands the cohort to an idle worker."""
        self._train(self._idle.pop(), cohort, "start", (cohort, snapshot))

    def advance(self, cohort: Cohort, leave: Collection[int] = ()) -> None:
        """Tells the worker to train on without some of the trials."""
        worker, _ = self._pausing.pop(cohort.numbers)
        self._train(worker, cohort, "advance", (tuple(leave),))

    def release(self, cohort: Cohort) -> None:
        """Sets the worker free; it holds the cohort until its next start replaces it."""
        worker, _ = self._pausing.pop(cohort.numbers)
        self._idle.append(worker)

    def poll(self, timeout: float) -> Sequence[Event]:
        """Waits for the first rung, and takes what has arrived by then."""
        if self._is_stopping and self._pausing:
            stopped = [cohort for _, cohort in self._pausing.values()]
            for cohort in stopped:
                self.release(cohort)
            return [Stopped(cohort) for cohort in stopped]
        if not self._busy:
            return ()
        return tuple(event for key in self._arrived(timeout) for event in self._receive(key))

    def _dismiss(self) -> list[W]:
        """All workers, of which none is left in the crew."""
        working = [*self._busy.values(), *self._pausing.values()]
        everyone = [*self._idle, *(worker for worker, _ in working)]
        self._idle, self._busy, self._pausing = [], {}, {}
        return everyone
