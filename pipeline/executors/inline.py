"""Trains in this process, a rung at each poll: for debugging, tests and machines without Ray."""

from collections.abc import Sequence

from pipeline.executors.base import Event, Raised, Reached, Stopped
from pipeline.plan import Cohort
from pipeline.worker import CohortError, Worker


class InlineExecutor:
    """One slot, no second process."""

    num_slots = 1

    def __init__(self) -> None:
        self._worker = Worker()
        self._cohort: Cohort | None = None
        self._is_started = False
        self._is_stopping = False

    def submit(self, cohort: Cohort) -> None:
        """Takes the cohort; training happens in `poll`."""
        assert self._cohort is None, "one cohort at a time"
        self._cohort, self._is_started = cohort, False

    def poll(self, timeout: float) -> Sequence[Event]:
        """Trains to the next rung, however long that takes."""
        cohort = self._cohort
        if cohort is None:
            return ()
        if self._is_stopping:
            self._cohort = None
            return (Stopped(cohort),)
        try:
            rung = self._worker.advance() if self._is_started else self._worker.start(cohort)
        except CohortError as error:
            self._cohort = None
            return (Raised(cohort, str(error)),)
        self._is_started = True
        if rung.is_last:
            self._cohort = None
        return (Reached(cohort, rung),)

    def stop(self) -> None:
        """The next poll abandons the cohort."""
        self._is_stopping = True

    def close(self) -> None:
        """Drops the cohort."""
        self._cohort = None
