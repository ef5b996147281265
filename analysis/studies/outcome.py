"""A study carried out: its tables, judged and drawn, and kept in a folder that a gallery shows."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.figures.base import png
from analysis.frame import AnalysisError
from analysis.pages import FigureView, save_picture, save_table
from analysis.studies.base import Finding, Scale, Study
from analysis.studies.lab import Lab
from analysis.studies.settings import Settings
from pipeline.provenance import provenance
from pipeline.store import Store

FILE = "outcome.json"
_NUMBERS = ("effect", "low", "high")  # of a finding; JSON has no NaN


@dataclass(frozen=True)
class Outcome:
    """What came of a study, without its tables.

    Attributes:
        findings: one a claim, in the order of the claims.
        seconds: from beginning to end; less than a first run takes where sweeps were found trained.
        sweeps: names in the store of what it trained.
        made_ms: when, in milliseconds since 1970.
        provenance: versions, machine.
    """

    name: str
    scale: Scale
    seeds: int
    findings: tuple[Finding, ...]
    seconds: float
    sweeps: tuple[str, ...]
    made_ms: int
    provenance: dict[str, Any]

    @property
    def command(self) -> str:
        """What makes it again."""
        return f"lyapsweep reproduce {self.name} --scale {self.scale} --seeds {self.seeds}"


@dataclass(frozen=True)
class Done:
    """A study that has just been carried out, with all that its page shows."""

    study: Study
    outcome: Outcome
    tables: Mapping[str, pd.DataFrame]
    picture: bytes


def carry_out(settings: Settings, store: Store) -> Done:
    """Measures, judges and draws.

    Raises AnalysisError where the study cannot be done, or does not answer each of its claims once.
    """
    started = time.perf_counter()
    study, lab = settings.study(), Lab(settings, store)
    tables = study.measure(lab)
    empty = sorted(name for name, table in tables.items() if table.empty)
    if not tables or empty:
        raise AnalysisError(f"study {settings.name}: nothing was measured for {empty or 'it'}")
    findings = tuple(study.judge(tables))
    asked, answered = [c.key for c in study.claims], [f.claim for f in findings]
    if asked != answered:
        raise AnalysisError(
            f"study {settings.name}: each claim must be answered once, in order; claimed is "
            f"{', '.join(asked)}, answered {', '.join(answered)}"
        )
    picture = png(lambda: study.draw(tables))
    outcome = Outcome(
        name=settings.name,
        scale=settings.scale,
        seeds=settings.seeds,
        findings=findings,
        seconds=time.perf_counter() - started,
        sweeps=tuple(trained.name for trained in lab.trained.values()),
        made_ms=time.time_ns() // 1_000_000,
        provenance=provenance(),
    )
    return Done(study, outcome, tables, picture)


def save(done: Done, folder: Path) -> FigureView:
    """Tables, picture and outcome into a folder; returns the picture as a page shows it."""
    for name, table in done.tables.items():
        save_table(table, folder, name)
    content = dataclasses.asdict(done.outcome)
    for finding in content["findings"]:
        for key in _NUMBERS:
            finding[key] = None if math.isnan(finding[key]) else float(finding[key])
    (folder / FILE).write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    kind = type(done.study)
    return save_picture(done.picture, folder, done.outcome.name, kind.title, kind.caption)


def _finding(content: dict[str, Any]) -> Finding:
    numbers = {k: math.nan if content[k] is None else content[k] for k in _NUMBERS}
    return Finding(**{**content, **numbers})


def load(folder: Path) -> Outcome:
    """An outcome that was saved. Raises AnalysisError where the folder has none."""
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        findings = tuple(map(_finding, content.pop("findings")))
        sweeps = tuple(content.pop("sweeps"))
        return Outcome(**content, findings=findings, sweeps=sweeps)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise AnalysisError(f"{path}: must be the outcome of a study, but {error}") from error
