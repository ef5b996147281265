"""The one colour scale of the final loss, shared by the figures that show single trials."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure as Picture

DIVERGED = "#9ca3af"
MAX_TRIALS = 150


def loss_colours(target: pd.Series) -> ScalarMappable:
    """Viridis from the 5th to the 95th percentile, so that one bad trial does not bleach the rest.

    Dark is good. Logarithmic where the losses span more than a factor of three.
    """
    finite = target[np.isfinite(target)]
    low, high = (float(v) for v in np.quantile(finite, [0.05, 0.95])) if len(finite) else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    norm = LogNorm(low, high) if low > 0 and high > 3 * low else Normalize(low, high)
    # The last tenth of viridis is too bright for thin lines on white.
    shortened = colormaps["viridis"].resampled(256)(np.linspace(0, 0.9, 256))
    return ScalarMappable(norm, ListedColormap(shortened))


def colour_of(target: float, colours: ScalarMappable) -> tuple[float, ...]:
    """One trial's colour."""
    return tuple(colours.to_rgba(np.array([target]))[0])


def add_loss_bar(picture: Picture, colours: ScalarMappable, axes: list[Axes], unit: str) -> None:
    """The scale beside the axes, pointed at both ends since colours saturate there."""
    bar = picture.colorbar(colours, ax=axes, extend="both", pad=0.015, aspect=28)
    bar.set_label(f"final validation loss [{unit}]")
    bar.outline.set_visible(False)


def some_trials(target: pd.Series) -> pd.Index:
    """At most `MAX_TRIALS` trials, evenly spread over the ranks of their loss."""
    ordered = target.sort_values(kind="stable").index
    if len(ordered) <= MAX_TRIALS:
        return ordered
    return ordered[np.linspace(0, len(ordered) - 1, MAX_TRIALS).round().astype(int)]
