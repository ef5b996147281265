"""What a sweep has done and what it has cost: trials by how they ended, and epochs.

An epoch is counted for each network that trains through it. `epochs_spent` are those of trials
that are on record or in training; `epochs_again` were trained and recorded of nobody: of members
trained along because a cohort-mate was due again, and of attempts that were lost or abandoned.
What is in a checkpoint is trained once and counted once, with its trial. What a killed driver had
in training beyond it is in neither: nobody was left to count it.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.home import Home
from pipeline.records import TrialHeader

_FILE = "accounting.json"


@dataclass
class Progress:
    """What a sweep is doing, for whoever watches.

    Attributes:
        total: trials the design asks for.
        epochs_each: of a trial that runs to its end.
        running: trial number → epoch it has reached.
        complete, diverged, pruned, failed: finished trials.
        best: lowest final validation loss so far and its trial, or None.
        epochs_ended: epochs trained of finished trials.
        epochs_before: those of `epochs_spent` that an earlier driver trained.
        epochs_again: epochs trained for nothing, see above.
        last: a line about the latest event.
    """

    total: int
    epochs_each: int
    running: dict[int, int] = field(default_factory=dict)
    complete: int = 0
    diverged: int = 0
    pruned: int = 0
    failed: int = 0
    best: tuple[float, int] | None = None
    epochs_ended: int = 0
    epochs_before: int = 0
    epochs_again: int = 0
    started: float = field(default_factory=time.monotonic)
    is_stopping: bool = False
    last: str = ""

    @property
    def finished(self) -> int:
        """Trials that need no more training."""
        return self.complete + self.diverged + self.pruned + self.failed

    @property
    def epochs_planned(self) -> int:
        """Were every trial to run to its end."""
        return self.total * self.epochs_each

    @property
    def epochs_spent(self) -> int:
        """Of finished and running trials."""
        return self.epochs_ended + sum(self.running.values())

    @property
    def eta_seconds(self) -> float | None:
        """Remaining seconds by the rate so far, or None before the first epoch.

        Trials still to come are taken to last as long as those finished have, on average.
        """
        done = self.epochs_spent - self.epochs_before
        each = self.epochs_ended / self.finished if self.finished else self.epochs_each
        running = sum(max(0.0, each - epoch) for epoch in self.running.values())
        left = (self.total - self.finished - len(self.running)) * each + running
        elapsed = time.monotonic() - self.started
        return elapsed / done * left if done else None

    def count(self, state: str, number: int, value: float | None, epochs: int) -> None:
        """A trial that has ended."""
        self.epochs_ended += epochs
        if state == "failed":
            self.failed += 1
        elif state == "diverged":
            self.diverged += 1
        elif state == "pruned":
            self.pruned += 1
        else:
            self.complete += 1
            if value is not None and (self.best is None or value < self.best[0]):
                self.best = (value, number)


@dataclass(frozen=True)
class Epochs:
    """Epochs of a sweep as its records tell them; `unknown` trials recorded none."""

    spent: int
    planned: int
    again: int
    unknown: int = 0


def epochs_of(headers: Iterable[TrialHeader], home: Home) -> Epochs:
    """Of the trials that are on record."""
    spent = planned = unknown = 0
    for header in headers:
        if header.epochs is None or header.epochs_planned is None:
            unknown += 1
        else:
            spent, planned = spent + header.epochs, planned + header.epochs_planned
    return Epochs(spent, planned, load_again(home), unknown)


def load_again(home: Home) -> int:
    """Epochs that earlier drivers trained for nothing."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((home.folder / _FILE).read_text())["epochs_again"])
    return 0


def save_again(home: Home, count: int) -> None:
    """Keeps the sum for the next driver and for `status`."""
    if count == load_again(home):
        return
    temporary = home.spool / f"{_FILE}.tmp"
    temporary.write_text(json.dumps({"epochs_again": count}))
    os.replace(temporary, home.folder / _FILE)
