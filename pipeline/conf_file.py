"""From a YAML file and `key=value` overrides to a checked tree; the only reader of YAML here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import pruning, yaml_text
from pipeline.config import SECTIONS, SweepConfig, check
from pipeline.faults import ConfigError, clipped

_EXAMPLE = "network.units=128"
_UNREADABLE = (OmegaConfBaseException, *yaml_text.UNREADABLE)


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
    tree, origin = read_tree(path, overrides, holds=f"sections {', '.join(SECTIONS)}")
    return check(tree, source=str(path), origin=origin)


def read_tree(
    path: Path, overrides: Sequence[str] = (), *, holds: str, example: str = _EXAMPLE
) -> tuple[dict[str, Any], dict[str, str]]:
    """A mapping from a YAML file with `key=value` overrides; and by dotted key which came from one.

    Errors say what the mapping `holds`, with an `example` of an override. Raises ConfigError.
    """
    tree = tree_of(yaml_text.read(path), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must be a mapping with the {holds}")
    origin = {}
    for override in overrides:
        origin[_apply(tree, override, example)] = f"command line {override!r}:"
    return {str(k): v for k, v in tree.items()}, origin


def tree_of(text: str, where: str) -> Any:
    """What YAML stands for that `yaml_text` has nothing against; an interpolation is its text.

    Raises ConfigError, which begins with `where`.
    """
    try:
        tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{line}: not valid YAML ({error.problem})") from error
    except _UNREADABLE as error:
        raise ConfigError(f"{where}: not valid YAML ({_brief(error)})") from error
    yaml_text.check_numbers(tree, where)
    return tree


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


def _apply(tree: Any, override: str, example: str = _EXAMPLE) -> str:
    key, equals, text = override.partition("=")
    key = key.strip()
    where = f"command line {clipped(override)!r}"
    if not equals or not key or any(not part for part in key.split(".")):
        raise ConfigError(f"{where}: an override is key=value with a dotted key, e.g. {example}")
    if key.count(".") >= yaml_text.MOST_LEVELS:
        raise ConfigError(
            f"command line {override[:80]!r}…: a key has at most {yaml_text.MOST_LEVELS} parts"
        )
    yaml_text.check(text, where, "the value is ")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"v={text}"]), resolve=False)
    except _UNREADABLE as error:
        raise ConfigError(f"{where}: the value is not valid YAML ({_brief(error)})") from error
    assert isinstance(value, dict)
    yaml_text.check_numbers(value["v"], f"{where}: {key}")
    node = tree
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[last] = value["v"]
    return key


def _brief(error: Exception) -> str:
    return clipped((str(error).splitlines() or [type(error).__name__])[0])
