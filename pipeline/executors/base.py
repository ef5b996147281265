"""The protocol of executors: submit cohorts, poll events, advance or release, stop, close.

An executor never retries, never drops a cohort silently and never calls back. For each
submitted cohort it delivers any number of `Reached` and then exactly one of: a `Reached` whose
rung is the last, `Raised`, `Lost` or `Stopped`; or nothing more once it is released.

A cohort goes on from rung to rung by itself, but for the epochs among its `pauses`: there it
keeps its slot and waits until the caller says who leaves (`advance`) or that all do (`release`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.plan import Cohort
from pipeline.snapshot import Snapshot
from pipeline.train import Rung


class ExecutorError(RuntimeError):
    """The executor itself cannot start or go on."""


@dataclass(frozen=True)
class Reached:
    """A cohort came to a rung; the last one ends it."""

    cohort: Cohort
    rung: Rung


@dataclass(frozen=True)
class Raised:
    """Training raised an exception: `traceback` says which."""

    cohort: Cohort
    traceback: str


@dataclass(frozen=True)
class Lost:
    """The worker is gone (killed, out of memory, its node dead); the cohort may be tried again."""

    cohort: Cohort
    reason: str


@dataclass(frozen=True)
class Stopped:
    """The cohort was abandoned at a rung after `stop`."""

    cohort: Cohort


Event = Reached | Raised | Lost | Stopped


class Executor(Protocol):
    """Where cohorts are trained."""

    @property
    def num_slots(self) -> int:
        """How many cohorts it can train at a time, now; on a cluster workers come and go."""

    def submit(self, cohort: Cohort, snapshot: Snapshot | None = None) -> None:
        """Starts a cohort. The caller submits no more than `num_slots` at a time.

        With a snapshot it goes on from there; its first rung is that of the snapshot, once more.
        """

    def poll(self, timeout: float) -> Sequence[Event]:
        """Events since the last call, waiting up to `timeout` seconds for the first."""

    def advance(self, cohort: Cohort, leave: Collection[int] = ()) -> None:
        """Lets a cohort that pauses go on without the trials numbered in `leave`, not all."""

    def release(self, cohort: Cohort) -> None:
        """Ends a cohort that pauses; its slot is free at once and no event follows."""

    def stop(self) -> None:
        """Lets no cohort go beyond the rung it is heading for or waits at.

        Events go on until all have ended.
        """

    def close(self) -> None:
        """Frees everything at once; cohorts still in training are dropped."""
