"""The conf tree: read from YAML, checked to the ends of every range, before anything starts.

The only reader of YAML. A tree has the sections

    seed, trials                 of the sweep
    sampler: {name, batch}       how the ranges are sampled
    pruner: {name, …}            who leaves before the last epoch (`pipeline.pruning`)
    task: {name, …}              what is learned
    network: {name, …}           by what
    trainer: {…}                 how
    measure: {name: {…}, …}      what is measured meanwhile
    execution: {…}               where; changes no result (its cohort_size sets a default batch)

and a range may stand wherever a value may in task, network and trainer (`pipeline.space`).

`execution.cohort_size: auto` leaves a config unsettled: `pipeline.sizing.settled` measures, and
fixes it with what follows from it before the sweep is created, so that the stored tree plans the
same cohorts for ever after.
"""

import dataclasses
import difflib
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from pipeline import catalog, pruning, space
from pipeline.optim import Trainer
from pipeline.plan import Choice, Limits, TrialSpec
from pipeline.space import Range, RangeError
from tasks.base import Bounds, Config, seed_for

_RANGED = ("task", "network", "trainer")
_MAPPINGS = ("sampler", "pruner", "trainer", "measure", "execution")
_SECTIONS = ("seed", "trials", "sampler", "pruner", *_RANGED, "measure", "execution")
# Trials that results do not steer are asked for so many cohorts at a time.
_COHORTS_A_BATCH = 8


class ConfigError(ValueError):
    """Settings that cannot be run. One line a fault: where, the law, what came."""


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
    attempts: how often a trial is tried when its worker is lost.
    max_failed_share: share of the trials that may raise before the sweep stops.
    keep_weights: store every trial's final weights as safetensors.
    """

    executor: Literal["auto", "inline", "process", "ray"] = "auto"
    workers: Annotated[int, Bounds(ge=1, le=10_000)] | None = None
    threads: Annotated[int, Bounds(ge=1, le=1024)] | None = None
    cohort_size: Annotated[int, Bounds(ge=1, le=4096)] | Literal["auto"] = "auto"
    device: str = "cpu"
    attempts: Annotated[int, Bounds(ge=1, le=100)] = 3
    max_failed_share: Annotated[float, Bounds(ge=0, le=1)] = 0.2
    keep_weights: bool = False

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
        seed, trials, sampler, measure, execution: the sections of that name.
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
        )

    def with_cohort_size(self, cohort_size: int) -> "SweepConfig":
        """Settled: with this size and the defaults that follow from it."""
        execution = {**self.tree["execution"], "cohort_size": cohort_size}
        return check({**self.tree, "execution": execution})

    def spec(self, number: int, values: Mapping[str, Any]) -> TrialSpec:
        """Trial `number` with the sampled `values`. Raises ConfigError, KeyError."""
        tree = space.fill({k: self.tree[k] for k in _RANGED}, values)
        problems = _Problems({}, "trial")
        spec = TrialSpec(
            number=number,
            seed=seed_for(self.seed, number),
            task=problems.choice("tasks", "task", tree["task"]),
            network=problems.choice("networks", "network", tree["network"]),
            trainer=problems.section(Trainer, "trainer", tree["trainer"]),
        )
        problems.raise_any()
        return spec

    def params(self, spec: TrialSpec) -> dict[str, Any]:
        """Every setting of a trial by dotted name, defaults included."""
        found: dict[str, Any] = {"seed": self.seed, "sampler.name": self.sampler.name}
        for section, choice in (("task", spec.task), ("network", spec.network)):
            found[f"{section}.name"] = choice.name
            for key, value in dataclasses.asdict(choice.config).items():
                found[f"{section}.{key}"] = value
        for key, value in dataclasses.asdict(spec.trainer).items():
            found[f"trainer.{key}"] = value
        return found


def hash_of(tree: Mapping[str, Any]) -> str:
    """sha256 of the canonical tree without `execution`, which changes no result."""
    content = {k: v for k, v in tree.items() if k != "execution"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find(conf: str) -> Path:
    """The file a user means by `conf`: a path, or the name of a conf that ships with us.

    Raises ConfigError with the names that would work.
    """
    path = Path(conf)
    if path.is_file():
        return path
    here = Path(__file__).parent
    folders = [f for f in (here / "conf", here.parent / "conf") if f.is_dir()]
    for folder in folders:
        for candidate in (folder / conf, folder / f"{conf}.yaml"):
            if candidate.is_file():
                return candidate
    shipped = sorted({p.stem for folder in folders for p in folder.glob("*.yaml")})
    hint = f"; confs that ship with lyapsweep: {', '.join(shipped)}" if shipped else ""
    reason = "is a folder" if path.is_dir() else "no such file"
    raise ConfigError(f"{conf}: {reason}{hint}")


def load(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """Reads a file, applies `key=value` overrides and checks the result.

    Raises ConfigError: one line for each fault, naming the file or the command line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        node = OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({error.problem})") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, AssertionError) as error:
        raise ConfigError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from error
    if not OmegaConf.is_dict(node):
        raise ConfigError(f"{path}: must be a mapping with the sections {', '.join(_SECTIONS)}")
    tree = OmegaConf.to_container(node, resolve=False)
    origin = {}
    for override in overrides:
        origin[_apply(tree, override)] = f"command line {override!r}:"
    assert isinstance(tree, dict)
    return check({str(k): v for k, v in tree.items()}, source=str(path), origin=origin)


def with_execution(config: SweepConfig, overrides: Sequence[str]) -> SweepConfig:
    """The same sweep carried out otherwise. Raises ConfigError for settings that shape results."""
    tree = json.loads(json.dumps(config.tree))
    origin = {}
    for override in overrides:
        key = _apply(tree, override)
        if not key.startswith("execution."):
            raise ConfigError(
                f"command line {override!r}: a sweep that was begun keeps its settings; only "
                "execution.… can change, or start another sweep"
            )
        if key == "execution.cohort_size" and config.pruner.name != pruning.NONE:
            raise ConfigError(
                f"command line {override!r}: a sweep with a pruner keeps its cohorts, for the "
                "members of a cohort are judged by one another; start another sweep"
            )
        if tree["execution"].get("cohort_size") == "auto":
            raise ConfigError(
                f"command line {override!r}: auto was settled when the sweep was created; "
                "must be a whole number now"
            )
        origin[key] = f"command line {override!r}:"
    return check(tree, origin=origin)


def _apply(tree: Any, override: str) -> str:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(
            f"command line {override!r}: an override is key=value with a dotted key, "
            "e.g. network.units=128"
        )
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(
            f"command line {override!r}: the value is not valid YAML ({str(error).splitlines()[0]})"
        ) from error
    assert isinstance(value, dict)
    node = tree
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[last] = value["v"]
    return key


def check(
    tree: Mapping[str, Any], *, source: str = "conf", origin: Mapping[str, str] | None = None
) -> SweepConfig:
    """Checks a tree to the ends of every range. Raises ConfigError.

    `origin` says for dotted paths that did not come from `source` where they did come from.
    """
    problems = _Problems(dict(origin or {}), source)
    for key in tree:
        if key not in _SECTIONS:
            problems.add(str(key), _unknown(str(key), _SECTIONS))
    ranges = problems.ranges({k: tree[k] for k in tree if k in _RANGED})
    for key in ("seed", "trials", "sampler", "pruner", "measure", "execution"):
        for path, node in space.walk(tree.get(key), key):
            if isinstance(node, Mapping) and node:
                problems.add(path, "a range may stand in task, network and trainer only")
    for key in ("task", "network"):
        if key not in tree:
            problems.add(key, f"missing; name one of {', '.join(catalog.entries(key + 's'))}")
    problems.raise_any()

    tree = {k: {} if v is None and k in _MAPPINGS else v for k, v in tree.items()}
    sampler = problems.section(Sampler, "sampler", tree.get("sampler", {}))
    execution = problems.section(Execution, "execution", tree.get("execution", {}))
    seed = problems.whole(tree, "seed", default=0, low=0, high=2**63 - 1)
    found: list[tuple[Choice, Choice, Trainer]] = []
    for values in _ends(ranges):
        filled = space.fill({k: tree[k] for k in _RANGED if k in tree}, values)
        task = problems.choice("tasks", "task", filled["task"])
        network = problems.choice("networks", "network", filled["network"])
        trainer = problems.section(Trainer, "trainer", filled.get("trainer", {}))
        found.append((task, network, trainer))
    problems.raise_any()

    trials = _num_trials(problems, tree, sampler, ranges)
    task, network, trainer = found[0]
    measure = _measurements(problems, tree.get("measure", {}), trainer.epochs)
    pruner = _pruner(problems, tree.get("pruner", {}), trainer.epochs)
    problems.raise_any()
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
        "trainer": {**_plain(dataclasses.asdict(trainer)), **tree.get("trainer", {})},
        "measure": {c.name: _plain(dataclasses.asdict(c.config)) for c in measure},
        "execution": dataclasses.asdict(execution),
    }
    return SweepConfig(
        resolved, ranges, seed, trials, sampler, measure, trainer.epochs, pruner, execution
    )


def most_in_batch(sampler: Sampler, trials: int) -> int:
    """Trials beyond which an adaptive sampler would learn too seldom; all for the others."""
    return max(10, trials // 8) if sampler.is_adaptive else trials


def _batch(sampler: Sampler, trials: int, cohort_size: int, execution: Execution) -> int:
    if not sampler.is_adaptive:
        return _COHORTS_A_BATCH * cohort_size
    return min(cohort_size * execution.num_workers, most_in_batch(sampler, trials))


def _num_trials(
    problems: "_Problems", tree: Mapping[str, Any], sampler: Sampler, ranges: Mapping[str, Range]
) -> int:
    if sampler.name != "grid":
        return problems.whole(tree, "trials", default=None, low=1, high=10_000_000)
    size = 1
    for path, one in ranges.items():
        try:
            size *= len(one.grid())
        except RangeError as error:
            problems.add(path, str(error))
    problems.raise_any()
    trials = problems.whole(tree, "trials", default=size, low=1, high=10_000_000)
    if trials > size:
        problems.add("trials", f"the grid has {size} points, got {trials}; leave `trials` out")
    return trials


def _measurements(problems: "_Problems", tree: Any, epochs: int) -> tuple[Choice, ...]:
    if not isinstance(tree, Mapping):
        problems.add("measure", f"must map names of measurements to settings, got {tree!r}")
        return ()
    choices = []
    for name, settings in tree.items():
        path = f"measure.{name}"
        choice = problems.named(
            "diagnostics", path, str(name), {} if settings is None else settings
        )
        at = getattr(choice.config, "at", None) if choice is not None else None
        if at is not None and max(at, default=0) > epochs:
            problems.add(f"{path}.at", f"epoch {max(at)} is after the last epoch, {epochs}")
        choices.append(choice)
    return tuple(choices)


def _pruner(problems: "_Problems", tree: Any, epochs: int) -> Choice:
    none = Choice(pruning.NONE, Config())
    if not isinstance(tree, Mapping):
        problems.add("pruner", f"must be a mapping with a `name`, got {tree!r}")
        return none
    name = tree.get("name", pruning.NONE)
    known = pruning.names()
    if name not in known:
        problems.add("pruner.name", f"must be one of {', '.join(known)}, got {name!r}")
        return none
    settings = {k: v for k, v in tree.items() if k != "name"}
    kind = Config if name == pruning.NONE else pruning.pruner_type(name).Config
    config = problems.section(kind, "pruner", settings)
    late = [e for e in getattr(config, "at", None) or () if e >= epochs]
    if late:
        problems.add("pruner.at", f"epoch {late[0]} is not before the last epoch, {epochs}")
    return none if config is None else Choice(name, config)


def _ends(ranges: Mapping[str, Range]) -> Iterable[dict[str, Any]]:
    """First ends everywhere, then all ends of each range and of each pair of ranges.

    Pairs, because two settings may each be valid and yet refuse each other.
    """
    first = {path: r.ends()[0] for path, r in ranges.items()}
    yield first
    for path, r in ranges.items():
        for end in r.ends()[1:]:
            yield {**first, path: end}
    for (path, r), (other, s) in itertools.combinations(ranges.items(), 2):
        for end, other_end in itertools.product(r.ends()[1:], s.ends()[1:]):
            yield {**first, path: end, other: other_end}


class _Problems:
    """Collects faults, one line each, and raises them together."""

    def __init__(self, origin: dict[str, str], source: str) -> None:
        self._origin, self._source = origin, source
        self._lines: dict[str, str] = {}

    def add(self, path: str, message: str) -> None:
        where = self._source
        for key, label in self._origin.items():
            if path == key or path.startswith(f"{key}.") or key.startswith(f"{path}."):
                where = label
        self._lines.setdefault(path, f"{where} {path}: {message}")

    def raise_any(self) -> None:
        if self._lines:
            raise ConfigError("\n".join(self._lines.values()))

    def ranges(self, tree: Mapping[str, Any]) -> dict[str, Range]:
        found = {}
        for path, node in space.walk(tree):
            try:
                parsed = space.parse_range(node)
            except RangeError as error:
                self.add(path, str(error))
                continue
            if parsed is not None:
                if path == "trainer.epochs":
                    self.add(path, "must be one value: trials are compared epoch by epoch")
                if path.endswith(".name") or "." not in path:
                    self.add(path, "this must be one value; run one sweep for each")
                found[path] = parsed
        return dict(sorted(found.items()))

    def whole(
        self, tree: Mapping[str, Any], key: str, *, default: int | None, low: int, high: int
    ) -> int:
        value = tree.get(key)
        value = default if value is None else value
        if value is None:
            self.add(key, "missing; how many trials to run, e.g. 64")
        elif isinstance(value, bool) or not isinstance(value, int):
            self.add(key, f"must be a whole number, got {value!r}")
        elif not low <= value <= high:
            self.add(key, f"must be from {low} to {high}, got {value}")
        else:
            return value
        return low

    def choice(self, kind: str, path: str, tree: Any) -> Any:
        """A plug-in by name with its settings, or None where that failed."""
        if not isinstance(tree, Mapping):
            self.add(path, f"must be a mapping with a `name`, got {tree!r}")
            return None
        found = tree.get("name")
        if not isinstance(found, str):
            known = ", ".join(catalog.entries(kind))
            self.add(f"{path}.name", f"missing; name one of {known}")
            return None
        settings = {k: v for k, v in tree.items() if k != "name"}
        return self.named(kind, path, found, settings, f"{path}.name")

    def named(
        self, kind: str, path: str, name: str, settings: Any, name_path: str | None = None
    ) -> Any:
        """A plug-in with its settings, or None where that failed; `name_path` has its name."""
        try:
            loaded = catalog.load(kind, name)
        except catalog.UnknownNameError as error:
            self.add(name_path or path, str(error))
            return None
        config = self.section(loaded.Config, path, settings)
        return None if config is None else Choice(name, config)

    def section(self, config_type: type[Any], path: str, tree: Any) -> Any:
        """A Config from a mapping, or None where that failed."""
        if not isinstance(tree, Mapping):
            self.add(path, f"must be a mapping, got {tree!r}")
            return None
        try:
            # Through JSON: strict about types, yet lists may stand for tuples.
            text = json.dumps(tree, allow_nan=False)
        except (TypeError, ValueError) as error:
            self.add(path, f"holds a value that is not a plain finite one ({error})")
            return None
        try:
            return _adapter(config_type).validate_json(text)  # type: ignore[arg-type]
        except ValidationError as error:
            for fault in error.errors(include_url=False):
                *parts, last = [str(part) for part in fault["loc"]] or [""]
                names = [part for part in parts if not _is_type_tag(part)]
                if last and (_is_unknown(fault) or not _is_type_tag(last)):
                    names.append(last)
                where = ".".join([path, *names])
                self.add(where, _explain(fault, config_type))
            return None


@cache
def _adapter(config_type: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(config_type)


def _is_type_tag(part: str) -> bool:
    return not (part.isidentifier() or part.isdigit())


def _is_unknown(fault: Any) -> bool:
    return bool(fault["type"] == "unexpected_keyword_argument")


def _explain(fault: Any, config_type: type[Any]) -> str:
    kind, got, context = fault["type"], fault["input"], fault.get("ctx", {})
    shown = json.dumps(got) if isinstance(got, str | bool) or got is None else str(got)
    match kind:
        case "unexpected_keyword_argument":
            known = [f.name for f in dataclasses.fields(config_type)]
            return _unknown(str(fault["loc"][-1]), known)
        case "missing_argument" | "missing_keyword_only_argument" | "missing":
            return "missing"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}, got {shown}"
        case "greater_than":
            return f"must be above {context['gt']:g}, got {shown}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}, got {shown}"
        case "less_than":
            return f"must be below {context['lt']:g}, got {shown}"
        case "int_type" | "int_from_float":
            return f"must be a whole number, got {shown}"
        case "float_type":
            return f"must be a number, got {shown}"
        case "bool_type":
            return f"must be true or false, got {shown}"
        case "string_type":
            return f"must be text, got {shown}"
        case "literal_error":
            return f"must be {context['expected']}, got {shown}"
        case "tuple_type" | "list_type":
            return f"must be a list, got {shown}"
        case "value_error":
            return str(context.get("error", fault["msg"]))
        case _:
            return f"{fault['msg']}, got {shown}"


def _unknown(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
    return f"unknown key{hint}"


def _plain(value: Any) -> Any:
    """Tuples as lists, so that a tree equals itself after a round trip through JSON."""
    return json.loads(json.dumps(value))
