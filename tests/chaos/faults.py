"""Everything that a storm can do to a stage, one function a family.

A fault names its target, so that two of them do not undo each other, and says when and how it
passes.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.chaos.proxy import HTTP_FAULTS
from tests.chaos.stage import Disk, Stage


@dataclass(frozen=True)
class Recovery:
    """What is done `after` seconds, and whether the fault has struck by then."""

    after: float
    do: Callable[[], object]
    struck: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Fault:
    """One kind of it. `act` returns None where there is nothing to harm right now."""

    kind: str
    target: str
    act: Callable[[Random], Recovery | None]
    weight: float = 1.0


def faults_of(stage: Stage, pause: float) -> list[Fault]:
    """All that this stage can suffer; what is stopped stands still for `pause` seconds."""
    found = [*_of_driver(stage, pause), *_of_clock(stage)]
    found += [_full(f"disk of {what} full", disk) for what, disk in _disks(stage)]
    if stage.ray:
        found += _of_raylet(stage, pause)
    if stage.servers:
        found += [*_of_servers(stage, pause), *_of_tracking(stage), *_of_database(stage)]
    return found


def _nothing() -> None:
    """The fault leaves nothing to be put right."""


def _of_driver(stage: Stage, pause: float) -> list[Fault]:
    def kill_driver(rng: Random) -> Recovery | None:
        if stage.driver is None or stage.driver.poll() is not None:
            return None
        stage.driver.send_signal(signal.SIGKILL)
        # One that stands still dies once it goes on.
        return Recovery(0.0, _nothing)

    def stop_driver(rng: Random) -> Recovery | None:
        driver = stage.driver
        if driver is None or driver.poll() is not None:
            return None
        driver.send_signal(signal.SIGSTOP)
        return Recovery(pause, lambda: driver.send_signal(signal.SIGCONT))

    def kill_worker(rng: Random) -> Recovery | None:
        workers = stage.workers()
        if not workers or not rng.choice(workers).signal(signal.SIGKILL):
            return None
        return Recovery(0.0, _nothing)

    def stop_worker(rng: Random) -> Recovery | None:
        workers = stage.workers()
        if not workers:
            return None
        worker = rng.choice(workers)
        worker.signal(signal.SIGSTOP)
        return Recovery(pause, lambda: worker.signal(signal.SIGCONT))

    return [
        Fault("kill -9 driver", "driver", kill_driver, 0.6),
        Fault("kill -9 worker", "worker", kill_worker, 1.5),
        Fault("stop driver", "driver", stop_driver, 0.5),
        Fault("stop worker", "worker", stop_worker, 0.7),
    ]


def _of_clock(stage: Stage) -> list[Fault]:
    if stage.ray:
        return []

    def jump(lowest: float, highest: float) -> Callable[[Random], Recovery]:
        def act(rng: Random) -> Recovery:
            stage.set_clock(rng.uniform(lowest, highest))
            return Recovery(0.0, _nothing)

        return act

    return [
        Fault("clock jumps ahead", "clock", jump(60, 90_000), 0.4),
        Fault("clock jumps back", "clock", jump(-90_000, -60), 0.4),
    ]


def _disks(stage: Stage) -> list[tuple[str, Disk]]:
    both = [("the driver", stage.home), ("the store", stage.store)]
    return [(what, disk) for what, disk in both if disk.is_own]


def _full(kind: str, disk: Disk) -> Fault:
    def act(rng: Random) -> Recovery:
        disk.fill()
        return Recovery(rng.uniform(1, 4), disk.free)

    return Fault(kind, kind, act, 0.5)


def _of_raylet(stage: Stage, pause: float) -> list[Fault]:
    def kill(rng: Random) -> Recovery | None:
        raylet = stage.raylet()
        if raylet is None or not raylet.signal(signal.SIGKILL):
            return None
        return Recovery(0.0, _nothing)

    def stop(rng: Random) -> Recovery | None:
        raylet = stage.raylet()
        if raylet is None or not raylet.signal(signal.SIGSTOP):
            return None
        return Recovery(pause, lambda: raylet.signal(signal.SIGCONT))

    return [Fault("kill -9 raylet", "raylet", kill), Fault("stop raylet", "raylet", stop, 0.7)]


def _of_servers(stage: Stage, pause: float) -> list[Fault]:
    from tests.chaos.processes import tree

    assert stage.servers is not None
    found = []
    for what, server in (
        ("MLflow server", stage.servers.mlflow),
        ("PostgreSQL", stage.servers.postgres),
    ):

        def members(server=server) -> list:
            return tree(server.process.pid) if server.process else []

        def kill(rng: Random, server=server, members=members) -> Recovery | None:
            # The first is the master, who would start others in the place of those that die.
            for one in (everyone := members()):
                one.signal(signal.SIGKILL)
            return (
                Recovery(rng.uniform(0.5, 6), lambda: stage.restart(server)) if everyone else None
            )

        def stop(rng: Random, members=members) -> Recovery | None:
            everyone = members()
            for one in everyone:
                one.signal(signal.SIGSTOP)
            return (
                Recovery(pause, lambda: [one.signal(signal.SIGCONT) for one in everyone])
                if everyone
                else None
            )

        found += [
            Fault(f"kill -9 {what}", what, kill),
            Fault(f"stop {what}", what, stop, 0.6),
        ]
    return found


def _of_tracking(stage: Stage) -> list[Fault]:
    assert stage.servers is not None
    proxy = stage.servers.http

    def harm(kind: str) -> Callable[[Random], Recovery]:
        def act(rng: Random) -> Recovery:
            before = proxy.harmed[kind]
            proxy.arm(kind, rng.choice((1, 1, 2, 5)))
            return Recovery(6.0, lambda: proxy.disarm(kind), lambda: proxy.harmed[kind] > before)

        return act

    return [Fault(f"MLflow: {kind}", f"http {kind}", harm(kind), 0.7) for kind in HTTP_FAULTS]


def _of_database(stage: Stage) -> list[Fault]:
    assert stage.servers is not None
    proxy = stage.servers.tcp

    def armed(kind: str) -> Callable[[Random], Recovery]:
        def act(rng: Random) -> Recovery:
            before = proxy.harmed[kind]
            proxy.arm(kind)
            return Recovery(6.0, lambda: proxy.disarm(kind), lambda: proxy.harmed[kind] > before)

        return act

    def reset_all(rng: Random) -> Recovery | None:
        return Recovery(0.0, _nothing) if proxy.reset_all() else None

    def refuse(rng: Random) -> Recovery | None:
        before, seconds = proxy.harmed["refuse"], rng.uniform(0.5, 4)
        proxy.refuse_for(seconds)
        proxy.reset_all()
        return Recovery(seconds + 1, _nothing, lambda: proxy.harmed["refuse"] > before)

    return [
        Fault("PostgreSQL: connections reset", "tcp", reset_all, 0.6),
        Fault("PostgreSQL: refuses", "tcp", refuse, 0.6),
        Fault("PostgreSQL: reset in place of an answer", "tcp", armed("reset"), 0.6),
        Fault("PostgreSQL: answer cut in its middle", "tcp", armed("answer cut"), 0.6),
        Fault("PostgreSQL: delay", "tcp", armed("delay"), 0.6),
    ]
