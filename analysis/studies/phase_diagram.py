"""The phase diagram of wide random tanh networks: order, chaos, the line between (Poole 2016)."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure as Picture

from analysis.figures.base import INK
from pipeline.dynamics.meanfield import chi_1, correlation_length, fixed_correlation, fixed_point


def phase_at(sigma_w: float, sigma_b: float) -> dict[str, float]:
    """q*, χ_1, c* and ξ of networks of one kind; NaN for correlations where signals vanish."""
    q = fixed_point(sigma_w, sigma_b)
    found = {
        "sigma_b": sigma_b,
        "sigma_w": sigma_w,
        "fixed_point": q,
        "chi_1": chi_1(sigma_w, sigma_b, q=q),
    }
    if q == 0:
        return {**found, "fixed_correlation": math.nan, "correlation_length_layers": math.nan}
    return {
        **found,
        "fixed_correlation": fixed_correlation(sigma_w, sigma_b, q=q),
        "correlation_length_layers": correlation_length(sigma_w, sigma_b, q=q),
    }


def draw_phases(picture: Picture, ax: Axes, phases: pd.DataFrame, line: pd.DataFrame) -> None:
    """log χ_1 by σ_w and σ_b, and the critical line.

    Args:
        phases: rows of `phase_at` on a grid.
        line: columns critical_sigma_w, sigma_b.
    """
    grid = phases.assign(log=np.log(phases["chi_1"])).pivot(
        index="sigma_b", columns="sigma_w", values="log"
    )
    size = float(np.abs(grid.to_numpy()).max())
    image = ax.pcolormesh(
        grid.columns,
        grid.index,
        grid.to_numpy(),
        cmap="RdBu_r",
        norm=TwoSlopeNorm(0, -size, size),
        shading="gouraud",
    )
    bar = picture.colorbar(image, ax=ax, location="right", pad=0.02, aspect=28)
    bar.set_label(r"log $\chi_1$")
    bar.outline.set_visible(False)
    ax.plot(line["critical_sigma_w"], line["sigma_b"], color=INK, linewidth=1.5)
    ax.set(
        xlabel=r"$\sigma_w$",
        ylabel=r"$\sigma_b$",
        xlim=(grid.columns.min(), grid.columns.max()),
        ylim=(grid.index.min(), grid.index.max()),
    )
    ax.grid(visible=False)
