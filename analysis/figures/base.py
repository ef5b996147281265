"""What a figure of the report is: a table first, then its picture."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, ClassVar, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.frame import SweepFrame

Section = Literal["design", "spectra", "evolution", "correlations", "curves"]

# Okabe & Ito (2008): told apart with any colour vision. Their yellow is too faint on white.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#1b1f24"
DPI = 192  # twice the screen's 96: sharp on dense displays
STYLE: Any = {
    "font.size": 10.5,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "axes.edgecolor": "#6b7280",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


class Figure(ABC):
    """One figure. Its table holds every number that the picture shows.

    Attributes:
        section: where in the report it stands; `order` sorts within the section.
        title: what is seen, in a few words.
        caption: how to read it.
    """

    section: ClassVar[Section]
    order: ClassVar[int] = 0
    title: ClassVar[str]
    caption: ClassVar[str]

    @abstractmethod
    def data(self, frame: SweepFrame) -> pd.DataFrame:
        """The numbers; an empty table where the sweep has none of them."""

    @abstractmethod
    def draw(self, table: pd.DataFrame) -> Picture:
        """The picture of a table that is not empty."""

    def png(self, table: pd.DataFrame) -> bytes:
        """The picture in the house style, as a PNG file's bytes."""
        return png(lambda: self.draw(table))


def png(draw: Callable[[], Picture]) -> bytes:
    """What `draw` draws, in the house style, as a PNG file's bytes."""
    with matplotlib.rc_context(STYLE):
        sink = BytesIO()
        # No Software tag: the same numbers give the same bytes with any library version.
        draw().savefig(sink, format="png", dpi=DPI, metadata={"Software": None})
        return sink.getvalue()


def new_picture(width: float, height: float) -> Picture:
    """An empty picture, inches, that leaves room for all its labels."""
    return Picture(figsize=(width, height), layout="constrained")


def spread_out(items: Sequence[int], count: int) -> list[int]:
    """At most `count` of the items, first and last among them, evenly apart."""
    if len(items) <= count:
        return list(items)
    return [items[int(i * (len(items) - 1) / (count - 1) + 0.5)] for i in range(count)]


def widen_scale(ax: Axes, which: Literal["x", "y"], values: pd.Series, factor: float) -> None:
    """A logarithmic axis with plain numbers where positive values span more than a factor."""
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.min() <= 0 or finite.max() <= factor * finite.min():
        return
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    ratio = finite.max() / finite.min()
    subs = (1, 1.5, 2, 3, 4, 5, 7) if ratio < 8 else (1, 2, 5) if ratio < 100 else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def whole_epochs(ax: Axes) -> None:
    """Ticks of an epoch axis at whole numbers."""
    ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))


def when(epoch: int) -> str:
    """An epoch in words."""
    return "before training" if epoch == 0 else f"after epoch {epoch}"
