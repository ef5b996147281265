"""One self-contained HTML page that says what a sweep found, its tables and pictures beside it.

The page needs no network: styles and pictures are inside it. It is built in a folder next to its
destination and put in place whole, so that a reader never meets half a report.
"""

import base64
import importlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis.figures.base import Figure
from analysis.frame import AnalysisError, SweepFrame
from analysis.sections.base import Section
from analysis.sections.reproduce import settings
from analysis.verdict import verdict
from pipeline import catalog

MARKER = ".lyapsweep-report"
ORDER = (
    "run",
    "design",
    "curves",
    "spectra",
    "evolution",
    "correlations",
    "predictors",
    "planned",
    "budget",
    "trials",
    "failures",
    "reproduce",
)
"""The sections of the page from top to bottom, by the names of their files in `sections`."""
SECTIONS: dict[str, Section] = {
    name: importlib.import_module(f"analysis.sections.{name}").SECTION for name in ORDER
}
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class FigureView:
    """A figure as the page shows it; `uri` is "" where there was nothing to draw."""

    name: str
    title: str
    caption: str
    uri: str
    width: int
    height: int


def write_report(frame: SweepFrame, out: Path) -> Path:
    """Writes the report into the folder `out`, replacing a former report there.

    Returns the path of its `index.html`. Raises AnalysisError where `out` is something else
    than a former report or an empty folder; OSError where it cannot be written.
    """
    out = out.resolve()
    _check_destination(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        (building / "tables").mkdir(parents=True)
        (building / "figures").mkdir()
        _fill(frame, building)
        _swap(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return out / "index.html"


def _check_destination(out: Path) -> None:
    if out.is_dir():
        if not (out / MARKER).exists() and any(out.iterdir()):
            raise AnalysisError(
                f"{out}: is a folder with other things in it; a report replaces only a former "
                f"report or an empty folder. Name another with --out"
            )
    elif out.exists() or out.is_symlink():
        raise AnalysisError(f"{out}: is not a folder; name another place with --out")


def _swap(building: Path, out: Path) -> None:
    former = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        os.rename(out, former)
    try:
        os.rename(building, out)
    except OSError:
        if former.exists():
            os.rename(former, out)
        raise
    shutil.rmtree(former, ignore_errors=True)


def _fill(frame: SweepFrame, folder: Path) -> None:
    figures = _figures(frame, folder)
    for section in SECTIONS.values():
        for name, table in section.tables(frame).items():
            if not table.empty:
                _save(table, folder / "tables" / name)
    (folder / "config.yaml").write_text(settings(frame), encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    content = _content(frame, figures, environment)
    page = environment.get_template("report.html.j2").render(content)
    (folder / "index.html").write_text(page, encoding="utf-8")
    (folder / MARKER).write_text(
        json.dumps({"sweep": frame.info.name, "sweep_id": frame.info.sweep_id}), encoding="utf-8"
    )


def _content(
    frame: SweepFrame, figures: dict[str, list[FigureView]], environment: jinja2.Environment
) -> dict[str, Any]:
    parts: Any = environment.get_template("parts.html.j2").module
    shared = {"table": parts.table, "pictures": parts.pictures}
    sections = []
    for name, section in SECTIONS.items():
        body = environment.from_string(section.body).render(
            shared, figures=figures[name], **section.content(frame)
        )
        sections.append((name, section, body))
    return {"name": frame.info.name, "verdict": verdict(frame), "sections": sections}


def _figures(frame: SweepFrame, folder: Path) -> dict[str, list[FigureView]]:
    """Draws every figure there is; returns them by section, in their order."""
    found: dict[str, list[tuple[int, FigureView]]] = {section: [] for section in SECTIONS}
    for name in catalog.entries("figures"):
        kind: type[Figure] = catalog.load("figures", name)
        figure = kind()
        table, uri, size = figure.data(frame), "", (0, 0)
        if not table.empty:
            picture = figure.png(table)
            (folder / "figures" / f"{name}.png").write_bytes(picture)
            _save(table, folder / "tables" / name)
            uri = "data:image/png;base64," + base64.b64encode(picture).decode()
            size = _png_size(picture)
        view = FigureView(name, figure.title, figure.caption, uri, size[0] // 2, size[1] // 2)
        found[figure.section].append((figure.order, view))
    return {
        section: [view for _, view in sorted(views, key=lambda v: (v[0], v[1].name))]
        for section, views in found.items()
    }


def _save(table: pd.DataFrame, path: Path) -> None:
    # A setting that is a number in one trial and a word in another has no Parquet type.
    mixed = {
        c: table[c].map(lambda v: v if v is None else str(v))
        for c in table
        if table[c].dtype == object and table[c].map(type).nunique() > 1
    }
    table = table.assign(**{str(c): column for c, column in mixed.items()})
    table.to_parquet(path.with_name(f"{path.name}.parquet"), compression="zstd", index=False)
    table.to_csv(path.with_name(f"{path.name}.csv"), index=False)


def _png_size(picture: bytes) -> tuple[int, int]:
    return int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")
