"""The protocol of executors: submit cohorts, poll events, stop at rungs, close.

An executor never retries, never drops a cohort silently and never calls back. For each
submitted cohort it delivers any number of `Reached` and then exactly one of: a `Reached` whose
rung is the last, `Raised`, `Lost` or `Stopped`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.plan import Cohort
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

    num_slots: int
    """How many cohorts it can train at a time."""

    def submit(self, cohort: Cohort) -> None:
        """Starts a cohort. The caller submits no more than `num_slots` at a time."""

    def poll(self, timeout: float) -> Sequence[Event]:
        """Events since the last call, waiting up to `timeout` seconds for the first."""

    def stop(self) -> None:
        """Lets no cohort go beyond the rung it is heading for. Events go on until all ended."""

    def close(self) -> None:
        """Frees everything at once; cohorts still in training are dropped."""
