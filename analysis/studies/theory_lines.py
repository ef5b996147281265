"""How studies of mean-field theory are drawn: theory as lines, networks as points with bars."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from analysis.figures.base import INK, OKABE_ITO

MARKERS = ("o", "s", "^", "D", "v", "P")


def look_of(values: Sequence[float], value: float) -> tuple[str, str]:
    """Colour and marker of one of the values, by its place among them."""
    place = sorted(values).index(value)
    return OKABE_ITO[place % len(OKABE_ITO)], MARKERS[place % len(MARKERS)]


def draw_networks(
    ax: Axes, table: pd.DataFrame, x: str, colour: str, marker: str, face: str | None = None
) -> None:
    """Columns mean, low, high as points with bars; points alone where there are no bars.

    `face` fills the points in another colour.
    """
    mean = table["mean"].to_numpy(float)
    bars = np.stack([mean - table["low"], table["high"] - mean])
    ax.errorbar(
        table[x],
        mean,
        yerr=np.nan_to_num(bars),
        color=colour,
        marker=marker,
        markersize=4,
        markerfacecolor=face or colour,
        linestyle="none",
        elinewidth=1,
    )


def draw_theory(ax: Axes, table: pd.DataFrame, x: str, colour: str) -> None:
    """Column theory as a line."""
    ax.plot(table[x], table["theory"], color=colour, linewidth=1.3)


def add_legend(picture: Picture, looks: dict[str, tuple[str, str]]) -> None:
    """One legend above all panels: what the colours mean, and what lines and points are."""
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=5, linestyle="none", label=label)
        for label, (colour, marker) in looks.items()
    ]
    handles.append(Line2D([], [], color=INK, linewidth=1.3, label="theory"))
    picture.legend(handles=handles, loc="outside upper center", ncols=len(handles))
