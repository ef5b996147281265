"""What a comparison keeps of a sweep: the numbers of one moment, and how the sweep was made.

The moment is fixed before anything is looked at: the last measurement in the first half of
training. The strongest epoch of each sweep would make sweeps differ, or agree, by luck.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import features as ft
from analysis import words
from analysis.correlations import correlations
from analysis.evidence import increments
from analysis.figures.base import when
from analysis.frame import SweepFrame
from analysis.sections import budget
from analysis.sections.base import in_words
from analysis.verdict import Verdict, early_epochs, verdict
from pipeline.space import Range

SPECTRAL = ("spectrum", "ftle")
_NO_MATTER = ("execution",)
"""Settings that change where and when trials run, not what comes of them."""


@dataclass(frozen=True)
class Summary:
    """One sweep in a comparison.

    Attributes:
        name: of the sweep.
        verdict: what its own report says.
        epoch: the moment; None where nothing was measured.
        moment: the moment in words.
        lines: `correlations` at the moment, spectrum and FTLEs only, the main features first.
        gains: `increments` at the moment.
        budget: what each pruner would have saved; empty where that cannot be told.
        settings: how the sweep was made, in words, by dotted name.
        counted: its trials by state, in words.
        num_finished: trials with a final loss.
        loss: what the final loss is: its task and unit.
        origin: equal in sweeps that are not independent of one another; "" where unknown.
    """

    name: str
    verdict: Verdict
    epoch: int | None
    moment: str
    lines: pd.DataFrame
    gains: pd.DataFrame
    budget: pd.DataFrame
    settings: Mapping[str, str]
    counted: str
    num_finished: int
    loss: tuple[str, str]
    origin: str


def summary(frame: SweepFrame) -> Summary:
    """Reads the tables of the sweep's own report; computes nothing new."""
    epoch = early_epochs(frame)[-1] if frame.measured_epochs else None
    states = frame.trials["state"].value_counts()
    return Summary(
        name=frame.info.name,
        verdict=verdict(frame),
        epoch=epoch,
        moment="–" if epoch is None else f"{when(epoch)} of {frame.final_epoch}",
        lines=_lines(frame, epoch),
        gains=_at(increments(frame), epoch) if len(frame.target) else pd.DataFrame(),
        budget=budget.SECTION.tables(frame)["budget"],
        settings=_settings(frame),
        counted=", ".join(f"{count} {state}" for state, count in states.items()),
        num_finished=len(frame.target),
        loss=(_name(frame.info.config.get("task")), _unit(frame)),
        origin=_origin(frame),
    )


def _lines(frame: SweepFrame, epoch: int | None) -> pd.DataFrame:
    table = _at(correlations(frame), epoch) if len(frame.target) else pd.DataFrame()
    if table.empty:
        return table
    table = table[table["group"].isin(SPECTRAL)]
    order = [name for name in ft.FEATURES if ft.FEATURES[name].is_headline]
    rank = table["feature"].map(lambda f: order.index(f) if f in order else len(order))
    return table.iloc[rank.argsort(kind="stable")].reset_index(drop=True)


def _at(table: pd.DataFrame, epoch: int | None) -> pd.DataFrame:
    return table[table["epoch"] == epoch].reset_index(drop=True) if len(table) else table


def _settings(frame: SweepFrame) -> dict[str, str]:
    """What was asked for, then what was measured and with which versions."""
    config = {k: v for k, v in frame.info.config.items() if k not in _NO_MATTER}
    found = _flat(config, frame.ranges)
    for quantity in ("lyapunov.spectrum", "ftle.quantiles"):
        details = frame.details(quantity) if quantity in frame.quantities else {}
        for name, values in details.items():
            found[f"{quantity}: {name}"] = words.either([in_words(v) for v in values])
    provenance = {**frame.headers[0].provenance, **frame.info.provenance}
    return found | {f"made with {k}": v for k, v in _flat(provenance, {}).items()}


def _flat(tree: Mapping[str, Any], ranges: Mapping[str, Range], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if path in ranges:
            found[path] = str(ranges[path])
        elif isinstance(value, Mapping):
            found |= _flat(value, ranges, f"{path}.")
        else:
            found[path] = in_words(value)
    return found


def _name(section: Any) -> str:
    return str(section.get("name", "–")) if isinstance(section, Mapping) else str(section or "–")


def _unit(frame: SweepFrame) -> str:
    known = frame.target_quantity in frame.quantities
    return frame.unit(frame.target_quantity) if known else "–"


def _origin(frame: SweepFrame) -> str:
    """Sweeps of one origin hold the same networks, or the same settings with the same luck."""
    return frame.imported_from or frame.info.config_hash
