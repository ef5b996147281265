"""`lyapsweep plan`: what a sweep would do, in words. Asks the sampler without a database."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pipeline.asking import rehearsed
from pipeline.config import SweepConfig, cores
from pipeline.estimate import Forecast, Known, Load, forecast, load_of, memory_of
from pipeline.plan import Cohort, plan, shape_key
from pipeline.populations import build, load_task
from pipeline.preflight import preflight
from pipeline.progress import duration
from pipeline.rehearsal import rehearse
from pipeline.sizing import settled
from tasks.base import Task

# Cohorts practised, and seconds for all of them.
_MOST_PRACTISED, _SECONDS = 6, 5.0


def batches_of(config: SweepConfig) -> list[list[Cohort]]:
    """The cohorts the driver would make, batch by batch.

    For adaptive samplers, which learn meanwhile, the values are those of trials asked without
    results; shapes may then differ from the real ones.
    """
    batches = rehearsed(config, config.batch_size)
    return [plan(specs, config.limits) for specs in batches]


class NoDeviceError(RuntimeError):
    """The GPU that trials are to train on is a Ray worker's, and this machine has none."""


@dataclass(frozen=True)
class Costs:
    """What a sweep takes on this machine, by a rehearsal.

    Attributes:
        parameters: fewest and most of a network.
        times: by the clock, and of all workers together.
        training: of all workers together, in seconds: updates and evaluation.
        memory: of all processes, in bytes; libraries that they share count once.
        driver, worker, libraries: of one process, without the libraries, and these.
        device: of one worker on its GPU.
        num_workers: processes beside the driver; 0 where it trains itself.
        is_bound: that trials may leave early, so that all may take less.
        on_ray: that Ray's own start comes to it.
    """

    parameters: tuple[int, int]
    times: Forecast
    training: float
    memory: int
    driver: int
    worker: int
    libraries: int
    device: int
    num_workers: int
    is_bound: bool
    on_ray: bool

    def lines(self) -> Iterator[str]:
        """For a person."""
        times = self.times
        yield f"weights   {self.weights} a network"
        yield (
            f"cost      about {duration(times.working)} of worker time here, measuring "
            f"{(times.working - self.training) / max(1e-9, self.training):.1%} of training time"
        )
        word = "at most about" if self.is_bound else "about"
        parts = (
            ("start", times.start),
            ("training", times.training),
            ("measuring", times.measuring),
            ("recording", times.recording),
        )
        listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts)
        more = "; Ray's own start not included" if self.on_ray else ""
        yield f"time      {word} {duration(times.total)} here ({listed}{more})"
        memory = f"memory    about {size(self.memory)}: driver {size(self.driver)}"
        if self.num_workers:
            workers = f"{self.num_workers} worker{'s' if self.num_workers > 1 else ''}"
            each = " each" if self.num_workers > 1 else ""
            yield (
                f"{memory}, {workers} of {size(self.worker)}{each}, libraries they share "
                f"{size(self.libraries)}"
            )
        else:
            yield f"{memory}, libraries {size(self.libraries)}"
        if self.device:
            yield f"GPU       about {size(self.device)} a worker"

    @property
    def weights(self) -> str:
        """`1,234`, or `1,234 to 5,678` where networks differ."""
        return " to ".join(f"{p:,}" for p in sorted(set(self.parameters)))


class SweepPlan:
    """What a sweep would do; raises what `pipeline.preflight.preflight` raises.

    Attributes:
        config: with the cohort size that a sweep would choose.
        batches: the cohorts, as they would be asked for.
    """

    def __init__(self, config: SweepConfig) -> None:
        preflight(config)
        self._asked, self.config = config, settled(config)
        self.batches = batches_of(self.config)

    @property
    def cohorts(self) -> list[Cohort]:
        """Of all batches."""
        return [cohort for batch in self.batches for cohort in batch]

    def epochs(self) -> str:
        """`10`, or `10 to 20` where trials differ."""
        found = sorted({cohort.trials[0].trainer.epochs for cohort in self.cohorts})
        return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"

    def settings(self) -> Iterator[str]:
        """Lines for a person."""
        config, tree = self.config, self.config.tree
        steered = "steered by results" if config.sampler.is_adaptive else "not steered by results"
        yield f"task      {tree['task']['name']}"
        yield f"network   {tree['network']['name']}"
        yield f"trials    {config.trials}, sampler {config.sampler.name} ({steered})"
        varied = "" if config.space else ": nothing varies"
        yield f"space     {len(config.space)} dimensions{varied}"
        for path, r in config.space.items():
            yield f"          {path}: {r}"
        sizes = Counter(len(c.trials) for c in self.cohorts)
        listed = ", ".join(f"{n} of {size}" for size, n in sorted(sizes.items(), reverse=True))
        most = config.execution.cohort_size
        chosen = "" if self._asked.is_settled else f", at most {most} by measurement"
        yield f"cohorts   {len(self.cohorts)} ({listed} trials{chosen})"
        yield f"epochs    {self.epochs()} each"
        if config.judge is not None:
            rungs = ", ".join(map(str, sorted(config.judge.rungs))) or "none"
            yield f"pruner    {config.pruner.name}, decides after epochs {rungs}"
        for choice in config.measure:
            at = getattr(choice.config, "at", None)
            when = (
                "after every epoch, and before"
                if at is None
                else f"at epochs {', '.join(map(str, at))}"
            )
            yield f"measure   {choice.name} {when}"
        slots, threads = config.execution.num_workers, config.execution.num_threads
        yield f"executor  {config.execution.executor}, {slots} at a time, {threads} threads each"
        if slots * threads > cores():
            yield (
                f"warning   {slots} workers of {threads} threads hinder one another on {cores()} "
                "cores; leave execution.threads out"
            )

    def costs(self) -> Costs:
        """By a rehearsal of some seconds. Raises NoDeviceError, RehearsalError."""
        config = self.config
        execution, is_adaptive = config.execution, config.sampler.is_adaptive
        kind = torch.device(execution.device).type
        if kind == "cuda" and not torch.cuda.is_available():
            raise NoDeviceError(f"trials train on {execution.device}, and this machine has none")
        slots, cohorts = execution.num_workers, self.cohorts
        at_once = min(slots, max(map(len, self.batches)) if is_adaptive else len(cohorts))
        chosen = to_practise(cohorts)
        found = rehearse(self._asked, config, chosen, num_workers=at_once, seconds=_SECONDS)
        known = [
            Known(shape_key(cohort.trials[0]), pace.num_parameters, load)
            for cohort, pace in zip(chosen, found.paces, strict=True)
            for load in [Load(pace.members, pace.training, pace.measuring)]
        ]
        sizes = _parameters(cohorts, known)
        loads = [
            [
                load_of(shape_key(c.trials[0]), sizes[shape_key(c.trials[0])], len(c.trials), known)
                for c in batch
            ]
            for batch in self.batches
        ]
        is_inline = execution.executor == "inline"
        libraries = max(found.driver.libraries, found.busy.libraries)
        driver = found.driver.own
        workers = [found.busy.own] * at_once + [found.idle.own] * (slots - at_once)
        if is_inline:
            driver += found.busy.own - found.idle.own
            workers = []
        return Costs(
            parameters=(min(sizes.values()), max(sizes.values())),
            times=forecast(
                loads, found.driving, slots=slots, waits=is_adaptive, is_inline=is_inline
            ),
            training=sum(load.training for batch in loads for load in batch),
            memory=memory_of(driver, workers, libraries),
            driver=driver,
            worker=found.busy.own,
            libraries=libraries,
            device=found.busy.device,
            num_workers=len(workers),
            is_bound=config.judge is not None,
            on_ray=execution.executor == "ray",
        )


def describe(config: SweepConfig, *, calibrate: bool = True) -> Iterator[str]:
    """Lines for a person. Raises what `preflight` raises, and RehearsalError."""
    planned = SweepPlan(config)
    yield from planned.settings()
    if not calibrate:
        return
    try:
        yield from planned.costs().lines()
    except NoDeviceError as error:
        yield f"time      unknown: {error}"


def to_practise(cohorts: Sequence[Cohort]) -> list[Cohort]:
    """The cohorts from whose paces those of all others are told.

    Where shapes are few, each in its smallest and its largest size; else each in its largest; else
    some of them, from the smallest networks to the largest.
    """
    shapes: dict[str, dict[int, Cohort]] = {}
    for cohort in cohorts:
        shapes.setdefault(shape_key(cohort.trials[0]), {}).setdefault(len(cohort.trials), cohort)
    if 2 * len(shapes) <= _MOST_PRACTISED:
        return [sizes[n] for sizes in shapes.values() for n in sorted({min(sizes), max(sizes)})]
    largest = [sizes[max(sizes)] for sizes in shapes.values()]
    if len(largest) <= _MOST_PRACTISED:
        return largest
    task = load_task(largest[0])
    largest.sort(key=lambda cohort: len(cohort.trials) * _num_parameters(cohort, task))
    last = len(largest) - 1
    steps = _MOST_PRACTISED - 1
    return [largest[round(i * last / steps)] for i in range(_MOST_PRACTISED)]


def _parameters(cohorts: Sequence[Cohort], known: Sequence[Known]) -> dict[str, int]:
    """Of a network of each shape."""
    sizes = {k.shape: k.num_parameters for k in known}
    task: Task | None = None
    for cohort in cohorts:
        key = shape_key(cohort.trials[0])
        if key not in sizes:
            task = task or load_task(cohort)
            sizes[key] = _num_parameters(cohort, task)
    return sizes


def _num_parameters(cohort: Cohort, task: Task) -> int:
    alone = dataclasses.replace(cohort, trials=cohort.trials[:1], device="cpu")
    same = task if torch.device(cohort.device).type == "cpu" else None
    return sum(p[0].numel() for p in build(alone, same).network.parameters())


def size(num_bytes: int) -> str:
    """`350 MB`, `1.4 GB`."""
    if num_bytes < 1e9:
        return f"{num_bytes / 1e6:.0f} MB"
    return f"{num_bytes / 1e9:.1f} GB"
