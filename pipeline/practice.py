"""A cohort trained for a few seconds: its pace, from which the whole of it is foretold.

Runs in a worker's process, through the worker's own code (`train`), on a task whose batches stop
when the time is up; so warm-up, rows, evaluation, measurements and memory are those of the sweep.
The rest is counting: updates, epochs, batches, readings. What a first update costs more than those
that follow is counted once, not for every epoch.

Measurements too dear to be taken whole are tasted: on one member and on a part of their inputs,
and multiplied. What a budget limits is limited.
"""

import contextlib
import dataclasses
import pickle
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from pipeline.diagnostics.base import Diagnostic, DiagnosticConfig, Moment
from pipeline.plan import Choice, Cohort
from pipeline.populations import build, diagnostics_of, load_task
from pipeline.rows import Row
from pipeline.train import Rung, train
from tasks.base import Batch, Bounds, Split, Task

# Settings that say on how many independent inputs a measurement is taken: its cost is theirs.
_COUNTS = ("sequences", "probes", "examples")
# Shares of the time for a cohort: its first epoch, each later one, each evaluation, one reading.
_FIRST, _LATER, _EVALUATION, _READING = 0.1, 0.3, 0.15, 0.4
# A reading is whole where it takes less than that share, or these seconds.
_CHEAP = 1.0
# Times that a part is measured, unless it is dear: the first loads and compiles.
_TASTES, _DEAR = 2, 10.0
_GROWTH = 4


@dataclass(frozen=True)
class Memory:
    """Most bytes that a process held.

    Attributes:
        own: that nobody else uses.
        libraries: of files that processes share, so that they count once for all of them.
        device: on a GPU.
    """

    own: int
    libraries: int
    device: int = 0


@dataclass(frozen=True)
class Pace:
    """What a whole cohort would take of a worker, in seconds.

    Attributes:
        members: how many train in it.
        training: building, updates, evaluation, rows.
        measuring: all readings.
        num_parameters: of one member.
        before, after: rows of one member at rung 0 and at a later rung, as examples.
    """

    members: int
    training: float
    measuring: float
    num_parameters: int
    before: Sequence[Row] = ()
    after: Sequence[Row] = ()


@dataclass(frozen=True)
class Practice:
    """What a process is asked: to train the cohort so long; 0 only loads what it needs."""

    cohort: Cohort
    seconds: float


def work(descriptor: int) -> None:
    """What a practising process runs: a pace for each `Practice`, until the caller hangs up."""
    with Connection(descriptor) as channel, contextlib.suppress(EOFError):
        task: Task | None = None
        key: Any = None
        while True:
            asked: Practice = channel.recv()
            try:
                torch.set_num_threads(asked.cohort.threads)
                first = asked.cohort.trials[0]
                if task is None or key != (first.task, first.trainer.dtype):
                    task, key = load_task(asked.cohort), (first.task, first.trainer.dtype)
                if asked.seconds > 0:
                    channel.send((pace_of(asked.cohort, task, asked.seconds), memory()))
                else:
                    population = build(asked.cohort, task)
                    diagnostics_of(asked.cohort, population.network, task)
                    channel.send((None, memory()))
            except Exception:  # noqa: BLE001 - whatever a plug-in raises is a result to report
                channel.send((traceback.format_exc(), memory()))


def pace_of(cohort: Cohort, task: Task, seconds: float) -> Pace:
    """Trains the cohort for about so many seconds, and counts up to the whole of it."""
    trainer = cohort.trials[0].trainer
    epochs = trainer.epochs
    population = build(_of(cohort, 1, epochs), task)
    num_parameters = sum(p[0].numel() for p in population.network.parameters())
    tasted, choices = _taste(cohort, task, max(_CHEAP, _READING * seconds))
    shortened = dataclasses.replace(
        _of(cohort, len(cohort.trials), max(2, epochs)), measure=choices, pauses=frozenset()
    )
    log = _Log(_Cut(task, seconds), choices)
    rungs = train(shortened, log.task)
    began = time.perf_counter()
    while True:
        started = time.perf_counter()
        rung = next(rungs, None)
        if rung is None:
            break
        pickle.dumps(rung)
        log.note(rung, time.perf_counter() - started)
        is_over = time.perf_counter() - began > seconds
        if rung.is_last or (rung.epoch >= 2 and is_over):
            break
    rungs.close()
    epoch_s, first_s = log.epoch()
    training = (
        log.building
        + first_s
        + epochs * (epoch_s + log.mean(log.overheads))
        + (epochs + 1) * log.validation()
        + log.test()
    )
    measuring = 0.0
    for choice in cohort.measure:
        config = choice.config
        assert isinstance(config, DiagnosticConfig)
        num = _num_readings(config, epochs)
        if choice.name in tasted:
            whole = num * tasted[choice.name]
        else:
            whole = log.readings(choice.name, num, 0 in (config.at or (0,)))
        if config.budget is not None:
            whole = min(whole, config.budget * epochs * epoch_s)
        measuring += whole
    return Pace(len(cohort.trials), training, measuring, num_parameters, log.before, log.after)


def memory() -> Memory:
    """Of this process so far; zeros where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        found = {k: v.split() for k, v in (line.split(":", 1) for line in lines)}
        peak, files = (1024 * int(found[key][0]) for key in ("VmHWM", "RssFile"))
    except (OSError, ValueError, KeyError, IndexError):
        return Memory(0, 0)
    device = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return Memory(peak - files, files, device)


def _of(cohort: Cohort, members: int, epochs: int) -> Cohort:
    return dataclasses.replace(
        cohort,
        trials=tuple(
            dataclasses.replace(t, trainer=dataclasses.replace(t.trainer, epochs=epochs))
            for t in cohort.trials[:members]
        ),
    )


def _num_readings(config: DiagnosticConfig, epochs: int) -> int:
    return epochs + 1 if config.at is None else len([e for e in set(config.at) if e <= epochs])


def _taste(cohort: Cohort, task: Task, most: float) -> tuple[dict[str, float], tuple[Choice, ...]]:
    """Seconds a reading of the measurements that take more than `most`; and the others.

    The others are due before training and after the second epoch, but for those that cut
    themselves down to a budget: they must know what they will be asked for.
    """
    tasted: dict[str, float] = {}
    kept: list[Choice] = []
    for choice in cohort.measure:
        config = choice.config
        assert isinstance(config, DiagnosticConfig)
        whole = dataclasses.replace(cohort, measure=(choice,))
        if config.budget is not None and _diagnostic(whole, task).can_shrink:
            kept.append(choice)
            continue
        expected = _expected(whole, task, most)
        if expected is None:
            config = dataclasses.replace(config, at=(0, 2), budget=None)
            kept.append(Choice(choice.name, config))
        else:
            tasted[choice.name] = expected
    return tasted, tuple(kept)


def _expected(cohort: Cohort, task: Task, most: float) -> float | None:
    """Seconds of a reading of the cohort's measurement; None where it may well be taken whole.

    By ever larger parts, of the inputs first and then of the members, until one takes long enough
    to tell: what it takes more than the part before is what each further part will.
    """
    (choice,) = cohort.measure
    name = next((name for name in _COUNTS if hasattr(choice.config, name)), None)
    count = 1 if name is None else getattr(choice.config, name)
    members, inputs = 1, 1 if name is None else _fewest(choice.config, name)
    units = len(cohort.trials) * count
    before: tuple[int, float] | None = None
    while True:
        part = dataclasses.replace(cohort, trials=cohort.trials[:members])
        if name is not None:
            config = dataclasses.replace(choice.config, **{name: inputs})
            part = dataclasses.replace(part, measure=(Choice(choice.name, config),))
        seconds, seen = _seconds_of(part, task), members * inputs
        if seconds * units / seen <= most:
            return None
        if seen == units:
            return seconds
        if seconds > most / _GROWTH:
            each = seconds / seen
            if before is not None:
                each = min(each, max(0.0, (seconds - before[1]) / (seen - before[0])))
            return seconds + each * (units - seen)
        before = seen, seconds
        if inputs < count:
            inputs = min(count, _GROWTH * inputs)
        else:
            members = min(len(cohort.trials), _GROWTH * members)


def _fewest(config: Any, name: str) -> int:
    """The least that a setting of whole numbers may be, 1 where it has no bound of its own."""
    marks = get_args(get_type_hints(type(config), include_extras=True)[name])[1:]
    return int(next((m.ge for m in marks if isinstance(m, Bounds) and m.ge is not None), 1))


def _seconds_of(cohort: Cohort, task: Task) -> float:
    """Of a reading, the quickest of some: the first also loads and compiles what it needs."""
    population = build(cohort, task)
    (diagnostic,) = diagnostics_of(cohort, population.network, task)
    moment = Moment(0, 0, 0, tuple(range(len(population.numbers))))
    times: list[float] = []
    while len(times) < _TASTES and sum(times) < _DEAR:
        started = time.perf_counter()
        diagnostic.measure(population.network, task, moment)
        times.append(time.perf_counter() - started)
    return min(times)


def _diagnostic(cohort: Cohort, task: Task) -> Diagnostic:
    (diagnostic,) = diagnostics_of(cohort, build(_of(cohort, 1, 1), task).network, task)
    return diagnostic


class _Cut(Task):
    """A task whose passes over the data stop when their time is up. Counts what it gave."""

    def __init__(self, task: Task, seconds: float) -> None:
        self._task, self._seconds = task, seconds
        self._totals = {s: self._count(s) for s in ("validation", "test")}
        self.opening = 0.0
        self.updates = 0
        self.shares: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        most = self._seconds * (_FIRST if epoch == 1 else _LATER)
        self.updates = 0
        started = time.perf_counter()
        for batch in self._task.training_batches(epoch):
            if self.updates == 0:
                self.opening = time.perf_counter() - started
            self.updates += 1
            yield batch
            if time.perf_counter() - started > most:
                return

    def batches(self, split: Split) -> Iterator[Batch]:
        started = time.perf_counter()
        seen = 0
        for batch in self._task.batches(split):
            seen += len(batch.inputs)
            self.shares[split] = seen / self._totals[split]
            yield batch
            if time.perf_counter() - started > _EVALUATION * self._seconds:
                return

    def of_test(self) -> float:
        """The test split by the validation split, in examples."""
        return self._totals["test"] / self._totals["validation"]

    def per_example(self, outputs_N: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return self._task.per_example(outputs_N, targets)

    def losses(self, outputs_N: Tensor, targets: Tensor) -> Tensor:
        return self._task.losses(outputs_N, targets)

    def summarise(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._task.summarise(means)

    def probe_inputs(self, count: int, steps: int | None, generator: torch.Generator) -> Batch:
        return self._task.probe_inputs(count, steps, generator)

    def _count(self, split: Split) -> int:
        return sum(len(batch.inputs) for batch in self._task.batches(split))


@dataclass
class _Log:
    """What the rungs of a practice took, in seconds."""

    task: _Cut
    choices: Sequence[Choice]
    building: float = 0.0
    overheads: list[float] = field(default_factory=list)
    before: Sequence[Row] = ()
    after: Sequence[Row] = ()
    _epochs: list[tuple[float, float, int]] = field(default_factory=list)
    _validations: list[float] = field(default_factory=list)
    _tests: list[float] = field(default_factory=list)
    _readings: dict[str, list[float]] = field(default_factory=dict)

    @staticmethod
    def mean(values: Sequence[float]) -> float:
        """Zero of none."""
        return sum(values) / len(values) if values else 0.0

    def note(self, rung: Rung, seconds: float) -> None:
        """A rung and the time it took to come."""
        spent: defaultdict[str, float] = defaultdict(float)
        for rows in rung.rows.values():
            names = self._due(rung.epoch)
            for row in rows:
                kind = row.quantity
                is_answer = "skipped_over_budget" in row.flags or row.seconds is not None
                if is_answer and not kind.startswith(("train_", "val_", "test_")):
                    kind = next(names)
                if row.seconds is not None:
                    spent[kind] += row.seconds
        rest = max(0.0, seconds - sum(spent.values()))
        example = max(rung.rows.values(), key=len)
        if rung.epoch == 0:
            self.building, self.before = rest, example
        else:
            self._epochs.append((spent["train_loss"], self.task.opening, self.task.updates))
            self.overheads.append(rest)
            if rung.epoch <= 2:
                self.after = max(self.after, example, key=len)
        self._validations.append(spent["val_loss"] / self.task.shares["validation"])
        if rung.is_last:
            self._tests.append(spent["test_loss"] / self.task.shares["test"])
        for choice in self.choices:
            if choice.name in spent:
                self._readings.setdefault(choice.name, []).append(spent[choice.name])

    def epoch(self) -> tuple[float, float]:
        """A whole epoch, and what the first takes besides."""
        later = self._epochs[1:] or self._epochs
        opening = self.mean([o for _, o, _ in later])
        update = sum(s - o for s, o, _ in later) / sum(n for _, _, n in later)
        seconds, first_opening, num = self._epochs[0]
        besides = max(0.0, seconds - first_opening - num * update)
        return opening + self.task.num_updates * update, besides

    def validation(self) -> float:
        """One evaluation; the first warms kernels up."""
        return self.mean(self._validations[1:] or self._validations)

    def test(self) -> float:
        """The last evaluation, by the validations where it was not reached."""
        return self.mean(self._tests) if self._tests else self.task.of_test() * self.validation()

    def readings(self, name: str, num: int, is_at_start: bool) -> float:
        """So many of one measurement; the one before training has a cost of its own."""
        found = self._readings.get(name, [])
        if not found or num == 0:
            return 0.0
        later = self.mean(found[1:] or found)
        return num * later + (max(0.0, found[0] - later) if is_at_start else 0.0)

    def _due(self, epoch: int) -> Iterator[str]:
        for choice in self.choices:
            assert isinstance(choice.config, DiagnosticConfig)
            if choice.config.at is None or epoch in choice.config.at:
                yield choice.name
