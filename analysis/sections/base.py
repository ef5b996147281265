"""What a section of the report is, and the tables it shows: words already."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import words
from analysis.frame import SweepFrame

MAX_TRIALS_SHOWN = 300


@dataclass(frozen=True)
class TableView:
    """A table as the page shows it: words already, numbers aligned right.

    Attributes:
        links: where the head of each column leads; empty where none leads anywhere.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    file: str = ""
    note: str = ""
    links: Sequence[str] = ()


def _nothing(_: SweepFrame) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Section:
    """One section of the page. Its file's name is its anchor, and the `section` of its figures.

    Attributes:
        title: its heading.
        body: Jinja text below the heading, a line break at its end. It is given what `content`
            returns, `figures`, and the macros `table(view)` and `pictures(figures)`.
        content: the values that stand in the body.
        tables: file name → table, for the folder beside the page; empty ones are left out.
        short: the heading in the list of sections; "" takes the title.
    """

    title: str
    body: str = "{{ pictures(figures) }}\n"
    content: Callable[[SweepFrame], Mapping[str, Any]] = _nothing
    tables: Callable[[SweepFrame], Mapping[str, pd.DataFrame]] = _nothing
    short: str = ""


def table_view(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[bool] | None = None,
    *,
    file: str = "",
    note: str = "",
    links: Sequence[str] = (),
) -> TableView | None:
    """A table, by default of words alone; None where there is neither a row nor a note."""
    if not rows and not note:
        return None
    numeric = numeric or [False] * len(columns)
    return TableView(caption, columns, rows, numeric, file, note, links)


def interval(line: pd.Series, column: str) -> str:
    """The estimate in a column with the bounds beside it."""
    return words.estimate(line[column], line[f"{column}_low"], line[f"{column}_high"])


def setting(value: Any) -> str:
    """The value of a sampled setting."""
    is_float = isinstance(value, float | np.floating)
    return words.significant(float(value), 3) if is_float else str(value)


def in_words(value: Any) -> str:
    """A value of the settings as people read it: no brackets, no None."""
    if value is None:
        return "none"
    return ", ".join(map(in_words, value)) or "none" if isinstance(value, list) else str(value)
