"""Trains in Ray actors, one process each, that live as long as the sweep.

The driver owns retries (`max_restarts=0`, `max_task_retries=0`): Ray would otherwise run work
again behind its back. Each call trains one rung, so that workers answer between rungs; the next
call is sent before the rung's rows are handled, so that they do not wait for the driver, except
where the cohort pauses to be told who leaves.

On a cluster that runs already, nodes come and go: every few seconds there are workers made for new
room. Only workers that have answered count as slots, so that nothing is given to one that waits
for a place which may never come.
"""

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.executors.base import Event, ExecutorError, Lost, Raised, Reached, Stopped
from pipeline.executors.crew import Crew
from pipeline.executors.packages import digest, import_conflict, parent_of
from pipeline.executors.ray_cluster import Cluster, first_line
from pipeline.plan import Cohort
from pipeline.snapshot import Snapshot
from pipeline.train import Rung
from pipeline.worker import CohortError, Worker

_FORWARDED = ("LYAPSWEEP_DATA",)
_RESIZE_SECONDS = 5.0
_PATIENCE_SECONDS = 60.0


class _Actor:
    """A worker in a process of its own, with the packages the driver has."""

    def __init__(self, setup: dict[str, Any]) -> None:
        os.environ.update(setup["environment"])
        # Relative paths in a conf mean the driver's folder; on another node it may not exist.
        with contextlib.suppress(OSError):
            os.chdir(setup["folder"])
        hidden = import_conflict(setup["parent"])
        if hidden:
            raise ExecutorError(hidden)
        if setup["digest"] not in (None, digest()):
            raise ExecutorError(
                f"workers must run the driver's code, but the packages in {parent_of('pipeline')} "
                f"on {os.uname().nodename} differ from those of the driver; install one version "
                "everywhere"
            )
        self._worker = Worker()

    def warm(self, cohort: Cohort) -> None:
        """Loads what cohorts like this one need."""
        # What cannot be loaded fails again, and is reported, when it is trained.
        with contextlib.suppress(CohortError):
            self._worker.warm(cohort)

    def start(self, cohort: Cohort, snapshot: Snapshot | None = None) -> Rung | CohortError:
        """The first rung, or what was raised (returned: Ray would wrap a raise in its own type)."""
        try:
            return self._worker.start(cohort, snapshot)
        except CohortError as error:
            return error

    def advance(self, leave: Collection[int] = ()) -> Rung | CohortError:
        """The next rung, or what was raised."""
        try:
            return self._worker.advance(leave)
        except CohortError as error:
            return error

    def process_id(self) -> int:
        """For tests that kill workers."""
        return os.getpid()


class RayExecutor(Crew[Any]):
    """Persistent actors on a local or running Ray cluster.

    Args:
        workers: how many; None takes as many as the cluster's CPUs and GPUs hold.
        threads: CPUs a worker reserves.
        address: of a running cluster (`auto`, `ray://…`); None starts a local one. On a running
            one, `workers` beyond its room wait until it has grown.
        gpus: GPUs a worker reserves; may be a fraction.
        warm: a cohort like those to come, whose task and plug-ins workers load at once.

    Raises ExecutorError where Ray cannot be reached or a worker has other packages.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        threads: int = 1,
        address: str | None = None,
        gpus: float = 0.0,
        warm: Cohort | None = None,
    ) -> None:
        super().__init__()
        self._cluster = Cluster(address, max(_cores(), (workers or 0) * threads))
        self._ray = self._cluster.ray
        self._needs = threads, gpus
        self._asked = workers
        room = self._cluster.room(threads, gpus)
        wanted = workers or (1 if room is None else room)
        here = wanted if room is None else min(wanted, room)
        if here < (1 if self._cluster.is_joined else max(wanted, 1)):
            # More would wait for ever for a place, and say nothing; a cluster may grow.
            self._cluster.close()
            needs = f"{threads} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
            raise ExecutorError(
                f"Ray has room for {room} workers of {needs} each, got execution.workers = "
                f"{workers or 'one at least'}"
            )
        self._setup = {
            "environment": {
                key: str(Path(os.environ[key]).absolute())
                for key in _FORWARDED
                if key in os.environ
            },
            "folder": str(Path.cwd()),
            # On a cluster the packages lie where each node keeps them.
            "parent": None if self._cluster.is_joined else str(parent_of("pipeline")),
            "digest": digest() if self._cluster.is_joined else None,
        }
        self._actor_type = self._ray.remote(
            num_cpus=threads, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )(_Actor)
        self._warm = warm
        self._starting: dict[Any, Any] = {}
        """Workers that have not answered yet, by what they will answer."""
        self._resized = time.monotonic()
        if not self._cluster.is_joined:
            self._idle = [self._new_actor() for _ in range(wanted)]
            return
        for _ in range(wanted):
            # Those beyond the room wait, which tells an autoscaler to make some.
            self._begin_worker()
        # Here, so that nodes with other code are found out before the sweep begins.
        self._welcome(self._wait(list(self._starting), _PATIENCE_SECONDS))

    @property
    def num_slots(self) -> int:
        """Workers that are there."""
        return len(self._idle) + len(self._busy) + len(self._pausing)

    def stop(self) -> None:
        """Cohorts are abandoned when their rung arrives."""
        self._is_stopping = True

    def close(self) -> None:
        """Kills the actors, and Ray itself where we started it."""
        starting, self._starting = list(self._starting.values()), {}
        for actor in [*self._dismiss(), *starting]:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self._cluster.close()

    def process_ids(self) -> list[int]:
        """Of the idle actors; for tests."""
        ids: list[int] = self._ray.get([a.process_id.remote() for a in self._idle])
        return ids

    def _train(
        self,
        worker: Any,
        cohort: Cohort,
        call: Literal["start", "advance"],
        arguments: tuple[Any, ...],
    ) -> None:
        self._busy[getattr(worker, call).remote(*arguments)] = (worker, cohort)

    def poll(self, timeout: float) -> Sequence[Event]:
        """As of every crew; a cluster without a worker is waited for."""
        if time.monotonic() >= self._resized + _RESIZE_SECONDS:
            self._resized = time.monotonic()
            if self._cluster.is_joined:
                self._resize()
            elif not self._cluster.is_alive():
                raise ExecutorError("the local Ray is gone; resume starts another")
        if self._starting and not self._busy:
            self._welcome(self._wait(list(self._starting), timeout))
        return super().poll(timeout)

    def _arrived(self, timeout: float) -> list[Any]:
        ready = self._wait([*self._busy, *self._starting], timeout)
        self._welcome(ready)
        return [key for key in ready if key in self._busy]

    def _wait(self, pending: list[Any], timeout: float) -> list[Any]:
        """All that is there once one is, or the time is over."""
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=timeout)
        if ready:
            ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        return list(ready)

    def _welcome(self, ready: list[Any]) -> None:
        """Workers that answer for the first time are idle from now on."""
        for key in ready:
            actor = self._starting.pop(key, None)
            if actor is None:
                continue
            try:
                self._ray.get(key)
            except (self._ray.exceptions.RayError, OSError) as error:
                if "ExecutorError" in str(error):
                    raise ExecutorError(_last_line(str(error))) from error
                # Its node went before it came; the next look at the cluster makes another.
            else:
                self._idle.append(actor)

    def _resize(self) -> None:
        """As many workers as were asked for, or else as there is room for."""
        wanted = self._asked
        if wanted is None:
            try:
                wanted = self._cluster.room(*self._needs)
            except (self._ray.exceptions.RayError, OSError, RuntimeError):
                return  # The head does not answer; those that train may.
        missing = 0 if wanted is None else wanted - self.num_slots - len(self._starting)
        for _ in range(missing):
            self._begin_worker()
        for key in list(self._starting)[: max(0, -missing)]:
            with contextlib.suppress(Exception):
                self._ray.kill(self._starting.pop(key))

    def _begin_worker(self) -> None:
        actor = self._new_actor()
        self._starting[actor.process_id.remote()] = actor

    def _receive(self, key: Any) -> Iterator[Event]:
        actor, cohort = self._busy.pop(key)
        exceptions = self._ray.exceptions
        try:
            outcome = self._ray.get(key)
        except exceptions.RayActorError as error:
            if isinstance(error, exceptions.ActorDiedError) and "ExecutorError" in str(error):
                raise ExecutorError(_last_line(str(error))) from error
            self._replace(actor)
            yield Lost(cohort, first_line(str(error)))
            return
        except (exceptions.RayError, OSError) as error:
            # Out of memory, a dead node, an object lost with its owner.
            self._replace(actor)
            yield Lost(cohort, first_line(str(error)))
            return
        if isinstance(outcome, CohortError):
            self._idle.append(actor)
            yield Raised(cohort, str(outcome))
            return
        if outcome.is_last:
            self._idle.append(actor)
            yield Reached(cohort, outcome)
        elif self._is_stopping:
            # The actor still holds the abandoned cohort; its next start replaces it.
            self._idle.append(actor)
            yield Reached(cohort, outcome)
            yield Stopped(cohort)
        elif outcome.epoch in cohort.pauses:
            self._pausing[cohort.numbers] = actor, cohort
            yield Reached(cohort, outcome)
        else:
            self._train(actor, cohort, "advance", ((),))
            yield Reached(cohort, outcome)

    def _replace(self, actor: Any) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(actor)
        if self._cluster.is_joined:
            # Perhaps its node is gone, and with it the room for another.
            self._begin_worker()
        else:
            self._idle.append(self._new_actor())

    def _new_actor(self) -> Any:
        actor: Any = self._actor_type.remote(self._setup)
        if self._warm is not None:
            actor.warm.remote(self._warm)
        return actor


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["unknown reason"])[-1][:500]
