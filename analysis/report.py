"""One self-contained page that says what a sweep found, its tables and pictures beside it.

The page needs no network: styles and pictures are inside it.
"""

import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from analysis.evaluate import compare
from analysis.evidence import increments
from analysis.figures.base import Figure
from analysis.frame import SweepFrame
from analysis.pages import (
    FILES,
    FigureView,
    Form,
    environment,
    macros,
    replacing,
    save_page,
    save_picture,
    save_table,
)
from analysis.parallel import products_on_one_core
from analysis.sections.base import Section
from analysis.sections.reproduce import settings
from analysis.verdict import refusal, verdict
from pipeline import catalog

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
_LONG = ("budget", "failures")
"""Sections whose tables take Python a while, and are kept."""
SECTIONS: dict[str, Section] = {
    name: importlib.import_module(f"analysis.sections.{name}").SECTION for name in ORDER
}


def write_report(frame: SweepFrame, out: Path, form: Form = "html") -> Path:
    """Writes the report into the folder `out`, replacing a former report there.

    Returns the path of its page. Raises AnalysisError where `out` is something else than a former
    report or an empty folder; OSError where it cannot be written.
    """
    with replacing(out) as folder:
        fill(frame, folder, form)
    return out.resolve() / FILES[form]


@products_on_one_core
def fill(frame: SweepFrame, folder: Path, form: Form, *, above: str = "") -> None:
    """Writes the report into an empty folder; `above` links the page that it is a part of."""
    is_refused = refusal(frame) is not None
    if not is_refused:
        compare(frame)  # First, because it takes most memory: little else is kept yet.
    with ThreadPoolExecutor(1) as beside:
        # Matrix products for the most part, which leave Python to the drawing.
        coming = None if is_refused else beside.submit(increments, frame)
        figures = _figures(frame, folder)
        for name in _LONG:
            SECTIONS[name].tables(frame)
        if coming is not None:
            coming.result()
    for section in SECTIONS.values():
        for name, table in section.tables(frame).items():
            if not table.empty:
                save_table(table, folder, name)
    (folder / "config.yaml").write_text(settings(frame), encoding="utf-8")
    content = {
        "name": frame.info.name,
        "above": above,
        "verdict": verdict(frame),
        "sections": [
            (name, section, _body(section, frame, figures[name]))
            for name, section in SECTIONS.items()
        ],
    }
    about = {"sweep": frame.info.name, "sweep_id": frame.info.sweep_id}
    save_page(folder, "report.html.j2", content, form, about)


def _body(section: Section, frame: SweepFrame, figures: list[FigureView]) -> str:
    template = environment().from_string(section.body)
    return template.render(macros(), figures=figures, **section.content(frame))


def _figures(frame: SweepFrame, folder: Path) -> dict[str, list[FigureView]]:
    """Draws every figure there is; returns them by section, in their order."""
    found: dict[str, list[tuple[int, FigureView]]] = {section: [] for section in SECTIONS}
    for name in catalog.entries("figures"):
        kind: type[Figure] = catalog.load("figures", name)
        figure = kind()
        table, picture = figure.data(frame), b""
        if not table.empty:
            picture = figure.png(table)
            save_table(table, folder, name)
        view = save_picture(picture, folder, name, figure.title, figure.caption)
        found[figure.section].append((figure.order, view))
    return {
        section: [view for _, view in sorted(views, key=lambda v: (v[0], v[1].name))]
        for section, views in found.items()
    }
