"""Which columns of somebody's tables hold what, in which unit and convention: read from YAML."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter, ValidationError

from pipeline.conf_file import read_tree
from pipeline.faults import ConfigError, clipped
from pipeline.space import KINDS
from tasks.base import Bounds, Config
from tasks.networks.base import StateConvention

SECTIONS = ("task", "network", "trainer")
NUMBER = "imported.trial"
"""The setting that keeps a network's name in its tables."""


@dataclass(frozen=True, kw_only=True)
class Exponents(Config):
    """Columns of the table of spectra: one line a network, epoch and exponent.

    epoch: column of whole numbers; `shift` is added to make them epochs trained.
    index: column that numbers a spectrum's exponents from 0 or from 1.
    value: column of the exponents.
    unit: of them; or `unit_column`, the column that says it on every line.
    state: "full", (h, c) of all layers; "hidden", h with the cells held fixed.
    state_size: column with the number of exponents of the whole state. None: tables hold them
        all, so that all networks have as many.
    standard_error: column of errors; or `spread`, a standard deviation over `sequences` inputs.
    near_zero: |λ| in nats/step up to which an exponent counts as near zero.
    details: what else is to be known of how they were measured.
    """

    epoch: str
    index: str
    value: str
    unit: Literal["bits/step", "nats/step"] | None = None
    unit_column: str | None = None
    state: StateConvention
    state_size: str | None = None
    standard_error: str | None = None
    spread: str | None = None
    sequences: Annotated[int, Bounds(ge=1)] | None = None
    near_zero: Annotated[float, Bounds(gt=0)] = 0.05
    shift: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_unit(self.unit, self.unit_column)
        if self.spread is not None and self.sequences is None:
            raise ValueError("spread needs `sequences`, over how many inputs it was taken")
        if self.spread is not None and self.standard_error is not None:
            raise ValueError("name `standard_error` or `spread`, not both")


@dataclass(frozen=True, kw_only=True)
class Losses(Config):
    """Columns of the table of validation losses: one line a network and epoch.

    epoch: column of whole numbers, 0 before training; `shift` is added to make them so.
    value: column of the losses, smaller is better.
    unit: of them, "1" for what is no information; or `unit_column`.
    details: what else is to be known of them.
    """

    epoch: str
    value: str
    unit: Literal["nats", "bits", "1"] | None = None
    unit_column: str | None = None
    shift: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_unit(self.unit, self.unit_column)


@dataclass(frozen=True, kw_only=True)
class Mapping(Config):
    """How tables are read.

    source: who measured, in a line; stands with every record.
    trial: column that names a network, in both tables.
    settings: column of either table → our dotted name; those that vary count as sampled.
    constants: dotted name → what all networks share.
    sampler: how the settings were drawn; results of a steered design are weaker evidence.
    updates_per_epoch: optimiser steps; where unknown an epoch counts as one.
    diverged_rise: how far, in the losses' unit of ours (nats), a loss may rise above the lowest
        so far before its network counts as diverged. None: no limit.
    """

    source: str
    trial: str
    exponents: Exponents
    losses: Losses
    settings: dict[str, str]
    constants: dict[str, str | int | float | bool] = field(default_factory=dict)
    sampler: Literal["unknown", "grid", "qmc", "random", "tpe", "gp", "cmaes"] = "unknown"
    updates_per_epoch: Annotated[int, Bounds(ge=1)] = 1
    diverged_rise: Annotated[float, Bounds(gt=0)] | None = None

    def __post_init__(self) -> None:
        if not self.settings:
            raise ValueError("settings must name at least one column")
        names = [*self.settings.values(), *self.constants]
        for name in names:
            section, *rest = name.split(".")
            if section not in SECTIONS or not rest or not all(rest) or {*rest} & {*KINDS}:
                raise ValueError(
                    f"a setting's name must be {', '.join(f'{s}.…' for s in SECTIONS)}, "
                    f"got {name!r}"
                )
            if any(other.startswith(f"{name}.") for other in names):
                raise ValueError(f"{name!r} cannot be a setting and hold others as well")
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is named twice")

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON; what has free keys as pairs, lest a column called `choice` look like a range."""
        tree: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        tree["settings"] = [list(pair) for pair in tree["settings"].items()]
        tree["constants"] = [list(pair) for pair in tree["constants"].items()]
        for part in ("exponents", "losses"):
            tree[part]["details"] = [list(pair) for pair in tree[part]["details"].items()]
        return tree


def _one_unit(unit: str | None, column: str | None) -> None:
    if (unit is None) == (column is None):
        raise ValueError("name either `unit` or `unit_column`")


def find(mapping: str) -> Path:
    """The file meant: a path, or the name of a mapping we ship. Raises ConfigError."""
    path = Path(mapping)
    if path.is_file():
        return path
    here = Path(__file__).parents[1]
    folders = [f / "conf" / "spectra" for f in (here, here.parent)]
    for folder in folders:
        if (folder / f"{mapping}.yaml").is_file():
            return folder / f"{mapping}.yaml"
    shipped = sorted({p.stem for folder in folders for p in folder.glob("*.yaml")})
    raise ConfigError(
        f"{mapping}: no such file; mappings that ship with lyapsweep: {', '.join(shipped)}"
    )


def load(path: Path, overrides: Sequence[str] = ()) -> Mapping:
    """Reads a mapping and applies `key=value` overrides. Raises ConfigError, a line a fault."""
    keys = "keys source, trial, exponents, …"
    tree, _ = read_tree(path, overrides, holds=keys, example="losses.unit=bits")
    where = str(path) if not overrides else f"{path} with {' '.join(overrides)}"
    try:
        # Through JSON, as all of our conf: strict about types.
        return TypeAdapter(Mapping).validate_json(json.dumps(tree, allow_nan=False))
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise ConfigError("\n".join(clipped(_fault(where, fault)) for fault in faults)) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: holds a value that is not a plain one ({error})") from error


def _fault(where: str, fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "unexpected_keyword_argument":
        return f"{where} {place}: unknown key"
    if fault["type"].startswith("missing"):
        return f"{where} {place}: missing"
    if fault["type"] == "value_error":
        return f"{where}{f' {place}' if place else ''}: {fault['ctx']['error']}"
    return f"{where} {place}: {fault['msg']}, got {fault['input']!r}"
