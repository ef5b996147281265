"""The conf tree: read from YAML, checked to the ends of every range, before anything starts.

The only reader of YAML. A tree has the sections

    seed, trials                 of the sweep
    sampler: {name, batch}       how the ranges are sampled
    task: {name, …}              what is learned
    network: {name, …}           by what
    trainer: {…}                 how
    measure: {name: {…}, …}      what is measured meanwhile
    execution: {…}               where; changes no result (its cohort_size sets a default batch)

and a range may stand wherever a value may in task, network and trainer (`pipeline.space`).
"""

import dataclasses
import difflib
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from pipeline import catalog, space
from pipeline.optim import Trainer
from pipeline.plan import Choice, Limits, TrialSpec
from pipeline.space import Range, RangeError
from tasks.base import Bounds, Config, seed_for

_RANGED = ("task", "network", "trainer")
_MAPPINGS = ("sampler", "trainer", "measure", "execution")
_SECTIONS = ("seed", "trials", "sampler", *_RANGED, "measure", "execution")


class ConfigError(ValueError):
    """Settings that cannot be run. One line a fault: where, the law, what came."""


@dataclass(frozen=True, kw_only=True)
class Sampler(Config):
    """How values are drawn from the ranges.

    batch: trials asked for at a time; None takes eight cohorts, two for adaptive samplers.
        These learn from a batch before they are asked for the next, so that a sweep repeats
        exactly whatever the number of workers.
    """

    name: Literal["qmc", "random", "grid", "tpe", "gp", "cmaes"] = "qmc"
    batch: Annotated[int, Bounds(ge=1, le=100_000)] | None = None

    @property
    def is_adaptive(self) -> bool:
        """True where results steer the design."""
        return self.name in ("tpe", "gp", "cmaes")


@dataclass(frozen=True, kw_only=True)
class Execution(Config):
    """Where and with what a sweep runs.

    executor: ray or inline (this process).
    workers: Ray workers; None takes one for each `threads` cores.
    threads: torch threads of a worker.
    cohort_size: most trials trained as one population.
    device: cpu, cuda, cuda:0, …
    attempts: how often a trial is tried when its worker is lost.
    max_failed_share: share of the trials that may raise before the sweep stops.
    keep_weights: store every trial's final weights as safetensors.
    """

    executor: Literal["inline", "ray"] = "ray"
    workers: Annotated[int, Bounds(ge=1, le=10_000)] | None = None
    threads: Annotated[int, Bounds(ge=1, le=1024)] = 1
    cohort_size: Annotated[int, Bounds(ge=1, le=4096)] = 8
    device: str = "cpu"
    attempts: Annotated[int, Bounds(ge=1, le=100)] = 3
    max_failed_share: Annotated[float, Bounds(ge=0, le=1)] = 0.2
    keep_weights: bool = False


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
    execution: Execution = field(default_factory=Execution)

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical tree without `execution`, which changes no result."""
        content = {k: v for k, v in self.tree.items() if k != "execution"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def batch_size(self) -> int:
        """How many trials the sampler is asked for at a time."""
        assert self.sampler.batch is not None, "resolved by check"
        return self.sampler.batch

    @property
    def limits(self) -> Limits:
        """What the planner needs to know of this sweep."""
        return Limits(
            size=self.execution.cohort_size,
            sweep_seed=self.seed,
            measure=self.measure,
            device=self.execution.device,
            threads=self.execution.threads,
            keep_weights=self.execution.keep_weights,
        )

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
    for key in ("seed", "trials", "sampler", "measure", "execution"):
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
    measure = _measurements(problems, tree.get("measure", {}), max(t.epochs for *_, t in found))
    problems.raise_any()
    if sampler.batch is None:
        cohorts = 2 if sampler.is_adaptive else 8
        sampler = dataclasses.replace(sampler, batch=cohorts * execution.cohort_size)
    task, network, trainer = found[0]
    resolved = {
        "seed": seed,
        "trials": trials,
        "sampler": dataclasses.asdict(sampler),
        # With defaults, so that a later version with others resumes the sweep that was begun.
        "task": {**_plain(dataclasses.asdict(task.config)), **tree["task"]},
        "network": {**_plain(dataclasses.asdict(network.config)), **tree["network"]},
        "trainer": {**_plain(dataclasses.asdict(trainer)), **tree.get("trainer", {})},
        "measure": {c.name: _plain(dataclasses.asdict(c.config)) for c in measure},
        "execution": dataclasses.asdict(execution),
    }
    return SweepConfig(resolved, ranges, seed, trials, sampler, measure, execution)


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
