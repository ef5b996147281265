"""THE training loop: a cohort of N >= 1 networks, trained as one, yielding at each rung.

A rung is the end of an epoch (rung 0 is before training): losses and scores of every member,
and whatever measurements are due. The caller may stop asking at any rung, or say who leaves.

A member whose loss or gradient is not finite has diverged: it is frozen at its last finite
weights, its losses are recorded once as NaN with the flag `diverged`, and it leaves at the next
rung. Whoever leaves is cut out of the population; the others go on as if it had stayed.

At some rungs a `Snapshot` comes along, from which training goes on as if it had never ended.

Shapes: N members, B examples, T steps.
"""

import dataclasses
import math
import os
import platform
import time
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from pipeline.diagnostics.base import Diagnostic
from pipeline.plan import Cohort
from pipeline.populations import Population, build, diagnostics_of, train_epoch
from pipeline.rows import Row
from pipeline.rung_rows import RungRows
from pipeline.snapshot import Snapshot, SnapshotError, restore, take
from pipeline.spending import Spending
from tasks.base import Task

SECONDS_BETWEEN_SNAPSHOTS = 60.0
"""Of `auto`: a snapshot takes some milliseconds, on the way to the disk some dozens."""


@dataclass(frozen=True)
class Rung:
    """What a cohort reports at the end of an epoch.

    Attributes:
        epoch, update: how far it is.
        rows: trial number → rows obtained since the rung before; none for those that have left.
        val_loss: trial number → validation loss, NaN for diverged trials and those that left.
        diverged_at: trial number → update at which it diverged; the living are absent.
        is_last: True if nothing follows.
        weights: trial number → name → array, if asked for, of trials that diverged since the
            rung before or that reached the last epoch.
        provenance: what this process is: versions, data fingerprint.
        snapshot: where training stands, if one is due; of those who live and before anyone leaves.
        is_resumed: True of the first rung after a snapshot was restored: the rung at which it was
            taken, once more, without its rows.
        refused: why a snapshot could not be restored, so that this is rung 0; else empty.
    """

    epoch: int
    update: int
    rows: dict[int, list[Row]]
    val_loss: dict[int, float]
    diverged_at: dict[int, int]
    is_last: bool
    weights: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    is_resumed: bool = False
    refused: str = ""


def train(
    cohort: Cohort, task: Task | None = None, snapshot: Snapshot | None = None
) -> Generator[Rung, Collection[int] | None, None]:
    """Trains a cohort and yields a `Rung` before training and after each epoch.

    Trials whose numbers are sent back leave at that rung; it was their last, and what they have
    recorded by then is what they would have recorded by then had they stayed.

    With a `snapshot` it begins with the rung at which that was taken, and from there on every
    rung is what it would have been. One that cannot be restored is refused, and said to be.
    """
    population = build(cohort, task)
    diagnostics = diagnostics_of(cohort, population.network, population.task)
    num_epochs = cohort.trials[0].trainer.epochs
    by_name = {c.name: d for c, d in zip(cohort.measure, diagnostics, strict=True)}
    spending, first, refused = Spending(num_epochs), 0, ""
    if snapshot is not None:
        try:
            if not 0 < snapshot.epoch < num_epochs:
                raise SnapshotError(f"must be of an epoch before the last, got {snapshot.epoch}")
            spending = Spending(num_epochs, snapshot.spent, by_name)
            restore(population, snapshot)
            first = snapshot.epoch
        except (SnapshotError, TypeError, KeyError) as error:
            snapshot, refused = None, str(error)
            spending = Spending(num_epochs)
    diverged_at: dict[int, int] = {} if snapshot is None else dict(snapshot.diverged_at)
    timer = _Timer(cohort.checkpoint)
    for epoch in range(first, num_epochs + 1):
        if snapshot is not None and epoch == first:
            rung = _resumed(population, snapshot, cohort)
        else:
            rung = _rung(population, diagnostics, spending, epoch, cohort, diverged_at)
            if not rung.is_last and timer.is_due(epoch):
                found = take(population, epoch, rung.val_loss, rung.diverged_at, spending.spent)
                rung = dataclasses.replace(rung, snapshot=found)
            if epoch == 0:
                rung = dataclasses.replace(rung, refused=refused)
        diverged_at = dict(rung.diverged_at)
        leaving = yield rung
        if rung.is_last:
            return
        gone = {*diverged_at, *(leaving or ())}
        staying = [n for n, number in enumerate(population.numbers) if number not in gone]
        if not staying:
            return
        if len(staying) < len(population.numbers):
            population.keep(staying)


def _rung(
    population: Population,
    diagnostics: Sequence[Diagnostic],
    spending: Spending,
    epoch: int,
    cohort: Cohort,
    diverged_before: dict[int, int],
) -> Rung:
    """Trains an epoch, but for epoch 0, and evaluates and measures what is due after it."""
    rows = RungRows(population, epoch)
    if epoch > 0:
        started = time.perf_counter()
        train_loss_N = train_epoch(population, epoch)
        seconds = time.perf_counter() - started
        spending.training += seconds
        rows.add("train_loss", train_loss_N, unit="nats", seconds=seconds)
    val_loss_N = rows.evaluate("validation", "val")
    num_epochs = cohort.trials[0].trainer.epochs
    is_last = epoch == num_epochs or not bool(population.alive_N.any())
    if is_last:
        # Members dead by now have no test rows: alone, this rung might have been their
        # last, in company it is not, and company must not show in a trial's records.
        rows.forget_the_dead()
        rows.evaluate("test", "test")
    for choice, diagnostic in zip(cohort.measure, diagnostics, strict=True):
        at = diagnostic.config.at
        if at is None or epoch in at:
            spending.measure(choice.name, diagnostic, population, epoch, rows)
    newly_diverged = population.diverged_at.keys() - diverged_before.keys()
    ending = population.numbers if is_last else newly_diverged
    val_loss = dict(zip(population.numbers, val_loss_N.tolist(), strict=True))
    return Rung(
        epoch=epoch,
        update=population.update,
        rows={number: rows.rows.get(number, []) for number in cohort.numbers},
        val_loss={number: val_loss.get(number, math.nan) for number in cohort.numbers},
        diverged_at=diverged_before | population.diverged_at,
        is_last=is_last,
        weights=_weights(population, ending) if cohort.keep_weights else {},
        provenance=_provenance(population),
    )


def _resumed(population: Population, snapshot: Snapshot, cohort: Cohort) -> Rung:
    """The rung at which a snapshot was taken, once more."""
    losses = snapshot.val_losses
    return Rung(
        epoch=snapshot.epoch,
        update=snapshot.update,
        rows={number: [] for number in cohort.numbers},
        val_loss={number: losses.get(number, math.nan) for number in cohort.numbers},
        diverged_at=dict(snapshot.diverged_at),
        is_last=False,
        provenance=_provenance(population),
        is_resumed=True,
    )


class _Timer:
    """Says after which epochs a snapshot is due."""

    def __init__(self, every: int | Literal["auto"] | None) -> None:
        self._every = every
        self._last = time.perf_counter() if every == "auto" else 0.0

    def is_due(self, epoch: int) -> bool:
        if self._every != "auto":
            return self._every is not None and epoch > 0 and epoch % self._every == 0
        now = time.perf_counter()
        if epoch == 0 or now - self._last < SECONDS_BETWEEN_SNAPSHOTS:
            return False
        self._last = now
        return True


def _weights(population: Population, numbers: Collection[int]) -> dict[int, dict[str, np.ndarray]]:
    """Of some trials; copies, for those that stay train on."""
    state = population.network.state_dict()
    return {
        number: {name: tensor[n].to("cpu", copy=True).numpy() for name, tensor in state.items()}
        for n, number in enumerate(population.numbers)
        if number in numbers
    }


def _provenance(population: Population) -> dict[str, Any]:
    return {
        "worker": f"{platform.node()}/{os.getpid()}",
        "torch": torch.__version__,
        "device": str(population.cohort.device),
        "dtype": population.cohort.trials[0].trainer.dtype,
        "tf32": population.cohort.trials[0].trainer.tf32,
        "threads": torch.get_num_threads(),
        "data_sha256": population.task.fingerprint,
        "chance_loss": population.task.chance_loss,
    }
