"""Trials into cohorts of equal shape: which networks are trained together as one population.

Pure functions of the specs: the same trials in the same order make the same cohorts on every
machine and under every executor.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.choice import Choice as Choice
from pipeline.optim import Trainer
from tasks.base import Config, per_member_fields


@dataclass(frozen=True)
class TrialSpec:
    """Everything that decides a trial's result, but for the sweep's seed."""

    number: int
    seed: int
    task: Choice
    network: Choice
    trainer: Trainer


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all cohorts of a sweep have in common.

    Attributes:
        sweep_seed: decides data order and probe inputs, which all trials of a sweep share.
        measure: the measurements, in order.
        device: where to train.
        threads: torch threads of the process that trains it.
        keep_weights: whether a member's weights come along at its last rung.
        pauses: epochs at whose rung training waits to be told who leaves.
        checkpoint: after every how many epochs a snapshot comes along; "auto": once a minute.
    """

    sweep_seed: int
    measure: tuple[Choice, ...] = ()
    device: str = "cpu"
    threads: int = 1
    keep_weights: bool = False
    pauses: frozenset[int] = frozenset()
    checkpoint: int | Literal["auto"] | None = None


@dataclass(frozen=True, kw_only=True)
class Cohort(Shared):
    """Trials trained together: equal but in fields marked PerMember. Members are in order."""

    trials: tuple[TrialSpec, ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the trials, in member order."""
        return tuple(t.number for t in self.trials)


@dataclass(frozen=True, kw_only=True)
class Limits(Shared):
    """What the planner needs to know of a sweep: `size` is the most trials of a cohort."""

    size: int


def shape_key(spec: TrialSpec) -> str:
    """Equal for trials that may share a cohort: every setting not marked PerMember."""
    return json.dumps(
        {
            "task": [spec.task.name, dataclasses.asdict(spec.task.config)],
            "network": [spec.network.name, _shaping(spec.network.config)],
            "trainer": _shaping(spec.trainer),
            "regularise": [[one.name, _shaping(one.config)] for one in spec.trainer.regularise],
        },
        sort_keys=True,
    )


def plan(specs: Iterable[TrialSpec], limits: Limits) -> list[Cohort]:
    """Cohorts of at most `limits.size` trials, in the order in which their trials came.

    Trials of one shape are cut into cohorts whose sizes differ by at most one, so that no
    worker is left with a remainder of one while another holds a full cohort.
    """
    groups: dict[str, list[TrialSpec]] = {}
    for spec in specs:
        groups.setdefault(shape_key(spec), []).append(spec)
    shared = {f.name: getattr(limits, f.name) for f in dataclasses.fields(Shared)}
    cohorts = [
        Cohort(trials=tuple(part), **shared)
        for group in groups.values()
        for part in _even_parts(group, limits.size)
    ]
    return sorted(cohorts, key=lambda c: c.numbers[0])


def _even_parts(group: Sequence[TrialSpec], size: int) -> list[Sequence[TrialSpec]]:
    count = -(-len(group) // size)
    ends = [round(i * len(group) / count) for i in range(count + 1)]
    return [group[a:b] for a, b in itertools.pairwise(ends)]


def _shaping(config: Config) -> dict[str, Any]:
    # Plug-ins within hold settings of their members; they are taken one by one.
    left_out = per_member_fields(type(config)) | {"regularise"}
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in left_out}
