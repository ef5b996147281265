"""`lyapsweep plan`: what a sweep would do, in words. Asks the sampler without a database."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from pipeline.asking import rehearsed
from pipeline.config import SweepConfig, cores
from pipeline.estimate import Forecast, Known, Load, forecast, load_of, memory_of
from pipeline.plan import Cohort, plan, shape_key
from pipeline.preflight import preflight
from pipeline.progress import duration
from pipeline.rehearsal import Rehearsal, rehearse
from pipeline.sizing import settled
from pipeline.train import build, load_task
from tasks.base import Bounds, Task

# Cohorts practised, and seconds for all of them.
_MOST_PRACTISED, _SECONDS = 6, 5.0


def batches_of(config: SweepConfig) -> list[list[Cohort]]:
    """The cohorts the driver would make, batch by batch.

    For adaptive samplers, which learn meanwhile, the values are those of trials asked without
    results; shapes may then differ from the real ones.
    """
    batches = rehearsed(config, config.batch_size)
    return [plan(specs, config.limits) for specs in batches]


def settings_of(plugin: type[Any]) -> list[tuple[str, str, str]]:
    """(setting, default, admissible values) of a plug-in."""
    hints = get_type_hints(plugin.Config, include_extras=True)
    found = []
    for field in dataclasses.fields(plugin.Config):
        has_default = field.default is not dataclasses.MISSING
        default = json.dumps(field.default) if has_default else "must be given"
        found.append((field.name, default, _admissible(hints[field.name])))
    return found


def _admissible(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        inner, *marks = get_args(hint)
        words = [_admissible(inner)]
        for mark in marks:
            if isinstance(mark, Bounds):
                bounds = {">=": mark.ge, ">": mark.gt, "<=": mark.le, "<": mark.lt}
                words += [f"{sign} {b:g}" for sign, b in bounds.items() if b is not None]
        return " ".join(words)
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        parts = [a for a in get_args(hint) if a is not type(None)]
        suffix = " | null" if len(parts) < len(get_args(hint)) else ""
        return " | ".join(_admissible(a) for a in parts) + suffix
    if get_origin(hint) is tuple:
        return f"list of {_admissible(get_args(hint)[0])}"
    names = {int: "whole number", float: "number", bool: "true | false", str: "text"}
    return names.get(hint, str(hint))


def describe(config: SweepConfig, *, calibrate: bool = True) -> Iterator[str]:
    """Lines for a person. Raises what `pipeline.preflight.preflight` raises."""
    preflight(config)
    asked, is_measured, config = config, not config.is_settled, settled(config)
    batches = batches_of(config)
    cohorts = [cohort for batch in batches for cohort in batch]
    tree, execution = config.tree, config.execution
    steered = "steered by results" if config.sampler.is_adaptive else "not steered by results"
    yield f"task      {tree['task']['name']}"
    yield f"network   {tree['network']['name']}"
    yield f"trials    {config.trials}, sampler {config.sampler.name} ({steered})"
    yield f"space     {len(config.space)} dimensions" + ("" if config.space else ": nothing varies")
    for path, r in config.space.items():
        yield f"          {path}: {r}"
    sizes = Counter(len(c.trials) for c in cohorts)
    listed = ", ".join(f"{n} of {size}" for size, n in sorted(sizes.items(), reverse=True))
    chosen = f", at most {execution.cohort_size} by measurement" if is_measured else ""
    yield f"cohorts   {len(cohorts)} ({listed} trials{chosen})"
    epochs = sorted({c.trials[0].trainer.epochs for c in cohorts})
    span = str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    yield f"epochs    {span} each"
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
    slots, threads = execution.num_workers, execution.num_threads
    yield f"executor  {execution.executor}, {slots} at a time, {threads} threads each"
    if slots * threads > cores():
        yield (
            f"warning   {slots} workers of {threads} threads hinder one another on {cores()} "
            "cores; leave execution.threads out"
        )
    if not calibrate:
        return
    yield from _calibrated(asked, config, batches)


def _calibrated(
    asked: SweepConfig, config: SweepConfig, batches: Sequence[Sequence[Cohort]]
) -> Iterator[str]:
    """What a rehearsal says of time and memory."""
    execution = config.execution
    cohorts = [cohort for batch in batches for cohort in batch]
    kind = torch.device(execution.device).type
    if kind == "cuda" and not torch.cuda.is_available():
        yield f"time      unknown: trials train on {execution.device}, and this machine has none"
        return
    slots = execution.num_workers
    at_once = min(slots, max(map(len, batches)) if config.sampler.is_adaptive else len(cohorts))
    chosen = to_practise(cohorts)
    found = rehearse(asked, config, chosen, num_workers=at_once, seconds=_SECONDS)
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
        for batch in batches
    ]
    is_inline = execution.executor == "inline"
    times = forecast(
        loads,
        found.driving,
        slots=slots,
        waits=config.sampler.is_adaptive,
        is_inline=is_inline,
    )
    training = sum(load.training for batch in loads for load in batch)
    parameters = sorted(set(sizes.values()))
    shown = " to ".join(f"{p:,}" for p in sorted({parameters[0], parameters[-1]}))
    yield f"weights   {shown} a network"
    yield (
        f"cost      about {duration(times.working)} of worker time here, measuring "
        f"{(times.working - training) / max(1e-9, training):.1%} of training time"
    )
    yield _time_line(times, is_bound=config.judge is not None, on_ray=execution.executor == "ray")
    yield _memory_line(found, slots=slots, busy=at_once, is_inline=is_inline)
    if found.busy.device:
        yield f"GPU       about {size(found.busy.device)} a worker"


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


def _time_line(times: Forecast, *, is_bound: bool, on_ray: bool) -> str:
    word = "at most about" if is_bound else "about"
    parts = [
        f"{name} {duration(seconds)}"
        for name, seconds in (
            ("start", times.start),
            ("training", times.training),
            ("measuring", times.measuring),
            ("recording", times.recording),
        )
    ]
    more = "; Ray's own start not included" if on_ray else ""
    return f"time      {word} {duration(times.total)} here ({', '.join(parts)}{more})"


def _memory_line(found: Rehearsal, *, slots: int, busy: int, is_inline: bool) -> str:
    libraries = max(found.driver.libraries, found.busy.libraries)
    if is_inline:
        driver = found.driver.own + found.busy.own - found.idle.own
        total = memory_of(driver, [], libraries)
        return f"memory    about {size(total)}: driver {size(driver)}, libraries {size(libraries)}"
    workers = [found.busy.own] * busy + [found.idle.own] * (slots - busy)
    total = memory_of(found.driver.own, workers, libraries)
    each = " each" if slots > 1 else ""
    return (
        f"memory    about {size(total)}: driver {size(found.driver.own)}, {slots} "
        f"worker{'s' if slots > 1 else ''} of {size(found.busy.own)}{each}, libraries they share "
        f"{size(libraries)}"
    )


def size(num_bytes: int) -> str:
    """`350 MB`, `1.4 GB`."""
    if num_bytes < 1e9:
        return f"{num_bytes / 1e6:.0f} MB"
    return f"{num_bytes / 1e9:.1f} GB"
