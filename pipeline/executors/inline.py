"""Trains in this process, a rung at each poll: for debugging, tests and machines without Ray."""

from collections.abc import Collection, Sequence

from pipeline.executors.base import Event, Raised, Reached, Stopped
from pipeline.plan import Cohort
from pipeline.snapshot import Snapshot
from pipeline.worker import CohortError, Worker


class InlineExecutor:
    """One slot, no second process."""

    num_slots = 1

    def __init__(self) -> None:
        self._worker = Worker()
        self._cohort: Cohort | None = None
        self._snapshot: Snapshot | None = None
        self._leave: Collection[int] | None = None
        self._is_pausing = False
        self._is_stopping = False

    def submit(self, cohort: Cohort, snapshot: Snapshot | None = None) -> None:
        """Takes the cohort; training happens in `poll`."""
        assert self._cohort is None, "one cohort at a time"
        self._cohort, self._leave, self._is_pausing = cohort, None, False
        self._snapshot = snapshot

    def advance(self, cohort: Cohort, leave: Collection[int] = ()) -> None:
        """The next poll trains on."""
        assert self._is_pausing, "a cohort that does not pause goes on by itself"
        self._leave, self._is_pausing = leave, False

    def release(self, cohort: Cohort) -> None:
        """Drops the cohort."""
        assert self._is_pausing, "a cohort that does not pause goes on by itself"
        self._cohort, self._is_pausing = None, False

    def poll(self, timeout: float) -> Sequence[Event]:
        """Trains to the next rung, however long that takes."""
        cohort = self._cohort
        if cohort is None:
            return ()
        if self._is_stopping:
            self._cohort, self._is_pausing = None, False
            return (Stopped(cohort),)
        if self._is_pausing:
            return ()
        try:
            if self._leave is None:
                snapshot, self._snapshot = self._snapshot, None
                rung = self._worker.start(cohort, snapshot)
            else:
                rung = self._worker.advance(self._leave)
        except CohortError as error:
            self._cohort = None
            return (Raised(cohort, str(error)),)
        self._leave = ()
        if rung.is_last:
            self._cohort = None
        else:
            self._is_pausing = rung.epoch in cohort.pauses
        return (Reached(cohort, rung),)

    def stop(self) -> None:
        """The next poll abandons the cohort."""
        self._is_stopping = True

    def close(self) -> None:
        """Drops the cohort."""
        self._cohort = None
