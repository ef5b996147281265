"""What a study runs with: `conf/studies/NAME.yaml` at one of its two scales, checked.

A file holds `small` and `paper`, each with the study's own `settings`, the `sweeps` it trains
(trees as in any conf, by the name of the part) and `seeds`, how many networks are trained of every
point of a grid. `paper` says only what differs from `small`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.studies.base import SCALES, Scale, Study
from pipeline import catalog, conf_file, config, space
from pipeline.config import SweepConfig
from pipeline.faults import Faults
from tasks.base import Config

_SECTIONS = ("settings", "sweeps", "seeds")


@dataclass(frozen=True)
class Settings:
    """A study at one scale.

    Attributes:
        config: the study's own settings.
        sweeps: what it trains, by part; with every grid repeated under `seeds` seeds.
        seeds: networks of each configuration, and repetitions of what is drawn at random.
    """

    name: str
    scale: Scale
    seeds: int
    config: Config
    sweeps: dict[str, SweepConfig]

    def study(self) -> Study:
        """The study, ready to run. Raises UnknownNameError."""
        kind: type[Study] = catalog.load("studies", self.name)
        return kind(self.config)


def load(name: str, scale: Scale = "small", seeds: int | None = None) -> Settings:
    """A study's settings; `seeds` instead of the file's.

    Raises UnknownNameError, ConfigError.
    """
    kind: type[Study] = catalog.load("studies", name)
    path = conf_file.find(f"studies/{name}.yaml")
    whole, _ = conf_file.read_tree(path, holds=f"scales {', '.join(SCALES)}")
    faults = Faults({}, str(path))
    for key in sorted(whole.keys() - set(SCALES)):
        faults.add(key, f"unknown; a study's file holds {', '.join(SCALES)}")
    faults.raise_any()
    tree = _merged(whole.get("small") or {}, (whole.get("paper") or {}) if scale == "paper" else {})
    for key in sorted(tree.keys() - set(_SECTIONS)):
        faults.add(f"{scale}.{key}", f"unknown; a scale holds {', '.join(_SECTIONS)}")
    count = seeds if seeds is not None else faults.whole(tree, "seeds", default=1, low=1, high=1000)
    own = faults.section(kind.Config, f"{scale}.settings", tree.get("settings") or {})
    faults.raise_any()
    sweeps = {
        part: _repeated(sweep, count, f"{path} {scale}.sweeps.{part}")
        for part, sweep in (tree.get("sweeps") or {}).items()
    }
    return Settings(name, scale, count, own, sweeps)


def _repeated(tree: Mapping[str, Any], seeds: int, source: str) -> SweepConfig:
    """The sweep, with weights kept; a grid that says no number of trials runs under each seed."""
    execution = {"keep_weights": True, **(tree.get("execution") or {})}
    found = config.check({**tree, "execution": execution}, source=source)
    if found.sampler.name == "grid" and "trials" not in tree:
        found = config.check(
            {**tree, "execution": execution, "trials": found.trials * seeds}, source=source
        )
    return found


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mapping by mapping. A range, a plug-in or a list is replaced whole."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not _is_whole(old, value):
            value = _merged(old, value)
        found[key] = value
    return found


def _is_whole(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    is_renamed = "name" in new and new["name"] != old.get("name")
    return is_renamed or any(word in tree for word in space.KINDS for tree in (old, new))
