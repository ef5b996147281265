"""A folder with one page, its tables and its pictures, put in place whole.

It is built next to its destination and renamed, so that a reader never meets half a report. The
page is HTML with styles and pictures inside it, or the same page as Markdown.
"""

import base64
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jinja2
import pandas as pd

from analysis import markdown
from analysis.frame import AnalysisError

Form = Literal["html", "md"]

FILES: dict[Form, str] = {"html": "index.html", "md": "README.md"}
"""The page's name by its form: what a web server, or a code host, shows of a folder."""
MARKER = ".lyapsweep-report"
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


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder to build in, which takes the place of `out` when all went well.

    Raises AnalysisError where `out` is something else than a former report or an empty folder;
    OSError where it cannot be written.
    """
    out = out.resolve()
    _check_destination(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir()
        yield building
        _swap(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def save_page(
    folder: Path, template: str, content: Mapping[str, Any], form: Form, about: Mapping[str, Any]
) -> None:
    """Renders a template, and marks the folder as a report on `about`."""
    text = environment().get_template(template).render(content)
    if form == "md":
        text = markdown.from_html(text)
    (folder / FILES[form]).write_text(text, encoding="utf-8")
    (folder / MARKER).write_text(json.dumps(about), encoding="utf-8")


def save_table(table: pd.DataFrame, folder: Path, name: str) -> None:
    """As Parquet and CSV into the folder's `tables`."""
    path = _room(folder, "tables") / name
    # A setting that is a number in one trial and a word in another has no Parquet type.
    mixed = {
        c: table[c].map(lambda v: v if v is None else str(v))
        for c in table
        if table[c].dtype == object and table[c].map(type).nunique() > 1
    }
    table = table.assign(**{str(c): column for c, column in mixed.items()})
    table.to_parquet(path.with_name(f"{path.name}.parquet"), compression="zstd", index=False)
    table.to_csv(path.with_name(f"{path.name}.csv"), index=False)


def save_picture(picture: bytes, folder: Path, name: str, title: str, caption: str) -> FigureView:
    """A PNG into the folder's `figures`; b"" where there was nothing to draw."""
    if not picture:
        return FigureView(name, title, caption, "", 0, 0)
    (_room(folder, "figures") / f"{name}.png").write_bytes(picture)
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    width, height = _png_size(picture)
    return FigureView(name, title, caption, uri, width // 2, height // 2)


@cache
def environment() -> jinja2.Environment:
    """The templates, in which whatever is filled in is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def macros() -> dict[str, Any]:
    """`table(view)` and `pictures(figures)`, for the bodies of sections."""
    parts: Any = environment().get_template("parts.html.j2").module
    return {"table": parts.table, "pictures": parts.pictures}


def _room(folder: Path, name: str) -> Path:
    (folder / name).mkdir(exist_ok=True)
    return folder / name


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


def _png_size(picture: bytes) -> tuple[int, int]:
    return int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")
