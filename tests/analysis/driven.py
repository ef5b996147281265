"""Tiny sweeps that are really trained, in this process, to hold replays and pruners against."""

import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from pipeline import config, creating
from pipeline.accounting import Progress
from pipeline.executors.base import Event, Executor, Reached, Stopped
from pipeline.executors.inline import InlineExecutor
from pipeline.folder_store import FolderStore
from pipeline.home import Home
from pipeline.plan import Cohort
from pipeline.snapshot import Snapshot
from pipeline.store import NoSuchSweepError
from pipeline.sweep import Driver, Outcome
from pipeline.worker import Worker

TREE: dict[str, Any] = {
    "seed": 5,
    "trials": 26,
    "sampler": {"name": "qmc", "batch": 26},
    "task": {"name": "planar", "points": 200, "batch_size": 25},
    "network": {"name": "mlp", "width": 4, "init_scale": {"uniform": [0.3, 3.0]}},
    "trainer": {"epochs": 5, "learning_rate": {"log_uniform": [1e-3, 0.3]}},
    "measure": {
        "ftle": {"probes": 10, "at": [0, 1, 2, 3]},
        "gradient_norm": {"examples": 5, "at": [0, 1, 2, 3]},
    },
    "execution": {"executor": "inline", "cohort_size": 4},
}


def run(
    root: Path,
    name: str,
    pruner: dict[str, Any],
    executor: Executor | None = None,
    listener: Callable[[Progress, Driver], None] = lambda *_: None,
    **sections: Any,
) -> Outcome:
    """Begins or goes on with a sweep in the folder store `root/store`."""
    store = FolderStore(root / "store")
    store.prepare()
    try:
        info = store.sweep(name)
    except NoSuchSweepError:
        tree = {**TREE, "pruner": pruner, **sections}
        info = creating.create(config.check(tree), name, store)
    home, checked = Home(root / "home", name), creating.stored_config(info)
    driver = Driver(checked, info, store, home, executor or InlineExecutor())
    driver._listen = lambda progress: listener(progress, driver)
    return driver.run()


def pruned(root: Path, name: str) -> dict[int, int]:
    """Who left, and after which epoch."""
    headers = [record.header for record in FolderStore(root / "store").records(name)]
    assert len(headers) == TREE["trials"]
    return {h.trial: h.pruned_at for h in headers if h.pruned_at is not None}


class Shuffled:
    """Several slots, whose rungs arrive in an order of their own."""

    def __init__(self, num_slots: int, seed: int) -> None:
        self.num_slots, self._random = num_slots, random.Random(seed)
        self._slots: dict[tuple[int, ...], tuple[Cohort, Worker]] = {}
        self._leave: dict[tuple[int, ...], Collection[int] | None] = {}
        self._is_stopping = False

    def submit(self, cohort: Cohort, snapshot: Snapshot | None = None) -> None:
        assert snapshot is None, "nothing was interrupted"
        self._slots[cohort.numbers] = cohort, Worker()
        self._leave[cohort.numbers] = None

    def advance(self, cohort: Cohort, leave: Collection[int] = ()) -> None:
        self._leave[cohort.numbers] = leave

    def release(self, cohort: Cohort) -> None:
        del self._slots[cohort.numbers]

    def poll(self, timeout: float) -> Sequence[Event]:
        ready = self._slots if self._is_stopping else self._leave
        if not ready:
            return ()
        numbers = self._random.choice(sorted(ready))
        cohort, worker = self._slots[numbers]
        leave = self._leave.pop(numbers, None)
        if self._is_stopping:
            del self._slots[numbers]
            return (Stopped(cohort),)
        rung = worker.start(cohort) if leave is None else worker.advance(leave)
        if rung.is_last:
            del self._slots[numbers]
        elif rung.epoch not in cohort.pauses:
            self._leave[numbers] = ()
        return (Reached(cohort, rung),)

    def stop(self) -> None:
        self._is_stopping = True

    def close(self) -> None:
        self._slots.clear()
