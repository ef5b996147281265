"""The conf tree: checked to the ends of every range, before anything starts.

A tree has the sections

    seed, trials                 of the sweep
    sampler: {name, batch}       how the ranges are sampled
    pruner: {name, …}            who leaves before the last epoch (`pipeline.pruning`)
    task: {name, …}              what is learned
    network: {name, …}           by what
    trainer: {…}                 how; its `regularise: {name: {…}, …}` adds penalties to the loss
    measure: {name: {…}, …}      what is measured meanwhile
    execution: {…}               where; changes no result (its cohort_size sets a default batch)

and in task, network and trainer a range may stand for a value (`pipeline.space`).

`execution.cohort_size: auto` leaves a config unsettled: `pipeline.sizing.settled` measures, and
fixes it with what follows from it before the sweep is created, so that the stored tree plans the
same cohorts for ever after.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pipeline import catalog, pruning, space
from pipeline.faults import Faults, unknown
from pipeline.optim import Trainer
from pipeline.plan import Choice, Limits, TrialSpec
from pipeline.space import Range, RangeError
from tasks.base import Bounds, Config, seed_for

_RANGED = ("task", "network", "trainer")
_REGULARISE = "regularise"
_MAPPINGS = ("sampler", "pruner", "trainer", "measure", "execution")
SECTIONS = ("seed", "trials", "sampler", "pruner", *_RANGED, "measure", "execution")
# Trials that results do not steer are asked for so many cohorts at a time.
_COHORTS_A_BATCH = 8
# Of settings that are checked together before anything starts; seconds.
_MOST_PAIRS = 30_000


@dataclass(frozen=True, kw_only=True)
class Sampler(Config):
    """How values are drawn from the ranges.

    batch: trials asked for at a time. Adaptive samplers learn from a batch before they are asked
        for the next, so that a sweep repeats exactly whatever the number of workers; None takes
        a cohort for each worker, but no more than an eighth of the trials (or ten), lest the
        sampler learn too seldom. For the others None takes eight cohorts.
    startup: trials that tpe and gp draw at random before they learn.
    """

    name: Literal["qmc", "random", "grid", "tpe", "gp", "cmaes"] = "qmc"
    batch: Annotated[int, Bounds(ge=1, le=100_000)] | None = None
    startup: Annotated[int, Bounds(ge=1, le=100_000)] = 10

    @property
    def is_adaptive(self) -> bool:
        """True where results steer the design."""
        return self.name in ("tpe", "gp", "cmaes")


@dataclass(frozen=True, kw_only=True)
class Execution(Config):
    """Where and with what a sweep runs.

    executor: process (workers on this machine), ray, inline (no worker); auto takes ray where
        the address of a cluster is given, else process.
    workers: how many; None takes one for each `threads` cores, or for each GPU.
    threads: torch threads of a worker; None shares the cores out among `workers` where these
        are given, else takes 1.
    cohort_size: most trials trained as one population; auto measures what is fastest here and
        fits into memory, when the sweep is created.
    device: cpu, cuda, cuda:0, …
    gpus: GPUs that each worker of the executor ray reserves, perhaps a fraction of one; null
        takes one where the device is cuda.
    attempts: how often a trial is tried when its worker is lost.
    max_failed_share: share of the trials that may raise before the sweep stops.
    keep_weights: store every trial's final weights as safetensors.
    patience: seconds for which training goes on while Optuna's database does not answer, and for
        which the end of a sweep waits for it and for the store.
    checkpoint: after every how many epochs to write down where a cohort stands, so that a crash
        costs no more; auto does so once a minute, null never. Only the driver's disk is used.
    metrics_port: port of 127.0.0.1 on which Prometheus may ask for the sweep's numbers while it
        runs (`/metrics`); null listens nowhere.
    """

    executor: Literal["auto", "inline", "process", "ray"] = "auto"
    workers: Annotated[int, Bounds(ge=1, le=10_000)] | None = None
    threads: Annotated[int, Bounds(ge=1, le=1024)] | None = None
    cohort_size: Annotated[int, Bounds(ge=1, le=4096)] | Literal["auto"] = "auto"
    device: str = "cpu"
    gpus: Annotated[float, Bounds(gt=0, le=1024)] | None = None
    attempts: Annotated[int, Bounds(ge=1, le=100)] = 3
    max_failed_share: Annotated[float, Bounds(ge=0, le=1)] = 0.2
    keep_weights: bool = False
    patience: Annotated[float, Bounds(ge=0)] = 600.0
    checkpoint: Annotated[int, Bounds(ge=1)] | Literal["auto"] | None = "auto"
    metrics_port: Annotated[int, Bounds(ge=1, le=65535)] | None = None

    @property
    def num_threads(self) -> int:
        """Torch threads of a worker."""
        if self.threads is not None:
            return self.threads
        return max(1, cores() // self.workers) if self.workers else 1

    @property
    def num_workers(self) -> int:
        """How many cohorts train at a time on this machine."""
        if self.executor == "inline":
            return 1
        return self.workers or max(1, cores() // self.num_threads)


SETTINGS: dict[str, type[Config]] = {
    "sampler": Sampler,
    "trainer": Trainer,
    "execution": Execution,
}
"""The sections whose settings are the same whatever is named in them."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class SweepConfig:
    """A checked conf tree.

    Attributes:
        tree: as resolved, ranges included; JSON values only.
        space: dotted path → range, in alphabetical order: the order of keys in a file must
            not change the design, or a stored tree read back would be another sweep.
        seed, trials, sampler, measure, execution: the sections of that name; measurements in
            alphabetical order too.
    """

    tree: dict[str, Any]
    space: dict[str, Range]
    seed: int
    trials: int
    sampler: Sampler
    measure: tuple[Choice, ...]
    epochs: int
    pruner: Choice
    execution: Execution = field(default_factory=Execution)

    @cached_property
    def hash(self) -> str:
        """`hash_of` the tree."""
        return hash_of(self.tree)

    @property
    def is_settled(self) -> bool:
        """False while the cohort size is still to be measured."""
        return self.execution.cohort_size != "auto"

    @property
    def batch_size(self) -> int:
        """How many trials the sampler is asked for at a time."""
        assert self.sampler.batch is not None, "settled before it is planned"
        return self.sampler.batch

    @cached_property
    def judge(self) -> pruning.Pruner | None:
        """Who decides at rungs, or None."""
        return pruning.make_pruner(self.pruner, epochs=self.epochs, seed=self.seed)

    @cached_property
    def limits(self) -> Limits:
        """What the planner needs to know of this sweep."""
        assert self.execution.cohort_size != "auto", "settled before it is planned"
        return self.limits_of(self.execution.cohort_size)

    def limits_of(self, cohort_size: int) -> Limits:
        """What they would be with cohorts of this size."""
        pruner = self.judge
        return Limits(
            size=cohort_size,
            sweep_seed=self.seed,
            measure=self.measure,
            device=self.execution.device,
            threads=self.execution.num_threads,
            keep_weights=self.execution.keep_weights,
            pauses=frozenset() if pruner is None else pruner.rungs,
            checkpoint=self.execution.checkpoint,
        )

    def with_cohort_size(self, cohort_size: int) -> "SweepConfig":
        """Settled: with this size and the defaults that follow from it."""
        execution = {**self.tree["execution"], "cohort_size": cohort_size}
        return check({**self.tree, "execution": execution})

    def spec(self, number: int, values: Mapping[str, Any]) -> TrialSpec:
        """Trial `number` with the sampled `values`. Raises ConfigError, KeyError."""
        tree = space.fill({k: self.tree[k] for k in _RANGED}, values)
        faults = Faults({}, "trial")
        spec = TrialSpec(
            number=number,
            seed=seed_for(self.seed, number),
            task=faults.choice("tasks", "task", tree["task"]),
            network=faults.choice("networks", "network", tree["network"]),
            trainer=_trainer(faults, tree["trainer"]),
        )
        faults.raise_any()
        return spec

    def params(self, spec: TrialSpec) -> dict[str, Any]:
        """Every setting of a trial by dotted name, defaults included."""
        found: dict[str, Any] = {"seed": self.seed, "sampler.name": self.sampler.name}
        for section, choice in (("task", spec.task), ("network", spec.network)):
            found[f"{section}.name"] = choice.name
            for key, value in dataclasses.asdict(choice.config).items():
                found[f"{section}.{key}"] = value
        settings = dataclasses.asdict(spec.trainer)
        for one in settings.pop(_REGULARISE):
            path = f"{_REGULARISE}.{one['name']}"
            settings.update({f"{path}.{key}": value for key, value in one["config"].items()})
        found.update({f"trainer.{key}": value for key, value in settings.items()})
        return found


def hash_of(tree: Mapping[str, Any]) -> str:
    """sha256 of the canonical tree without `execution`, which changes no result."""
    content = {k: v for k, v in tree.items() if k != "execution"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check(
    tree: Mapping[str, Any], *, source: str = "conf", origin: Mapping[str, str] | None = None
) -> SweepConfig:
    """Checks a tree to the ends of every range. Raises ConfigError.

    `origin` says for dotted paths that did not come from `source` where they did come from.
    """
    faults = Faults(dict(origin or {}), source)
    for key in tree:
        if key not in SECTIONS:
            faults.add(str(key), unknown(str(key), SECTIONS))
    ranges = faults.ranges({k: tree[k] for k in tree if k in _RANGED})
    for path in ranges:
        if path.startswith(f"trainer.{_REGULARISE}") and path.count(".") < 3:
            faults.add(path, "must be a mapping; ranges may stand for the settings in it")
    for key in ("seed", "trials", "sampler", "pruner", "measure", "execution"):
        for path, node in space.walk(tree.get(key), key):
            if isinstance(node, Mapping) and node:
                faults.add(path, "a range may stand in task, network and trainer only")
    for key in ("task", "network"):
        if key not in tree:
            faults.add(key, f"missing; name one of {', '.join(catalog.entries(key + 's'))}")
    faults.raise_any()

    tree = {k: {} if v is None and k in _MAPPINGS else v for k, v in tree.items()}
    sampler = faults.section(Sampler, "sampler", tree.get("sampler", {}))
    execution = faults.section(Execution, "execution", tree.get("execution", {}))
    seed = faults.whole(tree, "seed", default=0, low=0, high=2**63 - 1)
    found: list[tuple[Choice, Choice, Trainer]] = []
    for values in _ends(ranges):
        filled = space.fill({k: tree[k] for k in _RANGED if k in tree}, values)
        task = faults.choice("tasks", "task", filled["task"])
        network = faults.choice("networks", "network", filled["network"])
        trainer = _trainer(faults, filled.get("trainer", {}))
        found.append((task, network, trainer))
    faults.raise_any()

    trials = _num_trials(faults, tree, sampler, ranges)
    task, network, trainer = found[0]
    measure = _measurements(faults, tree.get("measure", {}), trainer.epochs)
    pruner = _pruner(faults, tree.get("pruner", {}), trainer.epochs)
    faults.raise_any()
    size = execution.cohort_size
    if sampler.batch is None and size != "auto":
        sampler = dataclasses.replace(sampler, batch=_batch(sampler, trials, size, execution))
    if isinstance(pruner.config, pruning.PrunerConfig) and pruner.config.lag is None:
        lagging = dataclasses.replace(pruner.config, lag=execution.num_workers)
        pruner = Choice(pruner.name, lagging)
    resolved = {
        "seed": seed,
        "trials": trials,
        "sampler": dataclasses.asdict(sampler),
        "pruner": {"name": pruner.name, **_plain(dataclasses.asdict(pruner.config))},
        # With defaults, so that a later version with others resumes the sweep that was begun.
        "task": {**_plain(dataclasses.asdict(task.config)), **tree["task"]},
        "network": {**_plain(dataclasses.asdict(network.config)), **tree["network"]},
        "trainer": _resolved_trainer(trainer, tree.get("trainer", {})),
        "measure": {c.name: _plain(dataclasses.asdict(c.config)) for c in measure},
        "execution": dataclasses.asdict(execution),
    }
    return SweepConfig(
        resolved, ranges, seed, trials, sampler, measure, trainer.epochs, pruner, execution
    )


def _trainer(faults: Faults, tree: Any) -> Any:
    """A Trainer with its regularisers, in alphabetical order, or None where that failed."""
    if not isinstance(tree, Mapping):
        return faults.section(Trainer, "trainer", tree)
    trainer = faults.section(
        Trainer, "trainer", {key: value for key, value in tree.items() if key != _REGULARISE}
    )
    path, named = f"trainer.{_REGULARISE}", tree.get(_REGULARISE)
    if not isinstance(named, Mapping | None):
        faults.add(path, f"must map names of regularisers to settings, got {named!r}")
        return None
    choices = tuple(
        faults.named("regularisers", f"{path}.{name}", str(name), {} if own is None else own)
        for name, own in sorted((named or {}).items(), key=lambda one: str(one[0]))
    )
    if trainer is None or None in choices:
        return None
    return dataclasses.replace(trainer, regularise=choices)


def _resolved_trainer(trainer: Trainer, tree: Mapping[str, Any]) -> dict[str, Any]:
    """With defaults; without regularisers it is what it was before there were any."""
    found = {**_plain(dataclasses.asdict(trainer)), **tree}
    del found[_REGULARISE]
    if trainer.regularise:
        found[_REGULARISE] = {
            one.name: {
                **_plain(dataclasses.asdict(one.config)),
                **(tree[_REGULARISE][one.name] or {}),
            }
            for one in trainer.regularise
        }
    return found


def most_in_batch(sampler: Sampler, trials: int) -> int:
    """Trials beyond which an adaptive sampler would learn too seldom; all for the others."""
    return max(10, trials // 8) if sampler.is_adaptive else trials


def _batch(sampler: Sampler, trials: int, cohort_size: int, execution: Execution) -> int:
    if not sampler.is_adaptive:
        return _COHORTS_A_BATCH * cohort_size
    return min(cohort_size * execution.num_workers, most_in_batch(sampler, trials))


def _num_trials(
    faults: Faults, tree: Mapping[str, Any], sampler: Sampler, ranges: Mapping[str, Range]
) -> int:
    if sampler.name != "grid":
        return faults.whole(tree, "trials", default=None, low=1, high=10_000_000)
    size = 1
    for path, one in ranges.items():
        try:
            size *= len(one.grid())
        except RangeError as error:
            faults.add(path, str(error))
    faults.raise_any()
    trials = faults.whole(tree, "trials", default=size, low=1, high=10_000_000)
    if trials > size and trials % size:
        law = f"the grid has {size} points, so more must be a multiple: each under several seeds"
        faults.add("trials", f"{law}; got {trials}; leave `trials` out for one of each")
    return trials


def _measurements(faults: Faults, tree: Any, epochs: int) -> tuple[Choice, ...]:
    if not isinstance(tree, Mapping):
        faults.add("measure", f"must map names of measurements to settings, got {tree!r}")
        return ()
    choices = []
    # By name: a stored tree that comes back in another order is the same sweep, to its last row.
    for name, settings in sorted(tree.items(), key=lambda one: str(one[0])):
        path = f"measure.{name}"
        choice = faults.named("diagnostics", path, str(name), {} if settings is None else settings)
        at = getattr(choice.config, "at", None) if choice is not None else None
        if at is not None and max(at, default=0) > epochs:
            faults.add(f"{path}.at", f"epoch {max(at)} is after the last epoch, {epochs}")
        choices.append(choice)
    return tuple(choices)


def _pruner(faults: Faults, tree: Any, epochs: int) -> Choice:
    none = Choice(pruning.NONE, Config())
    if not isinstance(tree, Mapping):
        faults.add("pruner", f"must be a mapping with a `name`, got {tree!r}")
        return none
    name = tree.get("name", pruning.NONE)
    known = pruning.names()
    if name not in known:
        faults.add("pruner.name", f"must be one of {', '.join(known)}, got {name!r}")
        return none
    settings = {k: v for k, v in tree.items() if k != "name"}
    kind = Config if name == pruning.NONE else pruning.pruner_type(name).Config
    config = faults.section(kind, "pruner", settings)
    late = [e for e in getattr(config, "at", None) or () if e >= epochs]
    if late:
        faults.add("pruner.at", f"epoch {late[0]} is not before the last epoch, {epochs}")
    return none if config is None else Choice(name, config)


def _ends(ranges: Mapping[str, Range]) -> Iterable[dict[str, Any]]:
    """First ends everywhere, then all ends of each range and of each pair of ranges.

    Pairs, because two settings may each be valid and yet refuse each other. Where choices make too
    many pairs, some of them spread evenly; the rest is checked when it is drawn.
    """
    first = {path: r.ends()[0] for path, r in ranges.items()}
    yield first
    for path, r in ranges.items():
        for end in r.ends()[1:]:
            yield {**first, path: end}
    each = math.isqrt(_MOST_PAIRS // max(1, math.comb(len(ranges), 2)))
    for (path, r), (other, s) in itertools.combinations(ranges.items(), 2):
        for end, other_end in itertools.product(_some(r, each), _some(s, each)):
            yield {**first, path: end, other: other_end}


def _some(one: Range, most: int) -> tuple[Any, ...]:
    """Ends but the first, no more than so many, from all over the range, its last among them."""
    ends = one.ends()[1:]
    # A choice of one has no other end.
    step = max(1, -(-len(ends) // max(1, most)))
    return ends[::-1][::step]


def _plain(value: Any) -> Any:
    """Tuples as lists, so that a tree equals itself after a round trip through JSON."""
    return json.loads(json.dumps(value))
