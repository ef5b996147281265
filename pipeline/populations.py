"""A cohort's networks in training: what they are made of, an update of all, an epoch.

A member whose loss or gradient is not finite has diverged: it is frozen at its last finite weights.

Shapes: N members, B examples, T steps.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline import catalog
from pipeline.capture import CudaGraphs, Recorder, Steps
from pipeline.diagnostics.base import Diagnostic
from pipeline.optim import Optimiser, Trainer
from pipeline.plan import Cohort
from pipeline.regularisers.base import Regulariser
from tasks.base import Batch, Task, UnsuitableError, generator_for, seed_for
from tasks.networks.base import Network
from tasks.networks.dropout import DropoutStreams

_UPDATES_BETWEEN_LOOKS = 32


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
    with rounding(population.cohort.trials[0].trainer, population.cohort.device):
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
def rounding(trainer: Trainer, device: str) -> Iterator[None]:
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
