"""Whether a sweep can run at all: found out before anything of it is made known anywhere."""

import dataclasses

import torch

from pipeline.config import SweepConfig
from pipeline.plan import Cohort, plan
from pipeline.populations import build, diagnostics_of
from tasks.base import UnsuitableError


def preflight(config: SweepConfig, executor: str | None = None) -> None:
    """Builds a network at the first and the last end of each range, and checks measurements.

    `executor` is the one that will be used, where it is not that of the config. Raises
    UnsuitableError, MissingDataError: before anything is created anywhere.
    """
    limits = config.limits_of(1)
    executor = executor or config.execution.executor
    _check_device(config.execution.device, executor)
    if executor == "ray":
        # The workers' devices may not be this machine's.
        limits = dataclasses.replace(limits, device="cpu")
    first = {path: r.ends()[0] for path, r in config.space.items()}
    seen = set()
    for changed in ({}, *({path: r.ends()[-1]} for path, r in config.space.items())):
        spec = config.spec(0, {**first, **changed})
        if repr(spec) in seen:
            continue
        seen.add(repr(spec))
        cohort = plan([spec], limits)[0]
        population = build(cohort)
        diagnostics_of(cohort, population.network, population.task)


def typical_cohort(config: SweepConfig) -> Cohort:
    """One trial at the first end of each range, to warm workers up with."""
    first = {path: r.ends()[0] for path, r in config.space.items()}
    return plan([config.spec(0, first)], config.limits_of(1))[0]


def _check_device(device: str, executor: str) -> None:
    kind, _, index = device.partition(":")
    numbered = index.isdigit() if ":" in device else True
    if kind not in ("cpu", "cuda") or not numbered or (kind == "cpu" and index):
        raise UnsuitableError(f"execution.device must be cpu, cuda or cuda:N, got {device!r}")
    if executor == "ray":
        if index:
            raise UnsuitableError(
                "execution.device must be cpu or cuda with the executor ray, which gives every "
                f"worker its own GPU, got {device!r}"
            )
    elif kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UnsuitableError(
            f"execution.device is {device!r}, but torch sees "
            f"{torch.cuda.device_count()} CUDA devices here"
        )
