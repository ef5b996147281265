"""The pruners that a replay compares: by name, with settings, and at several strengths."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import conf_file, pruning, yaml_text
from pipeline.config import check
from pipeline.faults import ConfigError, clipped
from pipeline.plan import Choice
from pipeline.pruning import PrunerConfig
from tasks.base import Config

# How strictly each pruner may decide: the settings that the trade-off goes through.
_STRENGTHS: dict[str, tuple[dict[str, Any], ...]] = {
    "median": tuple({"n_warmup_steps": n} for n in (1, 2, 4, 8, 16)),
    "percentile": tuple({"percentile": float(p)} for p in (10, 25, 50, 75, 90)),
    "successive_halving": tuple(
        {"reduction_factor": f, "min_resource": m} for f in (2, 4) for m in (1, 2, 4)
    ),
    "hyperband": tuple({"reduction_factor": f} for f in (2, 3, 4)),
    "spectrum": tuple({"confidence": c} for c in (0.8, 0.95, 0.99)),
}
_WITHOUT_SPECTRUM = ("settings", "loss", "norms")


def all_choices(epochs: int, measured: Iterable[int]) -> dict[str, Choice]:
    """All pruners as they come, and `spectrum` without its spectrum, to compare with.

    The latter decides at the same epochs: those at which a spectrum was `measured`.
    """
    found = {n: choice_of({"name": n}, epochs) for n in pruning.names() if n != pruning.NONE}
    at = [e for e in measured if 0 < e < epochs]
    if "spectrum" in found and at:
        blind = {"name": "spectrum", "groups": list(_WITHOUT_SPECTRUM), "at": at}
        found["the same without spectrum"] = choice_of(blind, epochs)
    return found


def choice_of(tree: Mapping[str, Any], epochs: int, source: str = "pruner") -> Choice:
    """A pruner from what a conf would say of it, checked. Raises ConfigError.

    A setting may be named by any part of its name that no other has: `warmup`.
    """
    name = tree.get("name")
    if name in pruning.names() and name != pruning.NONE:
        known = [f.name for f in dataclasses.fields(pruning.pruner_type(str(name)).Config)]
        tree = {key if key == "name" else _spelled_out(key, known): v for key, v in tree.items()}
    elif name == pruning.NONE:
        raise ConfigError(f"{source}: to prune nothing is what the others are compared with")
    whole = {
        "trials": 1,
        "pruner": {"lag": None, **tree},
        # Stands for any: what a pruner may be set to depends on the number of epochs alone.
        "task": {"name": "planar"}, "network": {"name": "mlp"}, "trainer": {"epochs": epochs},
        "execution": {"executor": "inline", "cohort_size": 1},
    }  # fmt: skip
    choice = check(whole, source=source).pruner
    if tree.get("lag") is None and isinstance(choice.config, PrunerConfig):
        return Choice(choice.name, dataclasses.replace(choice.config, lag=None))
    return choice


def parse(text: str) -> dict[str, Any]:
    """What `--pruner` says: `median`, `median:warmup=2,at=[2,4]`, `{name: median}`, or a YAML file.

    Raises ConfigError.
    """
    where = f"--pruner {clipped(text)}"
    if text.endswith((".yaml", ".yml")) and not text.lstrip().startswith("{"):
        tree = conf_file.tree_of(yaml_text.read(Path(text)), where)
        if isinstance(tree, dict) and isinstance(tree.get("pruner"), dict):
            tree = tree["pruner"]
    else:
        tree = _said(text, where)
    if not isinstance(tree, dict) or any(v is None for v in tree.values()):
        raise _unreadable(text, "no value for a setting")
    return {str(key): value for key, value in tree.items()}


def _said(text: str, where: str) -> Any:
    name, _, settings = text.partition(":")
    is_whole = text.lstrip().startswith("{")
    flow = text if is_whole else f"{{{settings.replace('=', ': ')}}}"
    try:
        yaml_text.check(flow, where)
        tree = conf_file.tree_of(flow, where)
    except ConfigError as error:
        raise _unreadable(text, str(error).removeprefix(f"{where}: ")) from None
    return tree if is_whole or not isinstance(tree, dict) else {"name": name.strip(), **tree}


def _unreadable(text: str, reason: str) -> ConfigError:
    return ConfigError(
        f"--pruner {clipped(text)}: must be a name, or name:setting=value,…, or YAML "
        f"({reason}); e.g. --pruner median:n_warmup_steps=2"
    )


def _spelled_out(key: str, known: Sequence[str]) -> str:
    meant = [name for name in known if key in name]
    return key if key in known or len(meant) != 1 else meant[0]


def family(choice: Choice, epochs: int) -> dict[str, Choice]:
    """The pruner at each of its strengths, by their settings in words.

    What was set to other than the default stays as it is.
    """
    fixed = _changed(choice.config)
    found = {}
    for strength in _STRENGTHS.get(choice.name, ({},)):
        if strength.get("n_warmup_steps", 0) >= epochs or strength.get("min_resource", 0) >= epochs:
            continue
        config: Any = dataclasses.replace(choice.config, **{**strength, **fixed})
        shown = {k: getattr(config, k) for k in strength}
        found[_in_words(shown) or "as it comes"] = Choice(choice.name, config)
    return found


def _changed(config: Config) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    return {name: v for name, v in values.items() if v != defaults[name]}


def label_of(choice: Choice) -> str:
    """The name, with settings that differ from their defaults."""
    shown = _in_words(_changed(choice.config))
    return f"{choice.name}: {shown}" if shown else choice.name


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items()
    )
