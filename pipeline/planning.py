"""`lyapsweep plan`: what a sweep would do, in words. Asks the sampler without a database."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.asking import rehearsed
from pipeline.config import SweepConfig, cores
from pipeline.estimate import estimate
from pipeline.plan import Cohort, plan
from pipeline.progress import duration
from pipeline.sizing import settled
from pipeline.sweep import preflight
from tasks.base import Bounds


def cohorts_of(config: SweepConfig) -> list[Cohort]:
    """The cohorts the driver would make, batch by batch.

    For adaptive samplers, which learn meanwhile, the values are those of trials asked without
    results; shapes may then differ from the real ones.
    """
    batches = rehearsed(config, config.batch_size)
    return [cohort for specs in batches for cohort in plan(specs, config.limits)]


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
    """Lines for a person. Raises what `pipeline.sweep.preflight` raises."""
    preflight(config)
    is_measured, config = not config.is_settled, settled(config)
    cohorts = cohorts_of(config)
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
    costs = estimate(cohorts)
    total = sum(c.total for c in costs)
    # Cohorts are indivisible: no schedule is shorter than the longest, or than an even share.
    wall = max(total / slots, max(c.total for c in costs))
    measuring = sum(c.measuring for c in costs) / max(1e-9, sum(c.training for c in costs))
    parameters = sorted({c.num_parameters for c in costs})
    shown = (
        f"{parameters[0]:,}"
        if len(parameters) == 1
        else (f"{parameters[0]:,} to {parameters[-1]:,}")
    )
    yield f"weights   {shown} a network"
    yield f"cost      about {duration(wall)} here, measuring {measuring:.1%} of training time"
