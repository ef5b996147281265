"""The gallery of studies: a page for each, and one that lists them, claim by claim.

GALLERY/NAME/index.html, outcome.json, tables/, figures/   one study, put in place whole
GALLERY/index.html, claims.csv, studies.md                 all that lie beside them
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.frame import AnalysisError
from analysis.pages import FILES, environment, replacing, save_page
from analysis.studies.base import Claim, Finding, Study
from analysis.studies.outcome import FILE, Done, Outcome, load, save
from pipeline import catalog
from pipeline.progress import duration


@dataclass(frozen=True)
class Shown:
    """A study as the gallery lists it."""

    study: type[Study]
    outcome: Outcome

    @property
    def answers(self) -> list[tuple[Claim, Finding]]:
        """Claims with what came of them."""
        return list(zip(self.study.claims, self.outcome.findings, strict=True))

    @property
    def took(self) -> str:
        """In words."""
        return duration(self.outcome.seconds)

    @property
    def picture(self) -> str:
        """Its path from the gallery."""
        return f"{self.outcome.name}/figures/{self.outcome.name}.png"


def add(done: Done, gallery: Path) -> Path:
    """Writes a study's page into the gallery, and the gallery anew. Returns the study's page."""
    folder = gallery / done.outcome.name
    with replacing(folder) as building:
        figure = save(done, building)
        shown = Shown(type(done.study), done.outcome)
        content = {
            "shown": shown,
            "figure": figure,
            "tables": sorted(done.tables),
            "number": number,
        }
        save_page(building, "study.html.j2", content, "html", {"study": done.outcome.name})
    return folder / FILES["html"]


def write_index(gallery: Path) -> Path:
    """The page, the table and the Markdown that list what lies in the gallery's folders.

    A folder whose study is no longer there, or makes other claims by now, is left out. Raises
    AnalysisError if nothing is left.
    """
    found = studies_in(gallery)
    if not found:
        raise AnalysisError(f"{gallery}: no study lies here; `lyapsweep reproduce NAME` makes one")
    papers = {s.study.paper.key: s.study.paper for s in found}
    grouped = [(p, [s for s in found if s.study.paper.key == k]) for k, p in papers.items()]
    scales = sorted({s.outcome.scale for s in found}, reverse=True)
    content = {"grouped": grouped, "counts": counts(found), "scale": " and ".join(scales)}
    page = environment().get_template("gallery.html.j2").render(content)
    _put(gallery / FILES["html"], page)
    _put(gallery / "claims.csv", claims(found).to_csv(index=False))
    _put(gallery / "studies.md", environment().get_template("studies.md.j2").render(content))
    return gallery / FILES["html"]


def studies_in(gallery: Path) -> list[Shown]:
    """What lies in a gallery, by paper and name."""
    found = []
    for path in sorted(gallery.glob(f"*/{FILE}")):
        outcome = load(path.parent)
        if outcome.name not in catalog.entries("studies"):
            continue
        study: type[Study] = catalog.load("studies", outcome.name)
        if [c.key for c in study.claims] == [f.claim for f in outcome.findings]:
            found.append(Shown(study, outcome))
    return sorted(found, key=lambda s: (s.study.paper.key, s.outcome.name))


def claims(found: Sequence[Shown]) -> pd.DataFrame:
    """One row a claim."""
    rows: list[dict[str, Any]] = [
        {
            "paper": shown.study.paper.short,
            "item": shown.study.item,
            "study": shown.outcome.name,
            "claim": claim.key,
            "says": claim.says,
            "criterion": claim.criterion,
            "verdict": finding.verdict,
            "found": finding.found,
            "effect": finding.effect,
            "low": finding.low,
            "high": finding.high,
            "unit": finding.unit,
            "scale": shown.outcome.scale,
            "command": shown.outcome.command,
        }
        for shown in found
        for claim, finding in shown.answers
    ]
    return pd.DataFrame(rows)


def counts(found: Sequence[Shown]) -> dict[str, int]:
    """How many claims came to each verdict."""
    verdicts = [finding.verdict for shown in found for finding in shown.outcome.findings]
    return {v: verdicts.count(v) for v in ("reproduced", "not reproduced", "reversed")}


def number(finding: Finding) -> str:
    """A finding's effect with its interval and unit; "" where it is none."""
    if math.isnan(finding.effect):
        return ""
    unit = "" if finding.unit == "1" else f" {finding.unit}"
    if math.isnan(finding.low) or math.isnan(finding.high):
        return f"{_short(finding.effect)}{unit}"
    return f"{_short(finding.effect)} [{_short(finding.low)}, {_short(finding.high)}]{unit}"


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _put(path: Path, text: str) -> None:
    """Whole or not at all."""
    building = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    building.write_text(text, encoding="utf-8")
    building.replace(path)
