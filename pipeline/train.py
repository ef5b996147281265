"""THE training loop: a cohort of N >= 1 networks, trained as one, yielding at each rung.

A rung is the end of an epoch (rung 0 is before training): losses and scores of every member,
and whatever measurements are due. The caller may stop asking at any rung.

A member whose loss or gradient is not finite has diverged: it is frozen at its last finite
weights, its losses are recorded once as NaN with the flag `diverged`, and the others go on.

Shapes: N members, B examples, T steps, M predictions.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline import catalog
from pipeline.diagnostics.base import Diagnostic, Moment, Reading
from pipeline.optim import Optimiser
from pipeline.plan import Cohort
from pipeline.rows import Row
from tasks.base import Split, Task, UnsuitableError, generator_for, seed_for
from tasks.networks.base import Network


@dataclass(frozen=True)
class Rung:
    """What a cohort reports at the end of an epoch.

    Attributes:
        epoch, update: how far it is.
        rows: trial number → rows obtained since the rung before.
        val_loss: trial number → validation loss, NaN for diverged trials.
        diverged_at: trial number → update at which it diverged; the living are absent.
        is_last: True if nothing follows.
        weights: trial number → name → array, at the last rung if asked for.
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
    """A cohort's networks with what training them needs."""

    cohort: Cohort
    task: Task
    network: Network
    optimiser: Optimiser
    dropout: list[torch.Generator]
    alive_N: Tensor
    update: int = 0
    diverged_at: dict[int, int] = field(default_factory=dict)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Trial numbers in member order."""
        return self.cohort.numbers


def build(cohort: Cohort, task: Task | None = None) -> Population:
    """The population a cohort describes, at its initial weights.

    `task` may hand in the cohort's task where the caller keeps it from an earlier cohort.
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
    return Population(
        cohort=cohort,
        task=task,
        network=network,
        optimiser=Optimiser(list(network.parameters()), [t.trainer for t in cohort.trials]),
        dropout=[generator_for(t.seed, "dropout") for t in cohort.trials],
        alive_N=torch.ones(len(cohort.trials), dtype=torch.bool, device=cohort.device),
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


def train(cohort: Cohort, task: Task | None = None) -> Iterator[Rung]:
    """Trains a cohort and yields a `Rung` before training and after each epoch."""
    population = build(cohort, task)
    diagnostics = diagnostics_of(cohort, population.network, population.task)
    num_epochs = cohort.trials[0].trainer.epochs
    spent = _Spending(num_epochs)
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
        yield Rung(
            epoch=epoch,
            update=population.update,
            rows=recorder.rows,
            val_loss=dict(zip(population.numbers, val_loss_N.tolist(), strict=True)),
            diverged_at=dict(population.diverged_at),
            is_last=is_last,
            weights=_weights(population) if is_last and cohort.keep_weights else {},
            provenance=_provenance(population),
        )
        if is_last:
            return


def train_epoch(population: Population, epoch: int) -> Tensor:
    """One pass over the training batches. Returns the mean training loss (N,) in nats.

    Updates `population` in place; members that diverge are marked there and get NaN.
    """
    network, task, optimiser = population.network, population.task, population.optimiser
    parameters = optimiser.parameters
    network.train()
    total_N = torch.zeros(
        len(population.numbers), dtype=torch.float64, device=population.cohort.device
    )
    count = 0
    state: Any = None
    for batch in task.training_batches(epoch):
        outputs_N, state = network(
            batch.inputs, None if batch.is_start else state, dropout=population.dropout
        )
        loss_N = task.per_example(outputs_N, batch.targets)["loss"].mean(1)
        gradients = torch.autograd.grad(loss_N.sum(), parameters)
        loss_N = loss_N.detach()
        alive_N = population.alive_N & torch.isfinite(loss_N)
        alive_N = optimiser.step(gradients, alive_N, epoch)
        population.update += 1
        _note_divergence(population, alive_N)
        total_N += torch.where(population.alive_N, loss_N.double(), math.nan)
        count += 1
        if not bool(alive_N.any()):
            break
    network.eval()
    return total_N / max(1, count)


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
        now = _now_ms()
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
        _note_divergence(population, population.alive_N & torch.isfinite(loss_N))
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
        now = _now_ms()
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
                        time_ms=_now_ms(),
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
        outputs_N, _state = network(first.inputs)
        loss = task.per_example(outputs_N, first.targets)["loss"].mean(1).sum()
        torch.autograd.grad(loss, population.optimiser.parameters)
        seconds.append(time.perf_counter() - started)
    return seconds[-1] * count


def _note_divergence(population: Population, alive_N: Tensor) -> None:
    if bool((population.alive_N & ~alive_N).any()):
        for n, number in enumerate(population.numbers):
            if population.alive_N[n] and not alive_N[n]:
                population.diverged_at[number] = population.update
    population.alive_N = alive_N


def _weights(population: Population) -> dict[int, dict[str, np.ndarray]]:
    state = population.network.state_dict()
    return {
        number: {name: tensor[n].cpu().numpy() for name, tensor in state.items()}
        for n, number in enumerate(population.numbers)
    }


def _provenance(population: Population) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "device": str(population.cohort.device),
        "dtype": population.cohort.trials[0].trainer.dtype,
        "threads": torch.get_num_threads(),
        "data_sha256": population.task.fingerprint,
        "chance_loss": population.task.chance_loss,
    }


def _member(values_N: Tensor | None, n: int) -> np.ndarray | None:
    return None if values_N is None else values_N[n].cpu().numpy()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
