"""Trains in Ray actors, one process each, that live as long as the sweep.

The driver owns retries (`max_restarts=0`, `max_task_retries=0`): Ray would otherwise run work
again behind its back. Each call trains one rung, so that workers answer between rungs; the next
call is sent before the rung's rows are handled, so that they do not wait for the driver, except
where the cohort pauses to be told who leaves.

A local cluster binds to loopback. Without `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`, set before ray
is imported, Ray 2.60 on Linux listens on all interfaces even on a laptop.
"""

import contextlib
import os
import socket
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline.executors.base import Event, ExecutorError, Lost, Raised, Reached, Stopped
from pipeline.executors.crew import Crew
from pipeline.executors.packages import import_conflict, parent_of
from pipeline.plan import Cohort
from pipeline.snapshot import Snapshot
from pipeline.train import Rung
from pipeline.worker import CohortError, Worker

_FORWARDED = ("LYAPSWEEP_DATA",)


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
        address: of a running cluster (`auto`, `ray://…`); None starts a local one.
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
        # Before ray is imported, which fixes for good where this process listens.
        if address is None:
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        else:
            _check_reachable(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self._ray = ray
        self._owns_cluster = False
        if not ray.is_initialized():
            self._start_ray(address, workers, threads)
            self._owns_cluster = True
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        # A worker that reserves no CPU fits anywhere.
        room = int(resources.get("CPU", 0) // threads) if threads else workers or 1
        if gpus:
            room = min(room, int(resources.get("GPU", 0) / gpus))
        self.num_slots = workers or room
        if not 1 <= self.num_slots <= room:
            # More would wait for ever for a place, and say nothing.
            self._stop_ray()
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
            "parent": str(parent_of("pipeline")) if address is None else None,
        }
        self._actor_type = ray.remote(
            num_cpus=threads, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )(_Actor)
        self._warm = warm
        self._idle = [self._new_actor() for _ in range(self.num_slots)]

    def stop(self) -> None:
        """Cohorts are abandoned when their rung arrives."""
        self._is_stopping = True

    def close(self) -> None:
        """Kills the actors, and Ray itself where we started it."""
        for actor in self._dismiss():
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        self._stop_ray()

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

    def _arrived(self, timeout: float) -> list[Any]:
        pending = list(self._busy)
        ready, _ = self._ray.wait(pending, num_returns=1, timeout=timeout)
        if ready:
            ready, _ = self._ray.wait(pending, num_returns=len(pending), timeout=0)
        return list(ready)

    def _receive(self, key: Any) -> Iterator[Event]:
        actor, cohort = self._busy.pop(key)
        exceptions = self._ray.exceptions
        try:
            outcome = self._ray.get(key)
        except exceptions.RayActorError as error:
            if isinstance(error, exceptions.ActorDiedError) and "ExecutorError" in str(error):
                raise ExecutorError(_last_line(str(error))) from error
            self._replace(actor)
            yield Lost(cohort, _first_line(str(error)))
            return
        except (exceptions.RayError, OSError) as error:
            # Out of memory, a dead node, an object lost with its owner.
            self._replace(actor)
            yield Lost(cohort, _first_line(str(error)))
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

    def _stop_ray(self) -> None:
        if self._owns_cluster:
            self._ray.shutdown()
            self._empty.cleanup()

    def _replace(self, actor: Any) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(actor)
        self._idle.append(self._new_actor())

    def _new_actor(self) -> Any:
        actor: Any = self._actor_type.remote(self._setup)
        if self._warm is not None:
            actor.warm.remote(self._warm)
        return actor

    def _start_ray(self, address: str | None, workers: int | None, threads: int) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is not None:
            options["address"] = address
        else:
            cpus = len(os.sched_getaffinity(0))
            options |= {
                "num_cpus": max(cpus, (workers or 0) * threads),
                "include_dashboard": False,
                "object_store_memory": 256 * 2**20,
            }
        try:
            # Ray puts the driver's working folder first on every worker's path, where a stray
            # tasks.py would hide ours: start it from an empty folder, which must outlive it.
            self._empty = tempfile.TemporaryDirectory(prefix="lyapsweep-")
            with _inside(self._empty.name):
                self._ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = "a local Ray" if address is None else f"Ray at {address!r}"
            raise ExecutorError(f"{where} cannot be used: {_first_line(str(error))}") from error


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _check_reachable(address: str) -> None:
    """Raises ExecutorError where nothing listens: Ray itself would try for ten minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # `auto`, or a name that Ray knows how to resolve
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ExecutorError(f"no Ray cluster answers at {address!r} ({error})") from error


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["unknown reason"])[0][:300]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["unknown reason"])[-1][:500]
