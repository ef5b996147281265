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
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline import catalog
from pipeline.capture import CudaGraphs, Recorder, Steps
from pipeline.diagnostics.base import Diagnostic
from pipeline.optim import Optimiser, Trainer
from pipeline.plan import Cohort
from pipeline.regularisers.base import Regulariser
from pipeline.rows import Row
from pipeline.rung_rows import RungRows, evaluate
from pipeline.snapshot import Snapshot, SnapshotError, restore, take
from pipeline.spending import Spending
from tasks.base import Batch, Task, UnsuitableError, generator_for, seed_for
from tasks.networks.base import Network
from tasks.networks.dropout import DropoutStreams

__all__ = [
    "Population",
    "Rung",
    "build",
    "diagnostics_of",
    "evaluate",
    "load_task",
    "regularisers_of",
    "train",
    "train_epoch",
    "update",
]

_UPDATES_BETWEEN_LOOKS = 32

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


@dataclass
class Population:
    """A cohort's networks with what training them needs.

    alive_N, begun_N: who still lives, and how many updates each has begun alive. They stay where
        they are on the device; `note_divergence` brings what they say to the CPU.
    steps: the updates of `train_epoch`, on a GPU recorded as a whole.
    regularisers: what is added to the losses' gradients.
    """

    cohort: Cohort
    task: Task
    network: Network
    optimiser: Optimiser
    dropout: DropoutStreams
    alive_N: Tensor
    begun_N: Tensor
    steps: "Steps[Population]"
    regularisers: list[Regulariser] = field(default_factory=list)
    update: int = 0
    diverged_at: dict[int, int] = field(default_factory=dict)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Trial numbers in member order."""
        return self.cohort.numbers

    @property
    def died_at_N(self) -> Tensor:
        """The update at which each died, 0 for the living."""
        return torch.where(self.alive_N, 0, self.begun_N)

    def keep(self, members: Sequence[int]) -> None:
        """Cuts the population down to these members, in this order, between two epochs.

        What becomes of them does not change.
        """
        # First, because a recording holds on to memory that is about to be left.
        self.steps.restart()
        trials = tuple(self.cohort.trials[n] for n in members)
        self.cohort = dataclasses.replace(self.cohort, trials=trials)
        rows = torch.tensor(list(members), device=self.alive_N.device)
        self.network.select(members)
        self.optimiser.select(members, self.network.pack())
        self.dropout.select(rows)
        for regulariser in self.regularisers:
            regulariser.select(members)
        self.alive_N, self.begun_N = self.alive_N[rows], self.begun_N[rows]
        self.diverged_at = {n: u for n, u in self.diverged_at.items() if n in self.numbers}

    def note_divergence(self) -> None:
        """Brings `diverged_at` up to date."""
        for number, is_alive, died_at in zip(
            self.numbers, self.alive_N.tolist(), self.died_at_N.tolist(), strict=True
        ):
            if not is_alive:
                self.diverged_at[number] = died_at


def build(
    cohort: Cohort,
    task: Task | None = None,
    *,
    recorder: Recorder | Literal["auto"] | None = "auto",
) -> Population:
    """The population a cohort describes, at its initial weights.

    `task` may hand in the cohort's task where the caller keeps it from an earlier cohort.
    `recorder` records its updates; "auto" does so as CUDA graphs on a GPU where the regularisers
    can be recorded, None nowhere.
    Raises UnsuitableError, MissingDataError, catalog.UnknownNameError.
    """
    first = cohort.trials[0]
    dtype = getattr(torch, first.trainer.dtype)
    if task is None:
        task = load_task(cohort)
    network_type: type[Network] = catalog.load("networks", first.network.name)
    if task.input_kind not in network_type.accepts:
        kinds = " or ".join(sorted(network_type.accepts))
        raise UnsuitableError(
            f"network {first.network.name} takes {kinds}, task {first.task.name} "
            f"gives {task.input_kind}"
        )
    network = network_type(
        [t.network.config for t in cohort.trials],
        input_size=task.input_size,
        output_size=task.output_size,
        generators=[generator_for(t.seed, "init") for t in cohort.trials],
        dtype=dtype,
        device=cohort.device,
    )
    regularisers = regularisers_of(cohort, network, task)
    if recorder == "auto":
        recorder = recorder_for(cohort.device, regularisers)
    return Population(
        cohort=cohort,
        task=task,
        network=network,
        optimiser=Optimiser(network.pack(), [t.trainer for t in cohort.trials]),
        dropout=DropoutStreams([seed_for(t.seed, "dropout") for t in cohort.trials], cohort.device),
        alive_N=torch.ones(len(cohort.trials), dtype=torch.bool, device=cohort.device),
        begun_N=torch.zeros(len(cohort.trials), dtype=torch.int64, device=cohort.device),
        steps=Steps(_advance, recorder),
        regularisers=regularisers,
    )


def recorder_for(device: str, regularisers: Sequence[Regulariser]) -> Recorder | None:
    """What records updates on a device: CUDA graphs on a GPU, unless a regulariser cannot be."""
    is_cuda = torch.device(device).type == "cuda"
    is_recordable = all(regulariser.is_recordable for regulariser in regularisers)
    return CudaGraphs(device) if is_cuda and is_recordable else None


def load_task(cohort: Cohort) -> Task:
    """The learning problem of a cohort, with its data on the cohort's device."""
    first = cohort.trials[0]
    task_type: type[Task] = catalog.load("tasks", first.task.name)
    return task_type(
        first.task.config,
        seed=seed_for(cohort.sweep_seed, "data"),
        dtype=getattr(torch, first.trainer.dtype),
        device=cohort.device,
    )


def regularisers_of(cohort: Cohort, network: Network, task: Task) -> list[Regulariser]:
    """What is added to the losses of anyone, checked against network and task.

    Raises UnsuitableError.
    """
    found: list[Regulariser] = []
    for place, choice in enumerate(cohort.trials[0].trainer.regularise):
        kind: type[Regulariser] = catalog.load("regularisers", choice.name)
        configs: list[Any] = [t.trainer.regularise[place].config for t in cohort.trials]
        if any(config.weight for config in configs):
            regulariser = kind(configs, [t.seed for t in cohort.trials], cohort.device)
            regulariser.check(network, task)
            found.append(regulariser)
    return found


def diagnostics_of(cohort: Cohort, network: Network, task: Task) -> list[Diagnostic]:
    """The cohort's measurements, checked against network and task. Raises UnsuitableError."""
    found: list[Diagnostic] = []
    for choice in cohort.measure:
        diagnostic = catalog.load("diagnostics", choice.name)(choice.config)
        diagnostic.check(network, task)
        found.append(diagnostic)
    return found


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


def train_epoch(population: Population, epoch: int) -> Tensor:
    """One pass over the training batches. Returns the mean training loss (N,) in nats.

    Updates `population` in place; members that diverge are marked there and get NaN.
    """
    population.network.train()
    population.optimiser.start_epoch(epoch)
    for regulariser in population.regularisers:
        was_active = regulariser.is_active
        regulariser.start_epoch(epoch)
        if regulariser.is_active != was_active:
            population.steps.restart()
    total_N = torch.zeros_like(population.alive_N, dtype=torch.float64)
    count = 0
    population.steps.forget()
    with _rounding(population.cohort.trials[0].trainer, population.cohort.device):
        for batch in population.task.training_batches(epoch):
            loss_N = population.steps(population, batch)
            population.update += 1
            total_N += torch.where(population.alive_N, loss_N.double(), math.nan)
            count += 1
            # Whether anyone lives is asked now and then: the answer is worth waiting for on a GPU
            # only if updates of dead populations cost more than the waiting.
            if count % _UPDATES_BETWEEN_LOOKS == 0 and not bool(population.alive_N.any()):
                break
    population.network.eval()
    population.note_divergence()
    return total_N / max(1, count)


@contextmanager
def _rounding(trainer: Trainer, device: str) -> Iterator[None]:
    """Products within may be rounded on a GPU if the trainer says so, and nowhere else."""
    before = torch.get_float32_matmul_precision()
    is_rounded = trainer.tf32 and torch.device(device).type == "cuda"
    torch.set_float32_matmul_precision("high" if is_rounded else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def update(population: Population, batch: Batch, state: Any) -> tuple[Tensor, Any]:
    """One update of all members, as it comes. Returns its loss (N,) and the state to carry on."""
    found = _advance(population, batch.inputs, batch.targets, state)
    population.update += 1
    return found


def _advance(
    population: Population, inputs: Tensor, targets: Tensor, state: Any
) -> tuple[Tensor, Any]:
    """What an update does on the device; see `capture.Advance`.

    Asks nothing of the device, so that a GPU never waits for Python.
    """
    task = population.task

    def losses(outputs_N: Tensor) -> Tensor:
        return task.losses(outputs_N, targets).mean(1)

    population.begun_N.add_(population.alive_N)
    loss_N, state, gradient_NP = population.network.gradient(
        losses, inputs, state, dropout=population.dropout
    )
    for regulariser in population.regularisers:
        if regulariser.is_active:
            regulariser.add(gradient_NP, population.network, inputs)
    alive_N = population.alive_N & torch.isfinite(loss_N)
    population.alive_N.copy_(population.optimiser.step(gradient_NP, alive_N))
    return loss_N, state


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
