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


def looks_of_scales(table: pd.DataFrame) -> dict[float, tuple[str, str]]:
    """Colour and marker of every σ_w of a table, in ascending order."""
    values = sorted(table["sigma_w"].unique())
    return {sigma_w: look_of(values, sigma_w) for sigma_w in values}


def draw_map_and_layers(
    map_ax: Axes, layer_ax: Axes, curves: pd.DataFrame, layers: pd.DataFrame, before: str
) -> None:
    """A map from one layer to the next with its diagonal, and the way of several starts.

    curves: columns sigma_w, `before` and theory. layers: columns sigma_w, start, layer, theory,
        mean, low and high; of many layers about ten are drawn as points.
    """
    for sigma_w, (colour, marker) in looks_of_scales(curves).items():
        draw_theory(map_ax, curves[curves["sigma_w"] == sigma_w], before, colour)
        here = layers[layers["sigma_w"] == sigma_w]
        draw_networks(map_ax, here[here["layer"] == 2], "start", colour, marker)
        for _, line in here.groupby("start"):
            draw_theory(layer_ax, line, "layer", colour)
            shown = line[(line["layer"] - 1) % max(1, len(line) // 10) == 0]
            draw_networks(layer_ax, shown, "layer", colour, marker)
    longest = curves[before].max()
    map_ax.plot([0, longest], [0, longest], color=INK, linewidth=0.8, linestyle=":")


def add_scale_legend(picture: Picture, table: pd.DataFrame) -> None:
    """`add_legend` of the σ_w of a table."""
    looks = looks_of_scales(table)
    add_legend(picture, {rf"$\sigma_w$ = {s:g}": look for s, look in looks.items()})


def add_legend(picture: Picture, looks: dict[str, tuple[str, str]]) -> None:
    """One legend above all panels: what the colours mean, and what lines and points are."""
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=5, linestyle="none", label=label)
        for label, (colour, marker) in looks.items()
    ]
    handles.append(Line2D([], [], color=INK, linewidth=1.3, label="theory"))
    picture.legend(handles=handles, loc="outside upper center", ncols=len(handles))
