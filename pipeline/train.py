"""THE training loop: a cohort of N >= 1 networks, trained as one, yielding at each rung.

A rung is the end of an epoch (rung 0 is before training): losses and scores of every member,
and whatever measurements are due. The caller may stop asking at any rung, or say who leaves.

A member whose loss or gradient is not finite has diverged: it is frozen at its last finite
weights, its losses are recorded once as NaN with the flag `diverged`, and it leaves at the next
rung. Whoever leaves is cut out of the population; the others go on as if it had stayed.

Shapes: N members, B examples, T steps, M predictions.
"""

import dataclasses
import math
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
from pipeline.diagnostics.base import Diagnostic, Moment, Reading
from pipeline.optim import Optimiser, Trainer
from pipeline.plan import Cohort
from pipeline.rows import Row, now_ms
from tasks.base import Batch, Split, Task, UnsuitableError, generator_for, seed_for
from tasks.networks.base import Network
from tasks.networks.dropout import DropoutStreams

_UPDATES_BETWEEN_LOOKS = 32


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
    """

    epoch: int
    update: int
    rows: dict[int, list[Row]]
    val_loss: dict[int, float]
    diverged_at: dict[int, int]
    is_last: bool
    weights: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass
class Population:
    """A cohort's networks with what training them needs.

    alive_N, begun_N: who still lives, and how many updates each has begun alive. They stay where
        they are on the device; `note_divergence` brings what they say to the CPU.
    steps: the updates of `train_epoch`, on a GPU recorded as a whole.
    """

    cohort: Cohort
    task: Task
    network: Network
    optimiser: Optimiser
    dropout: DropoutStreams
    alive_N: Tensor
    begun_N: Tensor
    steps: "Steps[Population]"
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
        self.alive_N, self.begun_N = self.alive_N[rows], self.begun_N[rows]
        self.diverged_at = {n: u for n, u in self.diverged_at.items() if n in self.numbers}


def build(
    cohort: Cohort,
    task: Task | None = None,
    *,
    recorder: Recorder | Literal["auto"] | None = "auto",
) -> Population:
    """The population a cohort describes, at its initial weights.

    `task` may hand in the cohort's task where the caller keeps it from an earlier cohort.
    `recorder` records its updates; "auto" does so as CUDA graphs on a GPU, None nowhere.
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
    if recorder == "auto":
        is_cuda = torch.device(cohort.device).type == "cuda"
        recorder = CudaGraphs(cohort.device) if is_cuda else None
    return Population(
        cohort=cohort,
        task=task,
        network=network,
        optimiser=Optimiser(network.pack(), [t.trainer for t in cohort.trials]),
        dropout=DropoutStreams([seed_for(t.seed, "dropout") for t in cohort.trials], cohort.device),
        alive_N=torch.ones(len(cohort.trials), dtype=torch.bool, device=cohort.device),
        begun_N=torch.zeros(len(cohort.trials), dtype=torch.int64, device=cohort.device),
        steps=Steps(_advance, recorder),
    )


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


def diagnostics_of(cohort: Cohort, network: Network, task: Task) -> list[Diagnostic]:
    """The cohort's measurements, checked against network and task. Raises UnsuitableError."""
    found: list[Diagnostic] = []
    for choice in cohort.measure:
        diagnostic = catalog.load("diagnostics", choice.name)(choice.config)
        diagnostic.check(network, task)
        found.append(diagnostic)
    return found


def train(
    cohort: Cohort, task: Task | None = None
) -> Generator[Rung, Collection[int] | None, None]:
    """Trains a cohort and yields a `Rung` before training and after each epoch.

    Trials whose numbers are sent back leave at that rung; it was their last, and what they have
    recorded by then is what they would have recorded by then had they stayed.
    """
    population = build(cohort, task)
    diagnostics = diagnostics_of(cohort, population.network, population.task)
    num_epochs = cohort.trials[0].trainer.epochs
    spent = _Spending(num_epochs)
    diverged_at: dict[int, int] = {}
    for epoch in range(num_epochs + 1):
        recorder = _Recorder(population, epoch)
        if epoch > 0:
            started = time.perf_counter()
            train_loss_N = train_epoch(population, epoch)
            seconds = time.perf_counter() - started
            spent.training += seconds
            recorder.add("train_loss", train_loss_N, unit="nats", seconds=seconds)
        val_loss_N = recorder.evaluate("validation", "val")
        is_last = epoch == num_epochs or not bool(population.alive_N.any())
        if is_last:
            # Members dead by now have no test rows: alone, this rung might have been their
            # last, in company it is not, and company must not show in a trial's records.
            recorder.forget_the_dead()
            recorder.evaluate("test", "test")
        for choice, diagnostic in zip(cohort.measure, diagnostics, strict=True):
            at = diagnostic.config.at
            if at is None or epoch in at:
                spent.measure(choice.name, diagnostic, population, epoch, recorder)
        newly_diverged = population.diverged_at.keys() - diverged_at.keys()
        diverged_at |= population.diverged_at
        ending = population.numbers if is_last else newly_diverged
        val_loss = dict(zip(population.numbers, val_loss_N.tolist(), strict=True))
        leaving = yield Rung(
            epoch=epoch,
            update=population.update,
            rows={number: recorder.rows.get(number, []) for number in cohort.numbers},
            val_loss={number: val_loss.get(number, math.nan) for number in cohort.numbers},
            diverged_at=dict(diverged_at),
            is_last=is_last,
            weights=_weights(population, ending) if cohort.keep_weights else {},
            provenance=_provenance(population),
        )
        if is_last:
            return
        gone = {*diverged_at, *(leaving or ())}
        staying = [n for n, number in enumerate(population.numbers) if number not in gone]
        if not staying:
            return
        if len(staying) < len(population.numbers):
            population.keep(staying)


def train_epoch(population: Population, epoch: int) -> Tensor:
    """One pass over the training batches. Returns the mean training loss (N,) in nats.

    Updates `population` in place; members that diverge are marked there and get NaN.
    """
    population.network.train()
    population.optimiser.start_epoch(epoch)
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
    note_divergence(population)
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
    alive_N = population.alive_N & torch.isfinite(loss_N)
    population.alive_N.copy_(population.optimiser.step(gradient_NP, alive_N))
    return loss_N, state


@torch.no_grad()
def evaluate(network: Network, task: Task, split: Split) -> dict[str, Tensor]:
    """Means over a split of what the task scores, each (N,) float64, dropout off.

    The state of recurrent networks is carried through the split as in training.
    """
    network.eval()
    sums: dict[str, Tensor] = {}
    count = 0
    state: Any = None
    for batch in task.batches(split):
        outputs_N, state = network(batch.inputs, None if batch.is_start else state)
        scored = task.per_example(outputs_N, batch.targets)
        for name, values_NM in scored.items():
            part_N = values_NM.double().sum(1)
            sums[name] = sums[name] + part_N if name in sums else part_N
        count += scored["loss"].shape[1]
    return task.summarise({name: total / count for name, total in sums.items()})


class _Recorder:
    """Collects one rung's rows for every trial that is not long diverged."""

    def __init__(self, population: Population, epoch: int) -> None:
        self.population, self.epoch = population, epoch
        self.rows: dict[int, list[Row]] = {number: [] for number in population.numbers}
        self._was_alive = population.alive_N.clone()

    def forget_the_dead(self) -> None:
        """No more rows for members that have diverged by now."""
        self._was_alive = self.population.alive_N.clone()

    def add(
        self,
        quantity: str,
        values_N: Tensor,
        *,
        unit: str = "1",
        seconds: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """A scalar; NaN and a flag for members that diverged since the last rung."""
        now = now_ms()
        share = None if seconds is None else seconds / len(self.rows)
        for n, number in enumerate(self.population.numbers):
            if not self._was_alive[n]:
                continue
            is_alive = bool(self.population.alive_N[n])
            value = float(values_N[n]) if is_alive else math.nan
            self.rows[number].append(
                Row(
                    epoch=self.epoch,
                    update=self.population.diverged_at.get(number, self.population.update),
                    quantity=quantity,
                    values=np.array(value),
                    unit=unit,
                    flags=() if is_alive else ("diverged",),
                    details=details or {},
                    seconds=share,
                    time_ms=now,
                )
            )

    def evaluate(self, split: Split, prefix: str) -> Tensor:
        """Losses and scores of a split. A member whose loss is not finite has diverged."""
        population = self.population
        task = population.task
        started = time.perf_counter()
        scores = evaluate(population.network, task, split)
        seconds = time.perf_counter() - started
        loss_N = torch.where(population.alive_N, scores["loss"], math.nan)
        population.alive_N.logical_and_(torch.isfinite(loss_N))
        note_divergence(population)
        self.add(f"{prefix}_loss", loss_N, unit="nats", seconds=seconds)
        for name, values_N in scores.items():
            if name != "loss":
                self.add(f"{prefix}_{name}", values_N)
        self.add(
            f"{prefix}_score",
            scores[task.score_name],
            details={"name": task.score_name, "higher_is_better": task.higher_is_better},
        )
        return loss_N

    def add_readings(self, readings: Sequence[Reading], seconds: float) -> None:
        """A diagnostic's readings; the first carries the time they took together."""
        now = now_ms()
        for index, reading in enumerate(readings):
            values_N = reading.values_N.double().cpu().numpy()
            for n, number in enumerate(self.population.numbers):
                if not self.population.alive_N[n]:
                    continue
                self.rows[number].append(
                    Row(
                        epoch=self.epoch,
                        update=self.population.update,
                        quantity=reading.quantity,
                        values=values_N[n],
                        axes=reading.axes,
                        unit=reading.unit,
                        error=_member(reading.error_N, n),
                        marks=_member(reading.marks_N, n),
                        flags=tuple(reading.flags[n]) if reading.flags else (),
                        details=reading.details,
                        seconds=seconds / len(self.rows) if index == 0 else None,
                        time_ms=now,
                    )
                )

    def add_skipped(self, diagnostic: str, details: dict[str, Any]) -> None:
        """Says that a measurement was due and not taken."""
        for n, number in enumerate(self.population.numbers):
            if self.population.alive_N[n]:
                self.rows[number].append(
                    Row(
                        epoch=self.epoch,
                        update=self.population.update,
                        quantity=diagnostic,
                        values=np.array(math.nan),
                        flags=("skipped_over_budget",),
                        details=details,
                        time_ms=now_ms(),
                    )
                )


class _Spending:
    """Seconds spent so far, and whether another measurement fits its budget."""

    def __init__(self, num_epochs: int) -> None:
        self.training = 0.0
        self._num_epochs = num_epochs
        self._fitted: dict[str, Diagnostic] = {}
        self._fitting: dict[str, float] = {}
        self._measuring: dict[str, float] = {}
        self._dearest: dict[str, float] = {}

    def measure(
        self,
        name: str,
        diagnostic: Diagnostic,
        population: Population,
        epoch: int,
        recorder: _Recorder,
    ) -> None:
        """Takes a reading, or records that it would have cost too much."""
        budget = diagnostic.config.budget
        moment = _moment(population, epoch)
        if budget is not None and getattr(diagnostic, "can_shrink", False):
            if name not in self._fitted:
                started = time.perf_counter()
                seconds = budget * self._expected(population, epoch)
                self._fitted[name] = diagnostic.fit(
                    population.network,
                    population.task,
                    moment,
                    seconds / self._num_due(diagnostic, epoch),
                )
                self._fitting[name] = time.perf_counter() - started
            diagnostic = self._fitted[name]
        spent, dearest = self._measuring.get(name, 0.0), self._dearest.get(name, 0.0)
        if budget is not None and epoch > 0:
            expected_training = self._expected(population, epoch)
            if spent + dearest > budget * expected_training:
                share = (spent + dearest) / expected_training
                recorder.add_skipped(name, {"budget": budget, "would_be_share": share})
                return
        started = time.perf_counter()
        readings = diagnostic.measure(population.network, population.task, moment)
        seconds = time.perf_counter() - started
        self._dearest[name] = max(dearest, seconds)
        # What it took to fit the budget was spent on measuring too.
        seconds += self._fitting.pop(name, 0.0)
        self._measuring[name] = spent + seconds
        recorder.add_readings(readings, seconds)

    def _expected(self, population: Population, epoch: int) -> float:
        """Seconds that all epochs of training will take together."""
        if epoch > 0:
            return self.training * self._num_epochs / epoch
        return self._num_epochs * _rehearse(population)

    def _num_due(self, diagnostic: Diagnostic, epoch: int) -> int:
        """Readings still to be taken, this one included."""
        at = diagnostic.config.at
        epochs = range(epoch, self._num_epochs + 1)
        return len(epochs if at is None else [e for e in epochs if e in at])


def _moment(population: Population, epoch: int) -> Moment:
    cohort = population.cohort
    return Moment(
        epoch=epoch,
        update=population.update,
        probe_seed=seed_for(cohort.sweep_seed, "probe"),
        tangent_seeds=tuple(seed_for(t.seed, "tangents") for t in cohort.trials),
    )


def _rehearse(population: Population) -> float:
    """Seconds an epoch will take, from its first batch twice over; weights and draws stay."""
    network, task = population.network, population.task
    batches = task.training_batches(1)
    first = next(iter(batches))
    count = 1 + sum(1 for _ in batches)
    seconds = []
    # The first round warms the kernels up.
    for _ in range(2):
        started = time.perf_counter()
        network.gradient(lambda o: task.losses(o, first.targets).mean(1), first.inputs)
        seconds.append(time.perf_counter() - started)
    return seconds[-1] * count


def note_divergence(population: Population) -> None:
    """Brings `diverged_at` up to date."""
    for n, (is_alive, update) in enumerate(
        zip(population.alive_N.tolist(), population.died_at_N.tolist(), strict=True)
    ):
        if not is_alive:
            population.diverged_at[population.numbers[n]] = update


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
        "torch": torch.__version__,
        "device": str(population.cohort.device),
        "dtype": population.cohort.trials[0].trainer.dtype,
        "tf32": population.cohort.trials[0].trainer.tf32,
        "threads": torch.get_num_threads(),
        "data_sha256": population.task.fingerprint,
        "chance_loss": population.task.chance_loss,
    }


def _member(values_N: Tensor | None, n: int) -> np.ndarray | None:
    return None if values_N is None else values_N[n].cpu().numpy()
