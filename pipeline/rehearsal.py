"""A sweep rehearsed for a few seconds: how long start and end take, a cohort, a trial's record.

A fresh process does what `lyapsweep sweep` does, in a folder that is removed: it loads the same
packages, starts as many workers, makes the same kind of store. The workers practise all at once
(`practice`), for they share cores, caches and memory as they will; then the real driver records a
few trials of which it is handed made-up rungs, with the rows that the workers had. So whatever is
slow on this machine today is slow in the rehearsal too.

A store or a sampler's database on another machine is not asked: recording is timed in SQLite files
or a plain folder, beside those of the user.
"""

import atexit
import contextlib
import dataclasses
import gc
import json
import os
import subprocess
import tempfile
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.accounting import Progress
from pipeline.config import SweepConfig, check
from pipeline.creating import create
from pipeline.estimate import Driving
from pipeline.executors.base import Event, Reached, Stopped
from pipeline.home import Home
from pipeline.interpreter import THREAD_VARIABLES, start
from pipeline.plan import Cohort
from pipeline.populations import build
from pipeline.practice import Memory, Pace, Practice, memory
from pipeline.preflight import preflight, typical_cohort
from pipeline.rows import Row
from pipeline.snapshot import Snapshot
from pipeline.store import open_store, store_uri
from pipeline.sweep import Driver
from pipeline.train import Rung

# Trials that the driver records, and the most epochs of which it is told.
_RECORDED, _MOST_EPOCHS = 16, 60


class RehearsalError(RuntimeError):
    """A rehearsing process ended before its time; the text says how."""


@dataclass(frozen=True)
class Rehearsal:
    """What came of it.

    Attributes:
        driving: what the driver takes.
        paces: of each cohort that was practised, the mean over the workers.
        driver: memory of the driver.
        idle, busy: memory of a worker that has trained nothing, and the most of any other.
    """

    driving: Driving
    paces: Sequence[Pace]
    driver: Memory
    idle: Memory
    busy: Memory


@dataclass(frozen=True)
class _Request:
    """To the rehearsing driver. `began` is when its process was started, by the monotonic clock."""

    tree: dict[str, Any]
    settled: dict[str, Any]
    cohorts: Sequence[Cohort]
    num_workers: int
    seconds: float
    folder: str
    uri: str
    is_store_new: bool
    began: float


def rehearse(
    asked: SweepConfig,
    settled: SweepConfig,
    cohorts: Sequence[Cohort],
    *,
    num_workers: int,
    seconds: float,
) -> Rehearsal:
    """Rehearses a sweep, and practises each of `cohorts` on `num_workers` workers at a time.

    `asked` is the config as it came, whose cohort size may still have to be measured at the start;
    `seconds` is the time for all cohorts together. Raises RehearsalError.
    """
    with _scratch() as folder:
        is_folder = store_uri().startswith("folder:")
        uri = f"folder:{folder}/store" if is_folder else f"sqlite:///{folder}/mlflow.db"
        began = time.monotonic()
        with _launched("pipeline.rehearsal", {}) as (process, channel):
            channel.send(
                _Request(
                    tree=asked.tree,
                    settled=settled.tree,
                    cohorts=cohorts,
                    num_workers=num_workers,
                    seconds=seconds,
                    folder=folder,
                    uri=uri,
                    is_store_new=not _has_store(store_uri()),
                    began=began,
                )
            )
            found = _answer(channel, process)
            ended = time.monotonic()
            process.wait()
            leaving = time.monotonic() - ended
    assert isinstance(found, Rehearsal)
    driving = dataclasses.replace(found.driving, end=found.driving.end + leaving)
    return dataclasses.replace(found, driving=driving)


def work(descriptor: int) -> None:
    """What the rehearsing driver's process runs."""
    from pipeline import cli, progress  # noqa: F401 - as the command does: they take time

    # As the command does, see there.
    atexit.register(gc.freeze)
    with Connection(descriptor) as channel:
        try:
            channel.send(_perform(channel.recv()))
        except Exception:  # noqa: BLE001 - to be shown by whoever asked
            channel.send(traceback.format_exc())


def _perform(request: _Request) -> Rehearsal:
    from pipeline.sizing import settled

    os.environ["LYAPSWEEP_HOME"] = f"{request.folder}/home"
    # Nothing must reach what the user keeps.
    for name in ("LYAPSWEEP_OPTUNA", "LYAPSWEEP_ARTIFACTS"):
        os.environ.pop(name, None)
    asked, config = check(request.tree), check(request.settled)
    preflight(asked)
    settled(asked)
    with contextlib.ExitStack() as workers:
        threads = str(config.execution.num_threads)
        hands = [
            workers.enter_context(
                _launched("pipeline.practice", dict.fromkeys(THREAD_VARIABLES, threads))
            )
            for _ in range(request.num_workers)
        ]
        _tell(hands, Practice(typical_cohort(config), 0.0))
        store, home = open_store(request.uri), Home.of("rehearsal")
        saved = _seconds_saved(request)
        home.create()
        brief = _brief(config)
        info = create(brief, "rehearsal", store)
        driver_ready = time.monotonic() - request.began - saved
        idle = [found for _, found in _hear(hands)]
        start = driver_ready
        if config.execution.executor != "inline":
            start = max(start, time.monotonic() - request.began - saved)
        paces, busy = [], list(idle)
        for cohort in request.cohorts:
            _tell(hands, Practice(cohort, request.seconds / len(request.cohorts)))
            heard = _hear(hands)
            paces.append(_mean([pace for pace, _ in heard if isinstance(pace, Pace)]))
            busy += [found for _, found in heard]
    echo = _Echo(brief, paces[0])
    began = time.monotonic()
    driver = Driver(brief, info, store, home, echo, echo.listen)
    echo.driver = driver
    driver.run()
    driving = echo.driving(began, time.monotonic())
    return Rehearsal(
        driving=dataclasses.replace(driving, start=start + driving.start),
        paces=paces,
        driver=memory(),
        idle=_most(idle),
        busy=_most(busy),
    )


def _seconds_saved(request: _Request) -> float:
    """Makes the store; what a sweep in a store that is there already need not wait for."""
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        open_store(request.uri).prepare()
        seconds.append(time.monotonic() - started)
    return seconds[1] if request.is_store_new else seconds[0]


def _brief(config: SweepConfig) -> SweepConfig:
    """The same sweep in small cohorts, of whose rungs the driver is told without a pause."""
    tree = json.loads(json.dumps(config.tree))
    tree["execution"]["cohort_size"] = min(tree["execution"]["cohort_size"], _RECORDED)
    tree["sampler"]["batch"] = tree["execution"]["cohort_size"]
    tree["pruner"] = {"name": "none"}
    return check(tree)


class _Echo:
    """An executor that trains nothing, and notes when the driver does what.

    Rungs have the rows of a practised member. After the first cohort is recorded and another
    submitted, or after the last, the driver is asked to stop.
    """

    num_slots = 1

    def __init__(self, config: SweepConfig, pace: Pace) -> None:
        self.driver: Driver
        self._config, self._pace = config, pace
        self._epochs = min(config.epochs, _MOST_EPOCHS)
        self._rungs: Iterator[Rung] = iter(())
        self._cohort: Cohort | None = None
        self._submitted: list[float] = []
        self._polled: list[float] = []
        self._given = self._recorded = self._stopped = 0.0
        self._members = 0
        self._making = 0.0

    def submit(self, cohort: Cohort, snapshot: Snapshot | None = None) -> None:
        self._submitted.append(time.monotonic())
        self._cohort, self._rungs = cohort, self._rungs_of(cohort)
        self._members = self._members or len(cohort.trials)

    def poll(self, timeout: float) -> Sequence[Event]:
        self._polled.append(time.monotonic())
        cohort = self._cohort
        if cohort is None:
            return ()
        if len(self._submitted) > 1:
            self._stopped = self._stopped or time.monotonic()
            self._cohort = None
            self.driver.request_stop()
            return (Stopped(cohort),)
        rung = next(self._rungs)
        self._given = time.monotonic()
        self._making += self._given - self._polled[-1]
        if rung.is_last:
            self._cohort = None
        return (Reached(cohort, rung),)

    def listen(self, progress: Progress) -> None:
        if progress.finished and not self._recorded:
            self._recorded = time.monotonic()

    def advance(self, cohort: Cohort, leave: Collection[int] = ()) -> None:
        raise AssertionError("nobody pauses")

    def release(self, cohort: Cohort) -> None:
        raise AssertionError("nobody pauses")

    def stop(self) -> None: ...

    def close(self) -> None: ...

    def driving(self, began: float, ended: float) -> Driving:
        """For one trial; `start` and `end` are those within the driver's run."""
        opening = self._submitted[0] - began
        is_alone = len(self._submitted) == 1
        # A sweep of one small cohort asks once, and the opening of databases hides it.
        ask = 0.0 if is_alone else (self._submitted[1] - self._recorded) / self._members
        begin = (self._polled[0] - self._submitted[0]) / self._members
        told = (self._given - self._polled[0] - self._making) / self._members
        longer = self._config.epochs / self._epochs
        return Driving(
            start=max(0.0, opening - ask * self._members),
            ask=ask,
            begin=begin,
            follow=told * longer,
            publish=(self._recorded - self._given) / self._members * longer,
            end=ended - (self._stopped or self._recorded),
        )

    def _rungs_of(self, cohort: Cohort) -> Iterator[Rung]:
        every = ("train_", "val_")
        due: dict[str, Any] = {c.name: getattr(c.config, "at", None) for c in self._config.measure}
        measured = {epoch for at in due.values() if at is not None for epoch in at}
        measures_always = any(at is None for at in due.values())
        weights: dict[int, dict[str, Any]] = {}
        if cohort.keep_weights:
            state = build(cohort).network.state_dict()
            for n, number in enumerate(cohort.numbers):
                weights[number] = {k: v[n].cpu().numpy() for k, v in state.items()}
        for epoch in range(self._epochs + 1):
            is_last = epoch == self._epochs
            example = self._pace.after if epoch else self._pace.before
            rows = [
                row
                for row in example
                if measures_always or epoch in measured or row.quantity.startswith(every)
            ]
            if is_last:
                values = [r for r in rows if r.quantity.startswith("val_")]
                rows += [
                    dataclasses.replace(r, quantity=r.quantity.replace("val_", "test_", 1))
                    for r in values
                ]
            yield Rung(
                epoch=epoch,
                update=epoch,
                rows={n: [_at(row, epoch) for row in rows] for n in cohort.numbers},
                val_loss=dict.fromkeys(cohort.numbers, 1.0),
                diverged_at={},
                is_last=is_last,
                weights=weights if is_last else {},
                provenance={"chance_loss": 1.0},
            )


def _at(row: Row, epoch: int) -> Row:
    return dataclasses.replace(row, epoch=epoch, update=epoch)


_Hand = tuple["subprocess.Popen[bytes]", Connection]


@contextlib.contextmanager
def _launched(module: str, environment: dict[str, str]) -> Iterator[_Hand]:
    """A fresh interpreter that runs `work` of a module, and the channel to it."""
    process, channel = start(module, environment=environment, output=subprocess.DEVNULL)
    try:
        with channel:
            yield process, channel
    finally:
        process.kill()
        process.wait()


def _tell(hands: Sequence[_Hand], practice: Practice) -> None:
    for _, channel in hands:
        channel.send(practice)


def _hear(hands: Sequence[_Hand]) -> list[tuple[Pace | None, Memory]]:
    found = [_answer(channel, process) for process, channel in hands]
    for outcome, _ in found:
        if isinstance(outcome, str):
            raise RehearsalError(outcome)
    return found


def _answer(channel: Connection, process: "subprocess.Popen[bytes]") -> Any:
    try:
        outcome = channel.recv()
    except (EOFError, OSError):
        raise RehearsalError(
            f"a process of the rehearsal ended with code {process.wait()}; a negative number is "
            "a signal (-9: out of memory?). `lyapsweep plan --no-calibrate` does without"
        ) from None
    if isinstance(outcome, str):
        raise RehearsalError(outcome)
    return outcome


def _mean(paces: Sequence[Pace]) -> Pace:
    return dataclasses.replace(
        paces[0],
        training=sum(p.training for p in paces) / len(paces),
        measuring=sum(p.measuring for p in paces) / len(paces),
    )


def _most(found: Sequence[Memory]) -> Memory:
    return Memory(*(max(getattr(m, f.name) for m in found) for f in dataclasses.fields(Memory)))


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A folder on the disk where the user's store would be, if that can be written."""
    path = Path(store_uri().removeprefix("sqlite:///").removeprefix("folder:"))
    is_local = path.is_absolute() and os.access(path.parent, os.W_OK)
    where = str(path.parent) if is_local else None
    with tempfile.TemporaryDirectory(
        prefix=".lyapsweep-plan-", dir=where, ignore_cleanup_errors=True
    ) as folder:
        yield folder


def _has_store(uri: str) -> bool:
    """True for every store but a SQLite file that is not there yet."""
    path = uri.removeprefix("sqlite:///")
    return path == uri or Path(path).exists()
